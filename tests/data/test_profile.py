import json

from slmforge.data.conversations import Conversation, Defect, Message
from slmforge.data.findings import ROWS_SHOWN
from slmforge.data.profile import LABELS_SHOWN, Distribution, Profile, profile


def exchange(number: int, prompt: str, answer: str, *, system: str | None = None) -> Conversation:
    first = (Message("system", system),) if system else ()
    return Conversation(number, number + 1, (*first, Message("user", prompt), Message("assistant", answer)))


def ticket(number: int, text: str, label: str) -> Conversation:
    return Conversation(number, number + 2, (Message("user", text), Message("assistant", label)), label=label)


def tickets(**counts: int) -> list[Conversation]:
    labels = [label for label, count in counts.items() for _ in range(count)]
    return [ticket(number, f"ticket {number}", label) for number, label in enumerate(labels)]


def defect(number: int, code: str = "empty_answer") -> Defect:
    return Defect(number, number + 1, None, code, "Column 'answer' is empty.", "Fill it in.")


def codes(found: Profile) -> dict[str, str]:
    return {finding.code: finding.severity for finding in found.findings}


def test_lengths_are_counted_exactly() -> None:
    found = profile(exchange(number, "p" * number, "a" * 10) for number in range(1, 101))
    expected = Distribution(minimum=1, mean=50.5, p50=50, p95=95, p99=99, maximum=100)
    assert found.prompt_characters == expected
    assert found.answer_characters == Distribution(minimum=10, mean=10, p50=10, p95=10, p99=10, maximum=10)
    assert found.text_characters is None
    assert found.findings == []


def test_system_prompts_are_counted_apart_from_turns_and_prompts() -> None:
    found = profile([exchange(0, "hi", "hello", system="be kind"), exchange(1, "ho", "hello")])
    assert found.system_prompt_share == 0.5
    assert found.turns == found.prompt_characters == Distribution(minimum=2, mean=2, p50=2, p95=2, p99=2, maximum=2)


def test_plain_text_has_lengths_but_no_turns() -> None:
    found = profile([Conversation(0, 1, (), text="abc")])
    assert found.text_characters == Distribution(minimum=3, mean=3, p50=3, p95=3, p99=3, maximum=3)
    assert (found.turns, found.prompt_characters, found.labels) == (None, None, None)


def test_labels_are_counted_with_their_imbalance() -> None:
    found = profile(tickets(refund=30, delivery=90, login=30))
    assert found.labels is not None
    assert list(found.labels.counts.items()) == [("delivery", 90), ("login", 30), ("refund", 30)]
    assert (found.labels.number, found.labels.imbalance) == (3, 3.0)


def test_of_many_labels_the_most_frequent_are_shown() -> None:
    found = profile(tickets(often=20, **{f"label_{number}": 10 for number in range(LABELS_SHOWN)}))
    assert found.labels is not None
    assert found.labels.number == LABELS_SHOWN + 1
    assert len(found.labels.counts) == LABELS_SHOWN
    assert found.labels.counts["often"] == 20


def test_defects_are_counted_by_what_is_wrong_and_show_their_first_rows() -> None:
    rows = [exchange(number, f"prompt {number}", "answer") for number in range(200)]
    found = profile([*rows, *map(defect, range(200, 250)), defect(250, "wrong_type")])
    assert (found.rows, found.invalid_rows) == (200, 51)
    assert found.invalid == {"empty_answer": 50, "wrong_type": 1}
    first, second = found.findings
    assert (first.code, first.severity, first.count) == ("empty_answer", "warning", 50)
    assert first.rows == list(range(200, 200 + ROWS_SHOWN))
    assert first.message == "50 rows cannot be used. The first: Column 'answer' is empty."
    assert first.remedy == "Fill it in."
    assert second.message.startswith("1 row cannot")


def test_losing_more_rows_than_are_left_is_an_error() -> None:
    assert codes(profile([exchange(0, "a", "answer"), defect(1), defect(2)]))["empty_answer"] == "error"


def test_repeats_and_contradictions_are_found_where_they_stand() -> None:
    rows = [*tickets(a=60, b=60), ticket(120, "TICKET 3", "a"), ticket(121, "ticket 4", "b")]
    found = profile(rows)
    assert (found.duplicates, found.contradictions) == (1, 1)
    assert {finding.code: finding.rows for finding in found.findings} == {"duplicates": [120], "contradictions": [121]}
    assert codes(found)["contradictions"] == "warning"


def test_another_answer_to_the_same_prompt_is_only_worth_a_look() -> None:
    rows = [exchange(number, f"prompt {number}", "answer") for number in range(200)]
    assert codes(profile([*rows, exchange(200, "prompt 1", "another")])) == {"contradictions": "info"}


def test_very_short_answers_are_reported_but_labels_are_not() -> None:
    rows = [exchange(number, f"prompt {number}", "answer") for number in range(200)]
    found = profile([*rows, exchange(200, "why", " no ")])
    assert found.very_short_answers == 1
    assert codes(found) == {"very_short_answers": "info"}
    assert codes(profile(tickets(a=60, b=60))) == {}


def test_few_rows_are_a_warning() -> None:
    (finding,) = profile(tickets(a=20, b=20)).findings
    assert (finding.code, finding.message) == ("few_rows", "Only 40 rows can be learnt from.")


def test_labels_that_cannot_be_learnt_are_named() -> None:
    assert codes(profile(tickets(a=200))) == {"one_label": "error"}
    assert codes(profile(tickets(**{f"label_{number}": 1 for number in range(200)}))) == {"too_many_labels": "warning"}
    (rare,) = profile(tickets(a=100, b=100, c=7)).findings
    assert (rare.code, rare.count, rare.message) == ("rare_labels", 1, "Labels with fewer than 8 rows: 'c'.")
    assert codes(profile(tickets(a=200, b=9))) == {"imbalanced_labels": "warning"}


def test_a_profile_of_nothing_is_all_zero() -> None:
    found = profile([])
    assert (found.rows, found.system_prompt_share, found.turns) == (0, 0.0, None)


def test_a_profile_survives_json() -> None:
    found = profile([*tickets(a=60, b=60), defect(120)])
    assert Profile.model_validate(json.loads(found.model_dump_json())) == found
