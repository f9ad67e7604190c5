import pytest

from slmforge.data.conversations import Conversation, Message
from slmforge.data.duplicates import Repeats, fingerprint, prompt_fingerprint


def exchange(prompt: str, answer: str, *, system: str | None = None) -> Conversation:
    first = (Message("system", system),) if system else ()
    return Conversation(0, 1, (*first, Message("user", prompt), Message("assistant", answer)))


@pytest.mark.parametrize("variant", ["CAFÉ  noir", "cafe\u0301 noir", " Café\n\tnoir ", "Ｃafé noir"])
def test_case_unicode_form_and_white_space_make_no_difference(variant: str) -> None:
    assert fingerprint(exchange(variant, "yes")) == fingerprint(exchange("café noir", "YES"))


def test_what_is_said_and_who_says_it_make_a_difference() -> None:
    said = exchange("a", "b")
    others = [exchange("a", "c"), exchange("ab", ""), exchange("a", "b", system="s"), exchange("b", "a")]
    assert fingerprint(said) not in {fingerprint(other) for other in others}
    swapped = Conversation(0, 1, (Message("assistant", "a"), Message("user", "b")))
    assert fingerprint(said) != fingerprint(swapped)


def test_the_prompt_is_all_before_the_last_answer() -> None:
    assert prompt_fingerprint(exchange("a", "b")) == prompt_fingerprint(exchange("A", "c"))
    assert prompt_fingerprint(exchange("a", "b")) != prompt_fingerprint(exchange("a", "b", system="s"))
    text = Conversation(0, 1, (), text="a")
    assert prompt_fingerprint(text) == fingerprint(text)


def test_repeats_and_contradictions_are_told_apart() -> None:
    repeats = Repeats()
    said = [("a", "b"), ("a", "b"), ("a", "c"), ("a", "c"), ("d", "b")]
    told = [repeats.add(exchange(prompt, answer)) for prompt, answer in said]
    assert told == [(False, False), (True, False), (False, True), (True, False), (False, False)]


def test_text_can_repeat_but_not_contradict() -> None:
    repeats = Repeats()
    told = [repeats.add(Conversation(0, 1, (), text=text)) for text in ["a", "A", "b"]]
    assert told == [(False, False), (True, False), (False, False)]
