import random
from typing import Any

import pytest
import torch
from transformers import (
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from slmforge.training import generation
from slmforge.training.generation import generate

ENDS = {1, 2, 3, 4, 5}


def _model(name: str) -> PreTrainedModel:
    shape: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.4,
    }
    torch.manual_seed(3)
    made: PreTrainedModel
    match name:
        case "llama":
            made = LlamaForCausalLM(LlamaConfig(**shape))
        case "mistral":
            made = MistralForCausalLM(MistralConfig(**shape, sliding_window=6))
        case _:
            made = Lfm2ForCausalLM(Lfm2Config(**shape, layer_types=["conv", "full_attention"]))
    return made


def _prompts() -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(6, 40) for _ in range(draw.randint(1, 15))] for _ in range(24)]


@torch.no_grad()
def _one_at_a_time(model: PreTrainedModel, prompt: list[int], max_new_tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(max_new_tokens):
        token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in ENDS:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", ["llama", "mistral", "lfm2"])
def test_a_batch_answers_as_each_row_would_alone(name: str) -> None:
    model, prompts = _model(name), _prompts()
    heard: list[int] = []
    answers = generate(model, prompts, end_ids=ENDS, max_new_tokens=12, advance=heard.append)
    assert answers == [_one_at_a_time(model, prompt, 12) for prompt in prompts]
    assert len({len(answer) for answer in answers}) > 3  # some end early, some late
    assert sum(heard) == len(prompts)


def test_small_batches_give_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = _model("llama"), _prompts()
    expected = generate(model, prompts, end_ids=ENDS, max_new_tokens=12, advance=lambda _: None)
    monkeypatch.setattr(generation, "MAX_CACHE_BYTES", 1)
    assert generate(model, prompts, end_ids=ENDS, max_new_tokens=12, advance=lambda _: None) == expected


def test_no_prompts_have_no_answers() -> None:
    assert generate(_model("llama"), [], end_ids=ENDS, max_new_tokens=5, advance=lambda _: None) == []
