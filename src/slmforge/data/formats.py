"""Formats: what kind of file the bytes are, told from their content, never from a name.

Holds also what the readers of all formats share: numbered lines in bounded memory, and the refusal of a whole file.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO

from pydantic_core import from_json

from slmforge.contract.spec import Format
from slmforge.data.conversations import Defect

BOM = b"\xef\xbb\xbf"
MAX_RECORD_BYTES = 16 << 20

_HEAD_BYTES = 1 << 20
# An object of splits begins with a list of rows; a single record may begin with a list too, but then of turns.
_FIRST_SPLIT = re.compile(
    rb'\{\s*"(?:(?:train|training|test|validation|valid|val|eval|evaluation|dev)"\s*:\s*\['
    rb'|[^"]*"\s*:\s*\[\s*\{\s*"(?!role"|content"|from"|value"))',
    re.IGNORECASE,
)
_OPEN_DOCUMENT = re.compile(rb'\{(?:\s*"[^"]*"\s*:\s*[\[{])?')
_OTHER_KINDS = {
    b"%PDF-": ("a PDF document", "export its data as CSV, JSON or JSONL"),
    b"PAR1": ("a Parquet file", "save it as CSV, JSON or JSONL"),
    b"\x1f\x8b": ("compressed with gzip", "decompress it"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "decompress it"),
    b"PK\x03\x04": ("a zip archive or a spreadsheet", "unpack it, or save the sheet as CSV"),
    b"\xff\xfe": ("UTF-16 text", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "save it as UTF-8"),
}


class UnreadableFile(ValueError):
    """The file as a whole cannot be used. `message` is a sentence with the place and the remedy."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def detect_format(file: BinaryIO) -> Format:
    """Tell CSV, JSON and JSONL apart and leave the file at its beginning.

    Raises `UnreadableFile` for an empty file and for one that is no text.
    """
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    for magic, (kind, remedy) in _OTHER_KINDS.items():
        if head.startswith(magic):
            raise UnreadableFile("unsupported_format", f"The file is {kind}; {remedy} and upload that.")
    if b"\0" in head:
        raise UnreadableFile("unsupported_format", "The file is not text; upload CSV, JSON or JSONL in UTF-8.")
    text = head.removeprefix(BOM).lstrip()
    if not text:
        raise UnreadableFile("empty_file", "The file is empty; upload one with at least one row.")
    if text.startswith(b"["):
        return "json"
    if text.startswith(b"{"):
        return _json_or_jsonl(text)
    return "csv"


def numbered_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, bytes with their newline), split at \\n only and without a byte order mark.

    Of a line longer than `MAX_RECORD_BYTES` one byte more than that is kept, enough to tell.
    """
    line = 0
    while content := file.readline(MAX_RECORD_BYTES + 1):
        line += 1
        rest = content
        while len(rest) > MAX_RECORD_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_RECORD_BYTES + 1)
        yield line, content.removeprefix(BOM) if line == 1 else content


def not_utf8(number: int, line: int, where: str = "") -> Defect:
    """The defect of a record whose bytes are no text; `where` narrows the place down."""
    reason = f"The text is not valid UTF-8{where}."
    return Defect(number, line, None, "invalid_utf8", reason, "Save the file as UTF-8 and upload it again.")


def too_long(number: int, line: int) -> Defect:
    """The defect of a record over `MAX_RECORD_BYTES`."""
    reason = f"The record is longer than {MAX_RECORD_BYTES >> 20} MiB."
    return Defect(number, line, None, "record_too_long", reason, "Split it into shorter records.")


def _json_or_jsonl(text: bytes) -> Format:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first, others = lines[0], lines[1:]
    if _is_object(first) and others:
        return "jsonl"
    if _FIRST_SPLIT.match(text) or _OPEN_DOCUMENT.fullmatch(first):
        return "json"
    # One broken line does not make a JSONL file a JSON document.
    return "jsonl" if not others or any(map(_is_object, others)) else "json"


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(from_json(line), dict)
    except ValueError:
        return False
