"""CSV rows: comma-separated records under a header, quoted the strict way.

A quote that is never closed would swallow the rows after it. Here it costs its own line only: reading goes on at the
line after it. Called by `rows`.
"""

import csv
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

from slmforge.data.conversations import Defect, Row
from slmforge.data.formats import MAX_RECORD_BYTES, UnreadableFile, not_utf8, numbered_lines, too_long

csv.field_size_limit(MAX_RECORD_BYTES)  # the default of 128 KiB refuses long documents

_QUOTING_REMEDY = 'Write a quote inside a quoted field twice ("") and close every field that opens with a quote.'


def read_csv(file: BinaryIO) -> Iterator[Row | Defect]:
    """Yield the records below the header. Raises `UnreadableFile` for a header that cannot name columns."""
    lines = _RecordLines(file)
    reader = csv.reader(lines, strict=True)
    header = _read_header(lines, reader)
    number = 0
    while True:
        lines.begin_record()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield _broken(number, lines, str(error))
            lines.go_back_to_second_line()
        else:
            if not fields:
                continue
            yield _row(number, lines, header, fields)
        number += 1


class _RecordLines:
    """Feeds `csv.reader` and remembers the lines of the record in hand, so that a broken one can be left early."""

    def __init__(self, file: BinaryIO) -> None:
        self._source = numbered_lines(file)
        self._again: deque[tuple[int, bytes]] = deque()
        self._record: list[tuple[int, bytes]] = []
        self.undecodable = False

    @property
    def first_line(self) -> int:
        return self._record[0][0]

    @property
    def too_long(self) -> bool:
        return len(self._record[0][1]) > MAX_RECORD_BYTES

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line, content = self._again.popleft() if self._again else next(self._source)
        self._record.append((line, content))
        try:
            return content.decode()
        except UnicodeDecodeError:
            self.undecodable = True
            return content.decode(errors="replace")

    def begin_record(self) -> None:
        self._record.clear()
        self.undecodable = False

    def go_back_to_second_line(self) -> None:
        self._again.extendleft(reversed(self._record[1:]))


def _read_header(lines: _RecordLines, reader: Iterator[list[str]]) -> list[str]:
    fields: list[str] = []
    try:
        while not fields:
            lines.begin_record()
            fields = next(reader)
    except StopIteration:
        raise UnreadableFile("empty_file", "The file is empty; upload one with a header line and rows.") from None
    except csv.Error as error:
        message = f"Line {lines.first_line} cannot be read as a CSV header ({error}). {_QUOTING_REMEDY}"
        raise UnreadableFile("broken_header", message) from None
    if lines.undecodable:
        message = f"Line {lines.first_line}, the header, is not UTF-8 text; save the file as UTF-8."
        raise UnreadableFile("invalid_utf8", message)
    return _column_names(lines.first_line, fields)


def _column_names(line: int, fields: list[str]) -> list[str]:
    names = [field.strip() for field in fields]
    if len(names) == 1 and (mark := next((mark for mark in "\t;|" if mark in names[0]), None)):
        message = f"Line {line} seems to separate its columns by {mark!r}; save the file with commas between them."
        raise UnreadableFile("unsupported_delimiter", message)
    if "" in names:
        message = f"Line {line}, the header, leaves column {names.index('') + 1} without a name; name every column."
        raise UnreadableFile("broken_header", message)
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        message = f"Line {line}, the header, names the column {repeated!r} twice; give each column its own name."
        raise UnreadableFile("broken_header", message)
    return names


def _row(number: int, lines: _RecordLines, header: list[str], fields: list[str]) -> Row | Defect:
    line = lines.first_line
    if lines.undecodable:
        return not_utf8(number, line)
    if lines.too_long:
        return too_long(number, line)
    if len(fields) != len(header):
        reason = f"The row has {len(fields)} fields where the header names {len(header)} columns."
        return Defect(number, line, None, "ragged_row", reason, "Put quotes round a text that contains a comma.")
    return Row(number=number, line=line, pointer=None, value=dict(zip(header, fields, strict=True)))


def _broken(number: int, lines: _RecordLines, message: str) -> Defect:
    line = lines.first_line
    if lines.too_long:
        return too_long(number, line)
    if "unexpected end of data" in message or "field limit" in message:
        reason = "A quote opens a field that is never closed."
    elif "new-line character" in message:
        reason = "The record holds a bare carriage return outside quotes."
        return Defect(number, line, None, "broken_csv", reason, "End lines with a line feed, or quote the field.")
    else:
        reason = "A quoted field of this record is followed by something other than a comma or the end of the line."
    return Defect(number, line, None, "broken_csv", reason, _QUOTING_REMEDY)
