"""Findings: what an analysis has to say to a person, as sentences with a remedy.

Each function looks at one side of the counts that `profile` made and says nothing when there is nothing to say.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal

from slmforge.contract.spec import Frozen
from slmforge.data.conversations import Defect

ROWS_SHOWN = 20
FEW_ROWS = 100
FEW_ROWS_PER_LABEL = 8
HIGH_IMBALANCE = 20

Severity = Literal["info", "warning", "error"]


class Finding(Frozen):
    """Something a person should look at. `rows` are record numbers from 0, the first few of `count`."""

    code: str
    severity: Severity
    count: int
    rows: list[int]
    message: str
    remedy: str


class Occurrences:
    """How many records have some property, and the numbers of the first of them."""

    def __init__(self) -> None:
        self.count = 0
        self.rows: list[int] = []

    def add(self, number: int) -> None:
        self.count += 1
        if len(self.rows) < ROWS_SHOWN:
            self.rows.append(number)


def of_defects(
    defects: Mapping[str, Occurrences], examples: Mapping[str, Defect], usable_rows: int
) -> Iterator[Finding]:
    """One finding per kind of defect; an error when more rows are lost than are left."""
    lost = sum(found.count for found in defects.values())
    for code, found in defects.items():
        message = f"{_rows(found.count)} cannot be used. The first: {examples[code].reason}"
        yield _finding(code, "error" if lost > usable_rows else "warning", found, message, examples[code].remedy)


def of_size(usable_rows: int) -> Iterator[Finding]:
    """Too few rows to learn from."""
    if usable_rows < FEW_ROWS:
        yield Finding(
            code="few_rows",
            severity="warning",
            count=usable_rows,
            rows=[],
            message=f"Only {_rows(usable_rows)} can be learnt from.",
            remedy="Add rows: with fewer than a few hundred the model repeats what it saw and a score says little.",
        )


def of_repeats(duplicates: Occurrences, contradictions: Occurrences, *, labelled: bool) -> Iterator[Finding]:
    """Rows said twice, and prompts answered in different ways."""
    if duplicates.count:
        message = f"{_rows(duplicates.count, 'repeats', 'repeat')} an earlier one but for case and white space."
        remedy = "Remove the repeats; each weighs as much as a row that says something new."
        yield _finding("duplicates", "warning", duplicates, message, remedy)
    if contradictions.count:
        kind = "label" if labelled else "answer"
        message = f"{_rows(contradictions.count, 'gives', 'give')} the prompt of an earlier one another {kind}."
        remedy = f"Decide on one {kind} for each prompt, unless several are right."
        yield _finding("contradictions", "warning" if labelled else "info", contradictions, message, remedy)


def of_short_answers(very_short: Occurrences, characters: int) -> Iterator[Finding]:
    """Answers of hardly any length."""
    if very_short.count:
        message = f"{_rows(very_short.count, 'has', 'have')} an answer of fewer than {characters} characters."
        yield _finding("very_short_answers", "info", very_short, message, "Check that these answers are whole.")


def of_labels(counts: Counter[str]) -> Iterator[Finding]:
    """Labels that cannot be learnt: one only, too rare, out of balance, or no labels at all."""
    if not counts:
        return
    (most, highest), (least, lowest) = counts.most_common()[0], counts.most_common()[-1]
    if len(counts) == 1:
        message = f"Every row has the label {most!r}, so there is nothing to tell apart."
        yield _label_finding("one_label", "error", 1, message, "Add rows of other labels, or map another column.")
    elif len(counts) > counts.total() / 2:
        message = f"{_rows(counts.total())} have {len(counts):,} different labels; this may not be a column of labels."
        yield _label_finding("too_many_labels", "warning", len(counts), message, "Check which column is the label.")
    elif rare := [label for label, count in counts.items() if count < FEW_ROWS_PER_LABEL]:
        named = ", ".join(repr(label) for label in rare[:5]) + (", …" if len(rare) > 5 else "")
        message = f"Labels with fewer than {FEW_ROWS_PER_LABEL} rows: {named}."
        yield _label_finding("rare_labels", "warning", len(rare), message, "Add rows of them, or merge them.")
    if len(counts) > 1 and highest > HIGH_IMBALANCE * lowest:
        message = f"The label {most!r} has {highest / lowest:.0f} times as many rows as {least!r}."
        remedy = "Look at macro-F1 rather than accuracy, and add rows of the rare labels."
        yield _label_finding("imbalanced_labels", "warning", len(counts), message, remedy)


def _finding(code: str, severity: Severity, found: Occurrences, message: str, remedy: str) -> Finding:
    return Finding(code=code, severity=severity, count=found.count, rows=found.rows, message=message, remedy=remedy)


def _label_finding(code: str, severity: Severity, labels: int, message: str, remedy: str) -> Finding:
    return Finding(code=code, severity=severity, count=labels, rows=[], message=message, remedy=remedy)


def _rows(count: int, one: str = "", many: str = "") -> str:
    return f"{count:,} row {one}".rstrip() if count == 1 else f"{count:,} rows {many}".rstrip()
