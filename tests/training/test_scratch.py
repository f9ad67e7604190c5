from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from slmforge.contract.spec import ScratchSize
from slmforge.data.conversations import Conversation, Message
from slmforge.data.render import Renderer
from slmforge.training import scratch

CHAT = Conversation(
    0, 1, (Message("system", "Be brief."), Message("user", "What is 12+7?"), Message("assistant", "It is 19."))
)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    scratch.learn_tokenizer(["Be brief. What is 12+7? It is 19."] * 3, "scratch-1m", tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_the_renderer_and_transformers_read_the_same_chat(tokenizer: Path) -> None:
    rendered = Renderer.from_directory(tokenizer).render(CHAT, 100)[0]
    messages = [{"role": turn.role, "content": turn.content} for turn in CHAT.messages]
    theirs = AutoTokenizer.from_pretrained(tokenizer).apply_chat_template(messages, return_dict=False)
    assert rendered.ids == theirs


def test_the_labels_are_the_answer_and_its_end(tokenizer: Path) -> None:
    rendered = Renderer.from_directory(tokenizer).render(CHAT, 100)[0]
    labels = [token for token, label in zip(rendered.ids, rendered.supervised, strict=True) if label]
    assert AutoTokenizer.from_pretrained(tokenizer).decode(labels) == "It is 19.<|end|>"


def test_a_plain_text_ends_with_the_end_token(tokenizer: Path) -> None:
    rendered = Renderer.from_directory(tokenizer).render(Conversation(0, 1, (), text="Be brief."), 100)[0]
    assert AutoTokenizer.from_pretrained(tokenizer).decode(rendered.ids) == "Be brief.<|end|>"


def test_numbers_are_written_digit_by_digit(tokenizer: Path) -> None:
    tokens = AutoTokenizer.from_pretrained(tokenizer).tokenize("12+7")
    assert tokens == ["1", "2", "+", "7"]


def test_the_same_seed_builds_the_same_weights_and_leaves_the_generator_alone(tokenizer: Path) -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    first, again, other = (scratch.build("scratch-1m", seed, tokenizer) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    weight = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first.state_dict()[weight], again.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])


@pytest.mark.parametrize(("size", "millions"), [("scratch-1m", 1), ("scratch-5m", 5), ("scratch-25m", 25)])
def test_a_size_is_what_its_name_says(size: ScratchSize, millions: int) -> None:
    shape = scratch.SHAPES[size]
    layer = 4 * shape.width**2 + 3 * shape.width * shape.feed_forward
    assert shape.vocabulary * shape.width + shape.layers * layer == pytest.approx(millions * 1e6, rel=0.1)


def test_a_scratch_model_survives_saving_and_loading(tokenizer: Path, tmp_path: Path) -> None:
    model = scratch.build("scratch-1m", 1, tokenizer)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(model.lm_head.weight, again.lm_head.weight)
