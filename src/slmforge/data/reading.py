"""Reading: from stored bytes to conversations and defects.

`scan` looks at a file once, at upload, and settles how it is read; `read_dataset` reads it that way ever after.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from slmforge.blobs import BlobStore
from slmforge.contract.spec import DatasetRef, Format, Layout, Task
from slmforge.data.conversations import Conversation, Defect, Row
from slmforge.data.layouts import detect_layout, to_conversation
from slmforge.data.rows import UnreadableFile, detect_format, json_splits, read_rows

Purpose = Literal["training", "evaluation"]

_LAYOUT_ROWS = 1000
_LAYOUT_BYTES = 32 << 20
_SPLITS: dict[Purpose, tuple[str, ...]] = {
    "training": ("train", "training"),
    "evaluation": ("test", "validation", "valid", "val", "eval", "evaluation", "dev"),
}


@dataclass(frozen=True, slots=True)
class Scan:
    """How a file is read and what came of reading it whole.

    `splits` holds the records in each list of a JSON object of splits and is empty for other files; `split` is the one
    that is read. `defects` are the first of the `invalid_count` records that cannot be used.
    """

    format: Format
    layout: Layout
    columns: dict[str, str]
    split: str | None
    splits: dict[str, int]
    row_count: int
    invalid_count: int
    defects: tuple[Defect, ...]


def scan(
    file: BinaryIO, *, purpose: Purpose, mapping: Mapping[str, str] | None = None, max_defects: int = 1000
) -> Scan:
    """Settle format, split and layout of a seekable file, then read all of it.

    `mapping` (our field -> the file's column) overrides what the columns' names suggest. Raises `UnreadableFile` when
    the file cannot be read, or no row of it can be used.
    """
    format_ = detect_format(file)
    splits = (json_splits(file) if format_ == "json" else None) or {}
    split = _choose_split(splits, purpose) if splits else None
    guess = detect_layout(_first_values(file, format_, split), mapping)
    file.seek(0)
    row_count, invalid_count, defects = 0, 0, list[Defect]()
    for item in _interpret(read_rows(file, format_, split), guess.layout, guess.columns):
        if isinstance(item, Conversation):
            row_count += 1
        else:
            invalid_count += 1
            if len(defects) < max_defects or not defects:
                defects.append(item)
    if row_count == 0:
        raise _no_usable_row(defects)
    return Scan(
        format=format_,
        layout=guess.layout,
        columns=guess.columns,
        split=split,
        splits=splits,
        row_count=row_count,
        invalid_count=invalid_count,
        defects=tuple(defects[:max_defects]),
    )


def read_dataset(store: BlobStore, ref: DatasetRef) -> Iterator[Conversation | Defect]:
    """Yield every record of a stored dataset, usable or not, in the order of the file.

    Raises `BlobMissing` at once when the bytes are gone, and `UnreadableFile` where they cannot be read further.
    """
    stream = io.BufferedReader(_ChunkStream(store.open(ref.blob.key)))
    return _interpret(read_rows(stream, ref.format, ref.split), ref.layout, ref.columns)


def task_of(layout: Layout) -> Task:
    """What is learnt from rows of this layout: a label, an answer, or the text itself."""
    if layout == "classification":
        return "classification"
    return "language_modeling" if layout == "text" else "generation"


def _first_values(file: BinaryIO, format_: Format, split: str | None) -> list[dict[str, Any]]:
    """What tells the layout: the first records that are whole, past any broken ones, in bounded memory."""
    file.seek(0)
    values: list[dict[str, Any]] = []
    first_defects: list[Defect] = []
    for item in read_rows(file, format_, split):
        if isinstance(item, Row):
            values.append(item.value)
        elif not first_defects:
            first_defects.append(item)
        if len(values) == _LAYOUT_ROWS or (values and file.tell() > _LAYOUT_BYTES):
            break
    if not values:
        raise _no_usable_row(first_defects)
    return values


def _interpret(
    rows: Iterable[Row | Defect], layout: Layout, columns: Mapping[str, str]
) -> Iterator[Conversation | Defect]:
    for item in rows:
        yield to_conversation(item, layout, columns) if isinstance(item, Row) else item


def _choose_split(splits: Mapping[str, int], purpose: Purpose) -> str:
    filled = [name for name, count in splits.items() if count]
    by_name = {name.lower(): name for name in reversed(filled)}
    wanted = next((by_name[name] for name in _SPLITS[purpose] if name in by_name), None)
    if wanted is not None:
        return wanted
    if len(filled) == 1:
        return filled[0]
    found = ", ".join(f"{name!r} ({count} rows)" for name, count in splits.items())
    names = " or ".join(repr(name) for name in _SPLITS[purpose][:2])
    message = f"The file holds the lists {found}, and which of them is for {purpose} is not clear; call it {names}."
    raise UnreadableFile("no_such_split", message)


def _no_usable_row(defects: list[Defect]) -> UnreadableFile:
    if not defects:
        return UnreadableFile("no_rows", "The file holds no rows; upload one with at least one.")
    first = defects[0]
    place = f"line {first.line}" if first.line is not None else f"record {first.pointer}"
    message = f"No row of the file can be used. The first is {place}: {first.reason} {first.remedy}"
    return UnreadableFile("no_usable_rows", message)


class _ChunkStream(io.RawIOBase):
    """The chunks of a blob as a readable file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed wants WriteableBuffer, which has no length
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size
