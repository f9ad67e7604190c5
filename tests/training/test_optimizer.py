import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slmforge.contract.spec import Optimization
from slmforge.training.optimizer import adamw, learning_rate, total_steps


def settings(**changes: object) -> Optimization:
    chosen = {
        "epochs": 2,
        "batch_size": 10,
        "learning_rate": 1.0,
        "warmup_ratio": 0.1,
        "schedule": "cosine",
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
    }
    return Optimization.model_validate(chosen | changes)


def test_a_part_of_a_batch_is_a_step_and_a_part_of_an_epoch_counts() -> None:
    assert total_steps(101, settings()) == 22
    assert total_steps(100, settings(epochs=0.5)) == 5
    assert total_steps(3, settings(epochs=0.01)) == 1


def test_the_rate_warms_up_in_a_line_to_its_peak() -> None:
    assert [learning_rate(settings(), step, 40) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("cosine", 0.5, 0.002), ("linear", 0.5, 0.028), ("constant", 1, 1)]
)
def test_the_rate_falls_as_its_schedule_says(schedule: str, middle: float, last: float) -> None:
    chosen = settings(schedule=schedule)
    assert learning_rate(chosen, 22, 40) == pytest.approx(middle)
    assert learning_rate(chosen, 39, 40) == pytest.approx(last, abs=1e-3)


def test_only_matrices_that_are_no_embedding_decay() -> None:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    decayed, kept = adamw(model, settings()).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    matrices = {id(weight) for name, weight in model.named_parameters() if "proj" in name}
    assert {id(weight) for weight in decayed["params"]} == matrices
    assert len(kept["params"]) + len(decayed["params"]) == len(list(model.parameters()))


def test_a_frozen_weight_is_not_handed_to_the_optimizer() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    layers[0].requires_grad_(False)
    assert [len(group["params"]) for group in adamw(layers, settings()).param_groups] == [1, 1]
