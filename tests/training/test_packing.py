from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from slmforge.contract.events import Choice
from slmforge.training.attention import DOCUMENTS
from slmforge.training.packing import choose_attention

CHOICES = {
    "device": Choice(value="cpu", reason="test"),
    "precision": Choice(value="float32", reason="test"),
}
SHAPE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def chosen(model: PreTrainedModel) -> tuple[str, str]:
    choice = choose_attention(model, CHOICES)
    return choice.value, str(model.config._attn_implementation)


def test_a_model_of_attention_alone_is_packed() -> None:
    torch.manual_seed(0)
    assert chosen(LlamaForCausalLM(LlamaConfig(**SHAPE))) == ("packed", DOCUMENTS)


def test_a_model_whose_convolutions_look_back_takes_one_row_at_a_time() -> None:
    torch.manual_seed(0)
    model = Lfm2ForCausalLM(Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"]))
    own = model.config._attn_implementation
    assert chosen(model) == ("one row at a time", own)


def test_a_model_that_caps_its_scores_takes_one_row_at_a_time() -> None:
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=16))
    model.set_attn_implementation("eager")
    assert chosen(model) == ("one row at a time", "eager")
