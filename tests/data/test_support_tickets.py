import importlib.util
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from slmforge.data.conversations import Conversation, Defect
from slmforge.data.duplicates import prompt_fingerprint
from slmforge.data.layouts import to_conversation
from slmforge.data.profile import profile
from slmforge.data.reading import scan
from slmforge.data.rows import read_rows

FOLDER = Path(__file__).parents[2] / "examples" / "support_tickets"


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tickets", FOLDER / "make_tickets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tickets(name: str) -> list[Conversation]:
    with (FOLDER / name).open("rb") as file:
        rows = [row for row in read_rows(file, "csv", None) if not isinstance(row, Defect)]
    found = [to_conversation(row, "classification", {"text": "text", "label": "category"}) for row in rows]
    return [ticket for ticket in found if isinstance(ticket, Conversation)]


def test_the_generator_gives_the_same_bytes_again(tmp_path: Path) -> None:
    make_tickets: Callable[[Path], None] = load_generator().make_tickets
    make_tickets(tmp_path)
    for name in ("train.csv", "eval.csv"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


@pytest.mark.parametrize(("name", "rows"), [("train.csv", 2500), ("eval.csv", 500)])
def test_every_ticket_can_be_used(name: str, rows: int) -> None:
    with (FOLDER / name).open("rb") as file:
        found = scan(file, purpose="training")
    assert (found.layout, found.row_count, found.invalid_count) == ("classification", rows, 0)


def test_the_analysis_finds_nothing_wrong() -> None:
    found = profile(tickets("train.csv"))
    assert found.findings == []
    assert found.labels is not None
    assert found.labels.number == 14
    assert found.labels.imbalance < 2


def test_no_held_out_ticket_is_a_training_ticket_and_all_labels_are_known() -> None:
    train, held_out = tickets("train.csv"), tickets("eval.csv")
    assert not {prompt_fingerprint(row) for row in train} & {prompt_fingerprint(row) for row in held_out}
    assert {row.label for row in train} == {row.label for row in held_out}


def test_held_out_tickets_use_phrases_that_training_tickets_never_do() -> None:
    categories = tomllib.loads((FOLDER / "phrases.toml").read_text(encoding="utf-8"))["categories"]
    unseen = [phrase.lower() for entry in categories.values() for phrase in entry["held_out"] if "{" not in phrase]

    def holding_one(name: str) -> int:
        return sum(any(phrase in row.messages[0].content.lower() for phrase in unseen) for row in tickets(name))

    assert holding_one("train.csv") == 0
    assert holding_one("eval.csv") > 10
