import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmforge.contract.spec import HeldOut
from slmforge.data.conversations import Conversation, Message
from slmforge.data.duplicates import prompt_fingerprint
from slmforge.data.splits import hold_out


def labelled(number: int, text: str, label: str | None) -> Conversation:
    return Conversation(number, number + 2, (Message("user", text), Message("assistant", label or "-")), label=label)


def tickets(count: int, labels: int = 4) -> list[Conversation]:
    return [labelled(number, f"ticket {number}", f"label {number % labels}") for number in range(count)]


def ten_percent(seed: int = 1, max_rows: int = 1000) -> HeldOut:
    return HeldOut(fraction=0.1, max_rows=max_rows, seed=seed)


def test_a_tenth_is_held_out_and_nothing_is_lost() -> None:
    rows = tickets(500)
    kept, held = hold_out(rows, ten_percent())
    assert len(held) == 50
    assert sorted((*kept, *held), key=lambda row: row.number) == rows


def test_the_choice_depends_on_the_seed_and_not_on_the_order() -> None:
    rows = tickets(500)
    shuffled = random.Random(3).sample(rows, len(rows))
    held = {row.number for row in hold_out(rows, ten_percent())[1]}
    assert {row.number for row in hold_out(shuffled, ten_percent())[1]} == held
    assert {row.number for row in hold_out(rows, ten_percent(seed=2))[1]} != held


def test_no_more_than_the_limit_is_held_out() -> None:
    assert len(hold_out(tickets(500), ten_percent(max_rows=7))[1]) == 7


def test_one_row_is_held_out_even_of_a_few() -> None:
    kept, held = hold_out(tickets(3, labels=1), ten_percent())
    assert (len(kept), len(held)) == (2, 1)


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("abc")), min_size=2, max_size=60), st.integers())
def test_a_prompt_stands_on_one_side_and_every_label_can_be_learnt(rows: list[tuple[int, str]], seed: int) -> None:
    conversations = [labelled(number, f"Ticket {text}", label) for number, (text, label) in enumerate(rows)]
    try:
        kept, held = hold_out(conversations, HeldOut(fraction=0.3, max_rows=20, seed=seed))
    except ValueError:
        return
    assert 1 <= len(held) <= 20
    assert not {prompt_fingerprint(row) for row in kept} & {prompt_fingerprint(row) for row in held}
    assert {row.label for row in kept} == {row.label for row in conversations}


def test_a_prompt_that_comes_too_often_is_held_out_only_if_there_is_no_other() -> None:
    rows = [labelled(number, f"prompt {number % 2}", None) for number in range(20)]
    kept, held = hold_out(rows, ten_percent())
    assert Counter(row.messages[0].content for row in held).total() == 10
    assert len({row.messages[0].content for row in held}) == 1
    assert len(kept) == 10


@pytest.mark.parametrize(
    "rows",
    [
        [labelled(0, "a", None)],
        [labelled(number, "A" if number % 2 else "a", None) for number in range(9)],
        [labelled(number, f"ticket {number}", f"label {number}") for number in range(9)],
    ],
)
def test_rows_that_cannot_be_parted_are_refused(rows: list[Conversation]) -> None:
    with pytest.raises(ValueError, match="no row can be held out of"):
        hold_out(rows, ten_percent())
