from typing import Any

import pytest

from slmforge.contract.spec import Layout
from slmforge.data.conversations import Conversation, Defect, Message, Row
from slmforge.data.formats import UnreadableFile
from slmforge.data.layouts import detect_layout, to_conversation

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
HI_HELLO = (Message("user", "hi"), Message("assistant", "hello"))


def read(value: dict[str, Any], mapping: dict[str, str] | None = None) -> Conversation | Defect:
    guess = detect_layout([value], mapping)
    return to_conversation(Row(number=4, line=9, pointer=None, value=value), guess.layout, guess.columns)


def conversation(value: dict[str, Any]) -> Conversation:
    found = read(value)
    assert isinstance(found, Conversation), found
    return found


def chat(*turns: dict[str, Any], **more: object) -> Conversation | Defect:
    row = Row(number=0, line=1, pointer=None, value={"messages": list(turns), **more})
    return to_conversation(row, "messages", {"messages": "messages"})


def code(found: Conversation | Defect) -> str:
    assert isinstance(found, Defect), found
    assert found.reason
    assert found.remedy
    return found.code


@pytest.mark.parametrize(
    ("value", "layout", "columns"),
    [
        ({"messages": CHAT}, "messages", {"messages": "messages"}),
        ({"id": 1, "dialog": CHAT}, "messages", {"messages": "dialog"}),
        ({"thread": SHAREGPT}, "sharegpt", {"conversations": "thread"}),
        ({"conversations": CHAT}, "messages", {"messages": "conversations"}),
        (
            {"conversations": SHAREGPT, "system": "s"},
            "sharegpt",
            {"conversations": "conversations", "system": "system"},
        ),
        ({"instruction": "a", "output": "b"}, "alpaca", {"instruction": "instruction", "output": "output"}),
        (
            {"instruction": "a", "context": "b", "response": "c", "category": "d"},
            "alpaca",
            {"instruction": "instruction", "input": "context", "output": "response"},
        ),
        ({"prompt": "a", "response": "b"}, "prompt_completion", {"prompt": "prompt", "completion": "response"}),
        ({"input": "a", "output": "b"}, "prompt_completion", {"prompt": "input", "completion": "output"}),
        ({"question": "a", "answer": "b"}, "question_answer", {"question": "question", "answer": "answer"}),
        ({"Text": "a", "Category": "b"}, "classification", {"text": "Text", "label": "Category"}),
        ({"utterance": "a", "intent": "b"}, "classification", {"text": "utterance", "label": "intent"}),
        ({"text": "a", "label": 3, "label_text": "b"}, "classification", {"text": "text", "label": "label_text"}),
        ({"text": "a", "source": "b"}, "text", {"text": "text"}),
    ],
)
def test_a_layout_is_told_by_names_and_for_chats_by_content(
    value: dict[str, Any], layout: Layout, columns: dict[str, str]
) -> None:
    guess = detect_layout([value])
    assert (guess.layout, guess.columns) == (layout, columns)


def test_later_rows_help_to_tell_the_layout() -> None:
    guess = detect_layout([{"messages": []}, {"messages": CHAT, "system": "s"}])
    assert guess.columns == {"messages": "messages", "system": "system"}


def test_a_mapping_wins_over_names() -> None:
    row = {"text": "a", "label": "b", "body": "c", "kind": "d"}
    guess = detect_layout([row], {"text": "body", "label": "kind"})
    assert (guess.layout, guess.columns) == ("classification", {"text": "body", "label": "kind"})


def test_a_mapping_that_says_all_of_a_layout_means_that_layout() -> None:
    assert detect_layout([{"body": "a", "label": "b"}], {"text": "body"}).layout == "text"


def test_what_a_mapping_leaves_open_is_found_by_name() -> None:
    guess = detect_layout([{"text": "a", "kind": "b"}], {"label": "kind"})
    assert (guess.layout, guess.columns) == ("classification", {"text": "text", "label": "kind"})


@pytest.mark.parametrize(
    ("row", "mapping", "words"),
    [
        ({"a": "x"}, {"txt": "a"}, "field 'txt'"),
        ({"a": "x"}, {"text": "b"}, "column 'b', but the file has 'a'"),
        ({"a": "x", "b": "y"}, {"text": "a", "answer": "b"}, "No known layout"),
        ({"a": "x", "b": "y"}, None, "No known layout fits the columns 'a', 'b'"),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, None, "preference pair"),
    ],
)
def test_what_cannot_be_laid_out_is_refused_in_a_sentence(
    row: dict[str, Any], mapping: dict[str, str] | None, words: str
) -> None:
    with pytest.raises(UnreadableFile, match=words):
        detect_layout([row], mapping)


def test_a_ticket_becomes_a_question_whose_answer_is_the_label() -> None:
    found = conversation({"text": " where is it? ", "label": " delivery "})
    assert found.messages == (Message("user", " where is it? "), Message("assistant", "delivery"))
    assert (found.label, found.number, found.line) == ("delivery", 4, 9)


@pytest.mark.parametrize(("value", "label"), [(3, "3"), (0, "0"), (True, "true"), (2.5, "2.5")])
def test_a_label_that_is_a_number_becomes_its_text(value: object, label: str) -> None:
    assert conversation({"text": "a", "label": value}).label == label


def test_plain_text_has_no_messages() -> None:
    found = conversation({"text": "once upon a time"})
    assert (found.text, found.messages, found.label) == ("once upon a time", (), None)


def test_prompts_and_answers_keep_their_white_space_and_a_system_prompt_goes_first() -> None:
    found = conversation({"prompt": " a\n", "completion": "\tb", "system": "be kind"})
    assert found.messages == (Message("system", "be kind"), Message("user", " a\n"), Message("assistant", "\tb"))


def test_an_alpaca_row_puts_its_input_below_the_instruction_and_its_history_before() -> None:
    row = {"instruction": "add", "input": "1 2", "output": "3", "system": "s", "history": [["hi", "hello"]]}
    assert conversation(row).messages == (
        Message("system", "s"),
        *HI_HELLO,
        Message("user", "add\n1 2"),
        Message("assistant", "3"),
    )
    assert conversation({"instruction": "hi", "input": "", "output": "hello", "history": None}).messages == HI_HELLO


@pytest.mark.parametrize("history", [["hi", "hello"], [["hi"]], [["hi", ""]], "hi"])
def test_a_history_that_is_no_list_of_pairs_is_a_defect(history: object) -> None:
    assert code(read({"instruction": "a", "output": "b", "history": history})) == "wrong_type"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"prompt": " ", "completion": "b"}, "empty_prompt"),
        ({"prompt": "a", "completion": ""}, "empty_answer"),
        ({"prompt": "a", "completion": None}, "empty_answer"),
        ({"prompt": ["a"], "completion": "b"}, "wrong_type"),
        ({"prompt": 1, "completion": "b"}, "wrong_type"),
        ({"question": "a", "answer": {"text": "b"}}, "wrong_type"),
        ({"text": "", "label": "b"}, "empty_prompt"),
        ({"text": "a", "label": " "}, "empty_answer"),
        ({"text": "\n"}, "empty_text"),
        ({"instruction": "a", "input": 1, "output": "b"}, "wrong_type"),
    ],
)
def test_a_row_with_an_empty_or_wrong_field_is_a_defect(value: dict[str, Any], expected: str) -> None:
    found = read(value)
    assert code(found) == expected
    assert (found.number, found.line) == (4, 9)


def test_a_row_without_the_column_is_a_defect() -> None:
    row = Row(number=0, line=1, pointer=None, value={"question": "a"})
    assert code(to_conversation(row, "question_answer", {"question": "question", "answer": "answer"})) == "empty_answer"


def test_both_ways_of_writing_turns_mean_the_same() -> None:
    assert conversation({"messages": CHAT}).messages == HI_HELLO
    assert conversation({"conversations": SHAREGPT}).messages == HI_HELLO


def test_every_known_role_is_one_of_four() -> None:
    found = chat(
        {"role": "developer", "content": "s"},
        {"role": "human", "content": "a"},
        {"role": "model", "content": "b"},
        {"role": "observation", "content": "c"},
        {"role": "GPT", "content": "d"},
    )
    assert isinstance(found, Conversation)
    assert [message.role for message in found.messages] == ["system", "user", "assistant", "tool", "assistant"]


def test_a_system_column_stands_in_for_a_system_turn_but_not_beside_one() -> None:
    assert conversation({"conversations": SHAREGPT, "system": "s"}).messages[0] == Message("system", "s")
    with_turn = [{"from": "system", "value": "t"}, *SHAREGPT]
    assert conversation({"conversations": with_turn, "system": "s"}).messages == (Message("system", "t"), *HI_HELLO)
    empty = [{"from": "system", "value": ""}, *SHAREGPT]
    assert conversation({"conversations": empty, "system": ""}).messages == HI_HELLO


def test_text_parts_are_joined_and_a_weight_of_zero_takes_the_loss_away() -> None:
    found = chat(
        {
            "role": "user",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "value": "b"}],
            "loss_weight": 0.0,
        },
        {"role": "assistant", "content": "c", "weight": 0},
        {"role": "user", "content": "d"},
        {"role": "assistant", "content": "e", "weight": 1},
    )
    assert isinstance(found, Conversation)
    assert found.messages[0].content == "ab"
    assert [message.train for message in found.messages if message.role == "assistant"] == [False, True]


def test_what_follows_the_last_answer_is_left_off() -> None:
    found = chat(*CHAT, {"role": "user", "content": "thanks"})
    assert isinstance(found, Conversation)
    assert found.messages == HI_HELLO


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([], "no_turns"),
        (["hi"], "wrong_type"),
        ([{"role": "user", "content": "hi"}], "no_answer"),
        ([{"role": "assistant", "content": "hi"}], "no_prompt"),
        ([{"role": "user", "content": ""}, CHAT[1]], "empty_prompt"),
        ([CHAT[0], {"role": "assistant", "content": None}], "empty_answer"),
        ([{"role": "narrator", "content": "a"}, CHAT[1]], "unknown_role"),
        ([{"content": "a"}, CHAT[1]], "unknown_role"),
        ([{"role": ["user"], "content": "a"}, CHAT[1]], "unknown_role"),
        ([{"role": "user", "content": 3}, CHAT[1]], "wrong_type"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, CHAT[1]], "unsupported_content"),
        ([CHAT[0], {"role": "assistant", "content": "a", "weight": 0}], "nothing_to_learn"),
        ([CHAT[0], {"role": "assistant", "content": "a", "weight": 0.5}], "unsupported_weight"),
        ([CHAT[0], {"role": "assistant", "content": "a", "weight": [1]}], "unsupported_weight"),
        ([CHAT[0], {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}], "tool_calls"),
        ([CHAT[0], {"from": "function_call", "value": "{}"}, CHAT[1]], "tool_calls"),
    ],
)
def test_turns_that_cannot_be_used_are_a_defect(turns: list[Any], expected: str) -> None:
    assert code(chat(*turns)) == expected


def test_offered_tools_and_preference_pairs_are_defects_that_say_so() -> None:
    assert code(chat(*CHAT, tools=[{"name": "search"}])) == "tool_calls"
    assert isinstance(chat(*CHAT, tools="[]"), Conversation)
    assert code(chat(*CHAT, chosen=CHAT[1], rejected=CHAT[1])) == "preference_pair"
