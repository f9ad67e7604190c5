"""The rows of a run: read from storage, parted into training and held-out, rendered once.

Training and evaluation both begin with `read_rows`, so they agree on what was held out.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from slmforge.blobs import BlobStore
from slmforge.contract.spec import DatasetRef, EvalData
from slmforge.data.conversations import Conversation
from slmforge.data.reading import read_dataset
from slmforge.data.render import Renderer, TemplateRefused
from slmforge.data.rows import UnreadableFile
from slmforge.data.splits import hold_out
from slmforge.training.batches import Example
from slmforge.training.failures import RunFailure

REPORT_EVERY_ROWS = 500


@dataclass(frozen=True, slots=True)
class Rows:
    """What to train on and what to measure on."""

    train: list[Conversation]
    held_out: list[Conversation]


@dataclass(frozen=True, slots=True)
class RenderedRows:
    """Sequences that carry labels. `cut_rows` lost tokens to the length limit, `empty_rows` had no label left."""

    examples: list[Example]
    cut_rows: int
    empty_rows: int


def read_rows(store: BlobStore, data: EvalData) -> Rows:
    """Read and part the rows. Raises `RunFailure`: `integrity_error`, `no_usable_rows`; and `BlobMissing`."""
    train = _usable(store, data.train)
    if data.eval is not None:
        return Rows(train, _usable(store, data.eval))
    assert data.held_out is not None  # the spec says exactly one
    try:
        return Rows(*hold_out(train, data.held_out))
    except ValueError as error:
        raise RunFailure("no_usable_rows", str(error)) from error


def render_rows(
    rows: Iterable[Conversation], renderer: Renderer, max_length: int, report: Callable[[int], None]
) -> RenderedRows:
    """Render rows for training; `report` hears how many are done. Raises `RunFailure` when the template refuses one."""
    examples, cut_rows, empty_rows = [], 0, 0
    for number, row in enumerate(rows, start=1):
        try:
            sequences = renderer.render(row, max_length)
        except TemplateRefused as error:
            place = f"line {row.line}" if row.line is not None else f"row {row.number}"
            raise RunFailure("model_rejected", f"{place} does not fit this model: {error}") from error
        cut_rows += any(sequence.cut_tokens for sequence in sequences)
        learnable = [
            example
            for sequence in sequences
            if (example := Example(np.array(sequence.ids), np.array(sequence.supervised, dtype=bool))).labels
        ]
        empty_rows += not learnable
        examples += learnable
        if number % REPORT_EVERY_ROWS == 0:
            report(number)
    return RenderedRows(examples, cut_rows, empty_rows)


def texts(rows: Iterable[Conversation]) -> Iterable[str]:
    """Everything written in the rows, for a tokenizer to learn from."""
    for row in rows:
        if row.text is not None:
            yield row.text
        yield from (message.content for message in row.messages)


def _usable(store: BlobStore, ref: DatasetRef) -> list[Conversation]:
    digest = hashlib.sha256()
    for chunk in store.open(ref.blob.key):
        digest.update(chunk)
    if digest.hexdigest() != ref.blob.sha256:
        raise RunFailure("integrity_error", "the stored dataset is not the file that was uploaded; upload it again")
    try:
        rows = [item for item in read_dataset(store, ref) if isinstance(item, Conversation)]
    except UnreadableFile as error:
        raise RunFailure("no_usable_rows", str(error)) from error
    if not rows:
        raise RunFailure("no_usable_rows", "no row of the dataset can be used; its issues say why, row by row")
    return rows
