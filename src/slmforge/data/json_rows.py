"""JSON rows: one object per line (JSONL), or one document that is an array of objects or an object of such arrays.

JSONL is read line by line and a broken line is a defect of its own; a broken document can be read up to the break, and
then no further. Called by `rows`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import ijson  # type: ignore[import-untyped]  # ijson ships no types
from pydantic_core import from_json

from slmforge.data.conversations import Defect, Row
from slmforge.data.formats import BOM, MAX_RECORD_BYTES, UnreadableFile, not_utf8, numbered_lines, too_long

_PLACE = re.compile(r" at line 1 column (\d+)$")


def read_jsonl(file: BinaryIO) -> Iterator[Row | Defect]:
    """Yield one record per line that is not blank."""
    number = 0
    for line, content in numbered_lines(file):
        if content.strip():
            yield _parse_line(number, line, content)
            number += 1


def read_json(file: BinaryIO, split: str | None) -> Iterator[Row | Defect]:
    """Yield the records of a document: of its array, or of its list named `split`.

    Raises `UnreadableFile` where the document breaks.
    """
    feed = _LineFeed(file)
    prefix, pointer = "item", ""
    if split is not None:
        prefix, pointer = f"{split}.item", "/" + split.replace("~", "~0").replace("/", "~1")
    with _broken_documents_refused(feed):
        for number, value in enumerate(ijson.items(feed, prefix, use_float=True)):
            if isinstance(value, dict):
                yield Row(number=number, line=None, pointer=f"{pointer}/{number}", value=value)
            else:
                yield _not_an_object(number, None, f"{pointer}/{number}", value)


def json_splits(file: BinaryIO) -> dict[str, int] | None:
    """How many records each list of a JSON object holds, in the order of the file; None when it is an array.

    Raises `UnreadableFile` for a broken document, and for an object without lists.
    """
    feed = _LineFeed(file)
    counts: dict[str, int] = {}
    depth, key = 0, ""
    with _broken_documents_refused(feed):
        for event, value in ijson.basic_parse(feed, use_float=True):
            if event in ("end_map", "end_array"):
                depth -= 1
                continue
            if depth == 0 and event != "start_map":
                return None
            if depth == 1 and event == "map_key":
                key = value
            elif depth == 1 and event == "start_array":
                counts.setdefault(key, 0)
            elif depth == 2 and key in counts and event != "map_key":
                counts[key] += 1
            depth += event in ("start_map", "start_array")
    if not counts:
        message = "The JSON document is one object; upload an array of objects, or an object of such arrays by split."
        raise UnreadableFile("no_rows", message)
    return counts


def _parse_line(number: int, line: int, content: bytes) -> Row | Defect:
    if len(content) > MAX_RECORD_BYTES:
        return too_long(number, line)
    try:
        value = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        return _broken_line(number, line, content, str(error))
    if isinstance(value, dict):
        return Row(number=number, line=line, pointer=None, value=value)
    return _not_an_object(number, line, None, value)


def _broken_line(number: int, line: int, content: bytes, message: str) -> Defect:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return not_utf8(number, line, f" at byte {error.start + 1} of the line")
    place = _PLACE.search(message)
    where = f" at column {place[1]}" if place else ""
    reason = f"The line is not valid JSON{where}: {_PLACE.sub('', message)}."
    return Defect(number, line, None, "broken_json", reason, "Write one whole JSON object on each line.")


def _not_an_object(number: int, line: int | None, pointer: str | None, value: object) -> Defect:
    kinds = {list: "an array", str: "a string", bool: "a truth value", type(None): "null"}
    reason = f"The record is {kinds.get(type(value), 'a number')}, not an object."
    remedy = 'Write each record as an object with named fields, e.g. {"prompt": "…", "completion": "…"}.'
    return Defect(number, line, pointer, "not_an_object", reason, remedy)


class _LineFeed:
    """A file as ijson reads it, one line at a time, so that an error can be traced to its line."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._at_line_start = True
        self.line = 0

    def read(self, size: int) -> bytes:
        content = self._file.readline(size) if size else b""
        if content:
            self.line += self._at_line_start
            self._at_line_start = content.endswith(b"\n")
        return content.removeprefix(BOM) if self.line == 1 else content


@contextmanager
def _broken_documents_refused(feed: _LineFeed) -> Iterator[None]:
    try:
        yield
    except ijson.JSONError as error:
        raise _broken_document(str(error), feed.line) from None


def _broken_document(message: str, line: int) -> UnreadableFile:
    if "UTF8" in message:
        return UnreadableFile("invalid_utf8", f"Line {line} is not UTF-8 text; save the file as UTF-8.")
    if "overflow" in message:
        text = f"Line {line} holds a number that is too large to read; write it in quotes."
    elif "premature EOF" in message:
        text = f"The JSON document breaks off at line {line}; upload the whole file."
    else:
        kind = message.partition("\n")[0].rpartition(": ")[2].rstrip(".")
        text = f"Line {line} is not valid JSON ({kind}); correct it and upload the file again."
    return UnreadableFile("broken_json", text)
