import random
from typing import Any

import numpy as np
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
    Qwen3Config,
    Qwen3ForCausalLM,
)

from slmforge.data.render import Rendered
from slmforge.training import padded
from slmforge.training.label_trie import LabelTrie
from slmforge.training.likelihood import (
    most_likely_labels,
    plain_log_probs,
    sequence_nll,
    takes_trees,
    tree_log_probs,
)
from slmforge.training.scorers import Floats

VOCABULARY = 50
END = 1
LABELS = [[5, 6, END], [5, 7, 8, END], [5, 7, END], [9, END], [10, 11, 12, 13, END], [9, 10, END]]


def _model(name: str, **changes: Any) -> PreTrainedModel:
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.4,  # so that it has opinions
        "tie_word_embeddings": False,
    } | changes
    torch.manual_seed(0)
    made: PreTrainedModel
    match name:
        case "llama":
            made = LlamaForCausalLM(LlamaConfig(**shape))
        case "qwen3":
            made = Qwen3ForCausalLM(Qwen3Config(**(shape | {"head_dim": 16})))
        case "mistral":
            made = MistralForCausalLM(MistralConfig(**(shape | {"sliding_window": 6})))
        case _:
            made = Lfm2ForCausalLM(Lfm2Config(**(shape | {"layer_types": ["conv", "full_attention", "conv"]})))
    return made


def _prompts(count: int, longest: int = 20) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(2, VOCABULARY) for _ in range(draw.randint(1, longest))] for _ in range(count)]


@torch.no_grad()
def _one_at_a_time(model: PreTrainedModel, prompt: list[int], label: list[int]) -> float:
    logits = model(input_ids=torch.tensor([prompt + label])).logits[0].log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(label))


def _naive(model: PreTrainedModel, prompts: list[list[int]]) -> Floats:
    return np.array([[_one_at_a_time(model, prompt, label) for label in LABELS] for prompt in prompts])


class Heard(list[int]):
    def __call__(self, rows: int) -> None:
        self.append(rows)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_tree_gives_every_label_the_likelihood_it_has_alone(name: str) -> None:
    model, prompts, heard = _model(name), _prompts(12), Heard()
    assert takes_trees(model, prompts[0], LABELS)
    np.testing.assert_allclose(tree_log_probs(model, prompts, LABELS, heard), _naive(model, prompts), atol=1e-4)
    assert sum(heard) == len(prompts)


@pytest.mark.parametrize("name", ["mistral", "lfm2"])
def test_a_model_that_no_tree_fits_is_asked_label_by_label(name: str) -> None:
    model, prompts = _model(name), [prompt for prompt in _prompts(30) if len(prompt) > 8]
    assert not takes_trees(model, prompts[0], LABELS)
    expected = _naive(model, prompts)
    np.testing.assert_allclose(plain_log_probs(model, prompts, LABELS, Heard()), expected, atol=1e-4)
    assert most_likely_labels(model, prompts, LABELS, Heard()) == expected.argmax(1).tolist()


@pytest.mark.parametrize("spread", [0.02, 0.4, 1.0])
def test_the_search_finds_the_most_likely_label(spread: float) -> None:
    model, prompts, heard = _model("llama", initializer_range=spread), _prompts(40, longest=3), Heard()
    assert most_likely_labels(model, prompts, LABELS, heard) == _naive(model, prompts).argmax(1).tolist()
    assert sum(heard) == len(prompts)


def test_long_prompts_take_every_label_in_one_pass() -> None:
    model, prompts = _model("llama"), [prompt * 3 for prompt in _prompts(10)]
    assert most_likely_labels(model, prompts, LABELS, Heard()) == _naive(model, prompts).argmax(1).tolist()


def test_batches_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = _model("llama"), _prompts(12)
    expected = tree_log_probs(model, prompts, LABELS, Heard())
    monkeypatch.setattr(padded, "MAX_TOKENS", 40)
    np.testing.assert_allclose(tree_log_probs(model, prompts, LABELS, Heard()), expected, atol=1e-4)


def test_no_prompts_have_no_labels() -> None:
    assert most_likely_labels(_model("llama"), [], LABELS, Heard()) == []


def test_labels_that_begin_alike_share_their_nodes() -> None:
    trie = LabelTrie.of(LABELS, torch.device("cpu"))
    assert trie.tokens_N.tolist()[1:] == [5, 6, 7, 8, 9, 10, 11, 12, 13, 10]
    assert trie.paths_EL.sum(0).tolist() == [len(label) for label in LABELS]
    wanted = torch.tensor([[False] * 6, [False, True, False, False, False, False]])
    assert [row.nonzero()[:, 0].tolist() for row in trie.nodes_of(wanted)] == [[], [1, 3, 4]]


@pytest.mark.parametrize("name", ["llama", "mistral", "lfm2"])
def test_the_nll_of_a_row_is_that_of_its_supervised_tokens(name: str) -> None:
    model, draw = _model(name), random.Random(1)
    rows = [Rendered(ids, [draw.random() < 0.4 for _ in ids], 0) for ids in _prompts(15)]
    heard = Heard()
    nll, tokens = sequence_nll(model, rows, heard)
    for row, row_nll, row_tokens in zip(rows, nll, tokens, strict=True):
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        counted = [place for place, supervised in enumerate(row.supervised) if supervised and place]
        assert row_tokens == len(counted)
        assert row_nll == pytest.approx(-sum(float(logs[place - 1, row.ids[place]]) for place in counted), abs=1e-4)
    assert sum(heard) == len(rows)


def test_a_row_without_supervised_tokens_counts_nothing() -> None:
    nll, tokens = sequence_nll(_model("llama"), [Rendered([4, 5], [True, False], 0)], Heard())
    assert (nll.tolist(), tokens.tolist()) == ([0.0], [0.0])
