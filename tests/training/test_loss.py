import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from slmforge.contract.events import Choice
from slmforge.training.batches import Example
from slmforge.training.loss import LabelLoss
from slmforge.training.packing import choose_attention

CHOICES = {
    "device": Choice(value="cpu", reason="test"),
    "precision": Choice(value="float32", reason="test"),
}


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config)


def rows_of_unequal_label_counts() -> list[Example]:
    draw = np.random.default_rng(0)
    return [
        Example(draw.integers(60, size=length), np.arange(length) >= length - labels)
        for length, labels in [(30, 1), (22, 20), (9, 3), (8, 7), (5, 1), (3, 2)]
    ]


def step_gradient(model: LlamaForCausalLM, micro_batch_tokens: int, *, packed: bool = True) -> tuple[Tensor, int]:
    """The gradient of one optimizer step, and in how many micro-batches it was made."""
    rows = rows_of_unequal_label_counts()
    if packed:
        attention = choose_attention(model, CHOICES)
        assert attention.value == "packed"
    else:
        attention = Choice(value="one row at a time", reason="test")
    model.zero_grad()
    labels = sum(row.labels for row in rows)
    count = 0
    for summed in LabelLoss(model, micro_batch_tokens, CHOICES | {"attention": attention}).of(rows):
        torch.autograd.backward(summed / labels)
        count += 1
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]), count


@pytest.mark.parametrize(("micro_batch_tokens", "micro_batches"), [(1000, 1), (40, 3), (8, 5)])
def test_the_gradient_of_a_step_does_not_depend_on_how_its_rows_are_split(
    model: LlamaForCausalLM, micro_batch_tokens: int, micro_batches: int
) -> None:
    alone, _ = step_gradient(model, 1000, packed=False)
    split, count = step_gradient(model, micro_batch_tokens)
    assert count == micro_batches
    torch.testing.assert_close(split, alone, rtol=0, atol=1e-6)
    assert alone.norm() > 1e-2
