"""Write train.csv and eval.csv: support tickets of an invented web shop service, from the phrases in phrases.toml.

    python make_tickets.py [FOLDER]

A ticket is an opener, some background that belongs to another category, the concern that gives the label, and a
closer, most of them left out at random; then hurried typing. Evaluation rows are never training rows, and draw on
phrases that training rows never hold. The same seed gives the same bytes with every Python.
"""

import csv
import random
import re
import sys
import tomllib
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeVar

HERE = Path(__file__).parent
SEED = 20260101
TRAIN_ROWS = 2500
EVAL_ROWS = 500
AMBIGUOUS_SHARE = 0.06
BACKGROUND_SHARE = 0.5
OPENER_SHARE = 0.6
CLOSER_SHARE = 0.7
UNSEEN_SHARE = 0.15  # of the phrases in evaluation rows

Side = Literal["train", "eval"]
T = TypeVar("T")
_SLOT = re.compile(r"\{(\w+)\}")
_QUESTION = re.compile(r"(how|where|can|could|is|does|do|did|any|when|what|which|why|who|have|will|would) ")


def make_tickets(folder: Path) -> None:
    """Write both files into `folder`."""
    phrases = tomllib.loads((HERE / "phrases.toml").read_text(encoding="utf-8"))
    writer = TicketWriter(phrases, random.Random(SEED))  # noqa: S311 - nothing secret is drawn
    written: set[str] = set()
    _write(folder / "train.csv", writer.tickets("train", TRAIN_ROWS, written))
    _write(folder / "eval.csv", writer.tickets("eval", EVAL_ROWS, written))


class TicketWriter:
    """Draws tickets. Uses `random()` only, the one draw that Python promises to keep."""

    def __init__(self, phrases: dict[str, Any], draws: random.Random) -> None:
        self._phrases = phrases
        self._draws = draws

    def tickets(self, side: Side, count: int, written: set[str]) -> list[tuple[str, str]]:
        """Make `count` tickets (text, category) whose words are not in `written` yet, and add them to it."""
        tickets: list[tuple[str, str]] = []
        while len(tickets) < count:
            text, category = self._ticket(side)
            words = " ".join(re.findall(r"\w+", text.lower()))
            if words not in written:
                written.add(words)
                tickets.append((text, category))
        return tickets

    def _ticket(self, side: Side) -> tuple[str, str]:
        if self._chance(AMBIGUOUS_SHARE):
            shared = self._one_of(self._phrases["ambiguous"])
            category, concern = self._one_of(shared["categories"]), self._one_of(shared["texts"])
        else:
            category = self._category()
            concern = self._phrase(self._phrases["categories"][category], side)
        text = self._filled(concern, side)
        text += "?" if _QUESTION.match(text) else "."
        if self._chance(BACKGROUND_SHARE):
            text = f"{self._filled(self._background(category), side)}, {text}"
        if self._chance(OPENER_SHARE):
            text = f"{self._phrase(self._phrases['openers'], side)} {text}"
        if self._chance(CLOSER_SHARE):
            text = f"{text} {self._filled(self._phrase(self._phrases['closers'], side), side)}"
        return self._typed(text[0].upper() + text[1:]), category

    def _category(self) -> str:
        categories: dict[str, Any] = self._phrases["categories"]
        weights = list(accumulate(entry["weight"] for entry in categories.values()))
        return list(categories)[bisect(weights, self._draws.random() * weights[-1])]

    def _background(self, category: str) -> str:
        others = [name for name in self._phrases["categories"] if name != category]
        return str(self._one_of(self._phrases["categories"][self._one_of(others)]["background"]))

    def _phrase(self, phrases: dict[str, list[str]], side: Side) -> str:
        unseen = side == "eval" and self._chance(UNSEEN_SHARE)
        return self._one_of(phrases["held_out" if unseen else "train"])

    def _filled(self, text: str, side: Side) -> str:
        while slot := _SLOT.search(text):
            filler = self._phrase(self._phrases["slots"][slot[1]], side)
            if filler not in text:  # "from the Plus plan to the Plus plan" is what nobody writes
                text = text[: slot.start()] + filler + text[slot.end() :]
        return text

    def _typed(self, text: str) -> str:
        for _ in range(2):
            if self._chance(0.2):
                text = self._misspelt(text)
        if self._chance(0.3):
            text = text.lower()
        elif self._chance(0.04):
            text = text.upper()
        if self._chance(0.25):
            text = text.rstrip(".?!")
        return text

    def _misspelt(self, text: str) -> str:
        long_words = [match.span() for match in re.finditer(r"[a-z]{5,}", text)]
        if not long_words:
            return text
        begin, end = self._one_of(long_words)
        at = begin + 1 + int(self._draws.random() * (end - begin - 2))
        swapped = text[at + 1] + text[at]
        return text[:at] + self._one_of([swapped, text[at], text[at : at + 2] + text[at + 1]]) + text[at + 2 :]

    def _chance(self, share: float) -> bool:
        return self._draws.random() < share

    def _one_of(self, choices: Sequence[T]) -> T:
        return choices[int(self._draws.random() * len(choices))]


def _write(path: Path, tickets: list[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "category"])
        writer.writerows(tickets)


if __name__ == "__main__":
    make_tickets(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
