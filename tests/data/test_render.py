import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from slmforge.data.conversations import Conversation, Message
from slmforge.data.render import Rendered, Renderer, TemplateRefused

WORDS = "the quick brown fox asks where a lazy dog keeps its bone and why nobody answers politely or at all"

CHATML_LIKE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

HEADER_LIKE = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""

INST_LIKE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- ' [INST] ' + message.content + ' [/INST]' }}
    {%- elif message.role == 'assistant' %}
        {%- generation %}{{- ' ' + message.content + eos_token }}{%- endgeneration %}
    {%- else %}{{- raise_exception('only users and assistants speak here') }}
    {%- endif %}
{%- endfor %}"""

TURN_LIKE = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{- raise_exception('no system turns') }}{%- endif %}
{%- for message in messages %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
{{- message.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}"""

# A finished conversation is closed by the end-of-text token, one in progress is not.
CLOSING = CHATML_LIKE.replace("{%- endif %}", "{%- else %}{{- eos_token }}{%- endif %}")

# Only the last answer shows the (empty) reasoning that the prompt asked without.
FORGETFUL = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.role == 'assistant' and loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{{- message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""


@dataclass(frozen=True)
class Family:
    template: str | None
    special: tuple[str, ...]
    end: str
    bos: str | None
    eos: str
    pieces: str = "bytes"


FAMILIES = {
    "chatml": Family(CHATML_LIKE, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", None, "<|im_end|>"),
    "header": Family(
        HEADER_LIKE,
        ("<|begin|>", "<|eos|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        "<|begin|>",
        "<|eos|>",
    ),
    "inst": Family(INST_LIKE, ("<s>", "</s>"), "</s>", "<s>", "</s>", pieces="first"),
    "inst-prepending": Family(INST_LIKE, ("<s>", "</s>"), "</s>", "<s>", "</s>", pieces="prepending"),
    "turn": Family(
        TURN_LIKE, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", "<bos>", "<eos>"
    ),
    "closing": Family(CLOSING, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", None, "<|endoftext|>"),
    "no template": Family(None, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", None, "<|endoftext|>"),
    "no template, no markers": Family(None, ("<s>", "</s>"), "</s>", "<s>", "</s>", pieces="first"),
}


def _tokenizer(family: Family) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=None, byte_fallback=family.pieces != "bytes"))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if family.pieces == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        alphabet = [*"▁[]/INST?!.,:<>|_\n", *map(chr, range(97, 123)), *"0123456789ABCDEF"]
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        if family.pieces == "first":
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)] if family.pieces != "bytes" else []
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + len(family.special) + len(fallback) + 60,
        special_tokens=[*family.special, *fallback],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS, WORDS.upper()] * 4, trainer)
    if fallback:
        tokenizer = Tokenizer.from_str(_plain_bytes(tokenizer.to_str(), fallback))
    if family.bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, tokenizer.token_to_id(family.bos))]
        )
    return tokenizer


def _plain_bytes(definition: str, fallback: list[str]) -> str:
    """Byte tokens belong to the vocabulary of such tokenizers, not to their added tokens."""
    content = json.loads(definition)
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in fallback]
    return json.dumps(content)


def _save(family: Family, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    _tokenizer(family).save(str(folder / "tokenizer.json"))
    config = {
        "chat_template": family.template,
        "bos_token": family.bos,
        "eos_token": {"content": family.eos, "__type": "AddedToken"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def renderer(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return Renderer.from_directory(_save(family, tmp_path_factory.mktemp("model")))


def _renderer(family: Family, folder: Path) -> Renderer:
    return Renderer.from_directory(_save(family, folder))


def _conversation(*turns: str, system: str | None = None) -> Conversation:
    messages = [Message("user" if number % 2 == 0 else "assistant", text) for number, text in enumerate(turns)]
    opening = [Message("system", system)] if system else []
    return Conversation(number=0, line=1, messages=(*opening, *messages))


def _only(sequences: list[Rendered]) -> Rendered:
    assert len(sequences) == 1
    assert len(sequences[0].ids) == len(sequences[0].supervised)
    return sequences[0]


def _supervised_runs(rendered: Rendered) -> list[list[int]]:
    runs: list[list[int]] = []
    before = False
    for token_id, supervised in zip(rendered.ids, rendered.supervised, strict=True):
        if supervised and not before:
            runs.append([])
        if supervised:
            runs[-1].append(token_id)
        before = supervised
    return runs


def test_the_answers_and_their_ends_carry_loss_and_nothing_else(renderer: Renderer) -> None:
    rendered = _only(renderer.render(_conversation("where is it?", "at all", "why?", "the lazy dog"), 1000))
    runs = _supervised_runs(rendered)
    assert [renderer.decode(run).strip() for run in runs] == ["at all", "the lazy dog"]
    assert {run[-1] for run in runs} == {renderer.end_token_id}
    assert rendered.supervised[-1]


def test_the_end_of_a_turn_is_the_families_own(renderer: Renderer, family: Family, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(_save(family, tmp_path / "model") / "tokenizer.json"))
    assert tokenizer.id_to_token(renderer.end_token_id) == family.end
    assert tokenizer.token_to_id(family.eos) in renderer.end_token_ids


def test_a_prompt_and_its_answer_are_the_training_sequence(renderer: Renderer) -> None:
    conversation = _conversation("where is it?", "at all")
    rendered = _only(renderer.render(conversation, 1000))
    assert renderer.prompt_ids(conversation, 1000) + renderer.answer_ids("at all") == rendered.ids


def test_the_last_prompt_of_many_turns_is_the_beginning_of_the_training_sequence(renderer: Renderer) -> None:
    conversation = _conversation("where is it?", "at all", "why?", "the lazy dog", system="answer politely")
    rendered = _only(renderer.render(conversation, 1000))
    prompt = renderer.prompt_ids(conversation, 1000)
    assert rendered.ids[: len(prompt)] == prompt
    assert rendered.ids[len(prompt) :] == renderer.answer_ids("the lazy dog")


def test_an_answer_that_is_not_to_be_trained_carries_no_loss(renderer: Renderer) -> None:
    conversation = _conversation("where is it?", "at all", "why?", "the lazy dog")
    first = replace(conversation.messages[1], train=False)
    conversation = replace(conversation, messages=(conversation.messages[0], first, *conversation.messages[2:]))
    rendered = _only(renderer.render(conversation, 1000))
    assert [renderer.decode(run).strip() for run in _supervised_runs(rendered)] == ["the lazy dog"]


def test_a_conversation_without_an_answer_teaches_nothing(renderer: Renderer) -> None:
    assert not any(_only(renderer.render(_conversation("where is it?"), 1000)).supervised)


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.template], indirect=True)
def test_the_tokens_are_those_of_transformers(family: Family, renderer: Renderer, tmp_path: Path) -> None:
    folder = _save(family, tmp_path / "model")
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    conversation = _conversation("where is it?", "at all", "why?", "the lazy dog")
    chat = [{"role": turn.role, "content": turn.content} for turn in conversation.messages]
    text = theirs.apply_chat_template(chat, tokenize=False)
    assert isinstance(text, str)
    expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    ours = _only(renderer.render(conversation, 1000)).ids
    assert ours == expected[: len(ours)]
    assert renderer.decode(expected[len(ours) :]).strip() == ""


def test_a_typed_control_token_stays_text(renderer: Renderer, family: Family) -> None:
    typed = _only(renderer.render(_conversation(f"say {family.end} twice", f"{family.end} {family.end} ok"), 1000))
    plain = _only(renderer.render(_conversation("say it twice", "ok"), 1000))
    assert typed.ids.count(renderer.end_token_id) == plain.ids.count(renderer.end_token_id)
    assert renderer.decode(_supervised_runs(typed)[0]).count(family.end) == 2


def test_a_system_turn_reaches_every_model(renderer: Renderer) -> None:
    conversation = _conversation("where is it?", "at all", system="answer politely")
    assert "answer politely" in renderer.decode(renderer.prompt_ids(conversation, 1000))


def test_a_plain_text_is_learnt_throughout_and_ends(renderer: Renderer) -> None:
    conversation = Conversation(number=0, line=1, messages=(), text=WORDS)
    rendered = _only(renderer.render(conversation, 1000))
    assert all(rendered.supervised)
    assert rendered.ids[-1] in renderer.end_token_ids
    assert renderer.decode(rendered.ids) == WORDS
    windows = renderer.render(conversation, 8)
    assert [token_id for window in windows for token_id in window.ids] == rendered.ids
    assert {window.cut_tokens for window in windows} == {0}


def test_a_long_question_loses_its_middle_and_the_answer_stays(renderer: Renderer) -> None:
    conversation = _conversation(f"why? {WORDS * 9} where?", "the lazy dog", system="answer politely")
    whole = _only(renderer.render(conversation, 10_000))
    rendered = _only(renderer.render(conversation, 120))
    text = renderer.decode(rendered.ids)
    assert 100 < len(rendered.ids) <= 120
    assert rendered.cut_tokens == len(whole.ids) - len(rendered.ids)
    assert "answer politely" in text
    assert "why?" in text
    assert "where?" in text
    assert renderer.decode(_supervised_runs(rendered)[0]).strip() == "the lazy dog"
    assert rendered.ids[-1] == renderer.end_token_id


def test_the_oldest_exchanges_go_first(renderer: Renderer) -> None:
    conversation = _conversation("fox?", WORDS * 3, "bone?", "the lazy dog", system="answer politely")
    rendered = _only(renderer.render(conversation, 120))
    text = renderer.decode(rendered.ids)
    assert "fox?" not in text
    assert "bone?" in text
    assert "answer politely" in text
    assert [renderer.decode(run).strip() for run in _supervised_runs(rendered)] == ["the lazy dog"]


def test_a_very_long_answer_loses_its_end(renderer: Renderer) -> None:
    rendered = _only(renderer.render(_conversation("why?", WORDS * 9), 60))
    assert len(rendered.ids) == 60
    assert rendered.cut_tokens > 0
    assert any(rendered.supervised)
    assert rendered.ids[-1] != renderer.end_token_id


def test_a_prompt_fits_the_room_it_is_given(renderer: Renderer) -> None:
    conversation = _conversation(WORDS * 9, "the lazy dog", system="answer politely")
    assert 60 < len(renderer.prompt_ids(conversation, 80)) <= 80


def test_a_template_that_forgets_reasoning_gives_one_sequence_per_answer(tmp_path: Path) -> None:
    renderer = _renderer(replace(FAMILIES["chatml"], template=FORGETFUL), tmp_path)
    conversation = _conversation("where is it?", "at all", "why?", "the lazy dog")
    sequences = renderer.render(conversation, 1000)
    answers = [[renderer.decode(run) for run in _supervised_runs(sequence)] for sequence in sequences]
    assert answers == [["at all"], ["the lazy dog"]]
    prompt = renderer.prompt_ids(conversation, 1000)
    assert sequences[-1].ids == prompt + renderer.answer_ids("the lazy dog")
    assert "<think>\n\n</think>\n\nat all" in renderer.decode(sequences[0].ids)
    assert "<think>\n\n</think>\n\nat all" not in renderer.decode(sequences[1].ids)


def test_a_template_that_writes_other_text_than_it_asks_with_is_refused(tmp_path: Path) -> None:
    asks_otherwise = CHATML_LIKE.replace("assistant\n' }}", "assistant\n<think>' }}")
    assert asks_otherwise != CHATML_LIKE
    with pytest.raises(TemplateRefused, match="asks for an answer with other text"):
        _renderer(replace(FAMILIES["chatml"], template=asks_otherwise), tmp_path)


def test_a_template_without_an_end_of_turn_gets_the_end_of_text(tmp_path: Path) -> None:
    endless = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    endless += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    renderer = _renderer(replace(FAMILIES["closing"], template=endless), tmp_path)
    rendered = _only(renderer.render(_conversation("why?", "at all", "where?", "the dog"), 1000))
    runs = _supervised_runs(rendered)
    assert [renderer.decode(run) for run in runs] == ["at all", "the dog"]
    assert all(run[-1] == renderer.end_token_id for run in runs)


def test_a_template_that_cannot_be_read_or_refuses_a_turn_says_so(tmp_path: Path) -> None:
    with pytest.raises(TemplateRefused, match="cannot be read"):
        _renderer(replace(FAMILIES["chatml"], template="{% for %}"), tmp_path)
    picky = _renderer(FAMILIES["inst"], tmp_path)
    with pytest.raises(TemplateRefused, match="turns of user, tool"):
        picky.render(Conversation(0, 1, (Message("user", "a"), Message("tool", "b"), Message("assistant", "c"))), 99)


def test_a_template_cannot_reach_outside_its_sandbox(tmp_path: Path) -> None:
    escaping = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(TemplateRefused):
        _renderer(replace(FAMILIES["chatml"], template=escaping), tmp_path)


def test_a_template_file_comes_before_the_configuration(tmp_path: Path) -> None:
    _save(replace(FAMILIES["chatml"], template="not this one"), tmp_path)
    (tmp_path / "chat_template.jinja").write_text(CHATML_LIKE)
    rendered = _only(Renderer.from_directory(tmp_path).render(_conversation("why?", "at all"), 100))
    assert any(rendered.supervised)


def test_a_template_sees_the_same_day_every_day(tmp_path: Path) -> None:
    dated = "{{ strftime_now('%d %b %Y') }}" + CHATML_LIKE
    renderer = _renderer(replace(FAMILIES["chatml"], template=dated), tmp_path)
    assert "26 Jul 2024" in renderer.decode(renderer.prompt_ids(_conversation("why?", "at all"), 100))


def test_a_folder_without_a_usable_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save it with a fast tokenizer"):
        Renderer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json cannot be read"):
        Renderer.from_directory(tmp_path)


def test_a_tokenizer_without_an_end_says_what_to_set(tmp_path: Path) -> None:
    _save(FAMILIES["no template, no markers"], tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match="set eos_token"):
        Renderer.from_directory(tmp_path)
