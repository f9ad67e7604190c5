from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    AttentionInterface,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from slmforge.training.attention import DOCUMENTS, Documents, attend
from slmforge.training.batches import Example, pack
from slmforge.training.loss import label_logits

CPU = torch.device("cpu")
LENGTHS = [70, 41, 40, 23, 5, 2]


def grouped_query_model(architecture: str) -> PreTrainedModel:
    shape: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape))
    return Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=16))


def documents_of(lengths: list[int], seed: int = 0) -> list[Example]:
    draw = np.random.default_rng(seed)
    return [Example(draw.integers(97, size=length), np.ones(length, dtype=bool)) for length in lengths]


def packed_logits(model: PreTrainedModel, documents: list[Example]) -> Tensor:
    AttentionInterface.register(DOCUMENTS, attend)
    model.set_attn_implementation(DOCUMENTS)
    with torch.no_grad():
        return label_logits(model, pack(documents, CPU), packed=True)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_packed_documents_have_the_logits_that_each_has_alone(architecture: str) -> None:
    model, documents = grouped_query_model(architecture), documents_of(LENGTHS)
    with torch.no_grad():
        alone = torch.cat([label_logits(model, pack([one], CPU), packed=False) for one in documents])
    torch.testing.assert_close(packed_logits(model, documents), alone, rtol=1e-5, atol=1e-6)


def test_a_document_does_not_see_its_neighbours() -> None:
    model, documents = grouped_query_model("llama"), documents_of(LENGTHS)
    before = packed_logits(model, documents)
    documents[1] = documents_of(LENGTHS, seed=1)[1]
    after = packed_logits(model, documents)
    ends = np.cumsum([length - 1 for length in LENGTHS])
    changed = slice(ends[0], ends[1])
    assert not torch.equal(before[changed], after[changed])
    assert torch.equal(before[: ends[0]], after[: ends[0]])
    assert torch.equal(before[ends[1] :], after[ends[1] :])


def test_a_sliding_window_hides_what_is_further_back() -> None:
    torch.manual_seed(0)
    length, window = 12, 4
    query, key, value = torch.randn(3, 1, 2, length, 8)
    places = torch.arange(length)
    distance = places[:, None] - places[None]
    expected = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=(distance >= 0) & (distance < window)
    )
    documents = Documents.of_lengths([length], CPU)
    got, _ = attend(torch.nn.Module(), query, key, value, None, documents=documents, sliding_window=window)
    torch.testing.assert_close(got, expected.transpose(1, 2))


def test_the_groups_read_every_token_once() -> None:
    documents = Documents.of_lengths(LENGTHS, CPU)
    read = [int(group.gather_NL.view(-1)[place]) for group in documents.groups for place in group.keep_T]
    assert read == list(range(sum(LENGTHS)))
    assert 1 < len(documents.groups) < len(LENGTHS)


@pytest.mark.parametrize("extra", [{"softcap": 30.0}, {"s_aux": torch.zeros(2)}])
def test_what_it_would_get_wrong_is_refused(extra: dict[str, Any]) -> None:
    query = torch.randn(1, 2, 3, 8)
    with pytest.raises(NotImplementedError):
        attend(torch.nn.Module(), query, query, query, None, documents=Documents.of_lengths([3], CPU), **extra)
