"""Rows: a stream of bytes as records with their place in the file, in bounded memory.

Nothing here knows what a column means. A record that cannot be read becomes a `Defect` and the next one follows; what
makes the whole file unreadable raises `UnreadableFile`. Called by `reading`, at upload and wherever rows are used.
"""

from collections.abc import Iterator
from typing import BinaryIO

from slmforge.contract.spec import Format
from slmforge.data.conversations import Defect, Row
from slmforge.data.csv_rows import read_csv
from slmforge.data.formats import UnreadableFile, detect_format
from slmforge.data.json_rows import json_splits, read_json, read_jsonl

__all__ = ["UnreadableFile", "detect_format", "json_splits", "read_rows"]


def read_rows(file: BinaryIO, format: Format, split: str | None) -> Iterator[Row | Defect]:  # noqa: A002 - the field's name
    """Yield the records of `file` from where it stands, which must be its beginning; it need not be seekable.

    `split` names the list to read in a JSON object of splits, and is None for everything else.
    """
    if format == "csv":
        return read_csv(file)
    if format == "jsonl":
        return read_jsonl(file)
    return read_json(file, split)
