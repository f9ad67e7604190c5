import csv
import io
import json
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmforge.contract.spec import Format
from slmforge.data import csv_rows, formats
from slmforge.data.conversations import Defect, Row
from slmforge.data.rows import UnreadableFile, detect_format, json_splits, read_rows

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


def items(content: bytes, format_: Format, split: str | None = None) -> list[Row | Defect]:
    return list(read_rows(io.BytesIO(content), format_, split))


def values(content: bytes, format_: Format, split: str | None = None) -> list[dict[str, Any]]:
    found = items(content, format_, split)
    assert all(isinstance(item, Row) for item in found), found
    return [item.value for item in found if isinstance(item, Row)]


def only_defect(found: list[Row | Defect]) -> Defect:
    (defect,) = (item for item in found if isinstance(item, Defect))
    return defect


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"text,label\nhello,a\n", "csv"),
        (b'"text","label"\n', "csv"),
        (b"\xef\xbb\xbftext,label\n", "csv"),
        (b'[{"a": 1}]', "json"),
        (b'\xef\xbb\xbf \n [\n  {\n "a": 1}]', "json"),
        (b'{"train": [{"a": 1}], "test": []}', "json"),
        (b'{\n  "train": [\n    {"a": 1}\n  ]\n}', "json"),
        (b'{"train": [\n{"a": 1},\n{"a": 2}\n]}', "json"),
        (b'{"rows": [{"a": 1}, {"a": 2}]}', "json"),
        (b'{"a": 1}', "jsonl"),
        (b'\n\n{"a": 1}\n{"a": 2}\n', "jsonl"),
        (b'{"messages": [{"role": "user", "content": "hi"}]}\n', "jsonl"),
        (b'{"train": [1]}\n{"train": [2]}\n', "jsonl"),
        (b'{"a": \n{"a": 2}\n{"a": 3}\n', "jsonl"),
    ],
)
def test_the_format_is_told_from_the_content(content: bytes, expected: Format) -> None:
    file = io.BytesIO(content)
    assert detect_format(file) == expected
    assert file.tell() == 0


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"", "empty_file", "empty"),
        (b"\xef\xbb\xbf \n\n", "empty_file", "empty"),
        (b"%PDF-1.7\n", "unsupported_format", "PDF"),
        (b"PAR1\0\0", "unsupported_format", "Parquet"),
        (b"\x1f\x8b\x08\0", "unsupported_format", "decompress"),
        ("text,label\n".encode("utf-16"), "unsupported_format", "UTF-8"),
        (b"text,la\0bel\n", "unsupported_format", "not text"),
    ],
)
def test_a_file_that_is_no_text_is_refused_with_its_remedy(content: bytes, code: str, words: str) -> None:
    with pytest.raises(UnreadableFile, match=words) as caught:
        detect_format(io.BytesIO(content))
    assert caught.value.code == code


def test_jsonl_rows_carry_their_line_and_blank_lines_do_not_count() -> None:
    found = items(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": 2}', "jsonl")
    assert [(item.number, item.line) for item in found] == [(0, 1), (1, 4)]


@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_jsonl_gives_back_every_text_even_with_exotic_line_separators(texts: list[str]) -> None:
    content = "".join(json.dumps({"a": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    assert values(content, "jsonl") == [{"a": text} for text in texts]


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (b'{"a": NaN}', "broken_json", "column 7"),
        (b'{"a": 1', "broken_json", "EOF"),
        (b'{"a": 1} x', "broken_json", "trailing"),
        (b"[" * 3000, "broken_json", "recursion"),
        (b'{"a": "\xff"}', "invalid_utf8", "byte 8"),
        (b"[1]", "not_an_object", "an array"),
        (b"null", "not_an_object", "null"),
        (b"3", "not_an_object", "a number"),
    ],
)
def test_a_broken_jsonl_line_is_a_defect_and_its_neighbours_are_read(line: bytes, code: str, words: str) -> None:
    found = items(b'{"a": 1}\n' + line + b'\n{"a": 3}\n', "jsonl")
    defect = only_defect(found)
    assert (defect.number, defect.line, defect.code) == (1, 2, code)
    assert words in defect.reason
    assert [item.number for item in found] == [0, 1, 2]


@pytest.mark.parametrize("format_", ["jsonl", "csv"])
def test_a_line_over_the_limit_is_a_defect_that_is_never_held_whole(
    monkeypatch: pytest.MonkeyPatch, format_: Format
) -> None:
    for module in (formats, csv_rows):
        monkeypatch.setattr(module, "MAX_RECORD_BYTES", 100)
    monkeypatch.setattr("slmforge.data.json_rows.MAX_RECORD_BYTES", 100)
    content = {
        "jsonl": b'{"a": 1}\n{"a": "' + b"x" * 1000 + b'"}\n{"a": 3}\n',
        "csv": b"a,b\n" + b"x" * 1000 + b",y\n1,2\n",
    }[format_]
    file = LargestRead(content)
    found = list(read_rows(file, format_, None))
    assert only_defect(found).code == "record_too_long"
    assert isinstance(found[-1], Row)
    assert file.largest <= 101


class LargestRead(io.BytesIO):
    largest = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        content = super().readline(size)
        self.largest = max(self.largest, len(content))
        return content


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_read_however_it_is_printed(indent: int | None) -> None:
    rows = [{"a": "é\n", "b": [1, 2.5, None, {"c": True}]}, {"a": ""}]
    content = json.dumps(rows, indent=indent).encode()
    assert values(content, "json") == rows
    assert values(b"\xef\xbb\xbf" + content, "json") == rows


def test_a_json_row_is_placed_by_its_pointer() -> None:
    found = items(b'[{"a": 1}, 7]', "json")
    assert [(item.line, item.pointer) for item in found] == [(None, "/0"), (None, "/1")]
    assert only_defect(found).code == "not_an_object"
    (row,) = items(b'{"a/b~c": [{"x": 1}]}', "json", "a/b~c")
    assert row.pointer == "/a~1b~0c/0"


def test_one_split_of_a_json_object_is_read_and_the_others_are_not() -> None:
    content = b'{"version": {"train": [9]}, "train": [{"a": 1}, {"a": [{}]}], "test": [{"a": 3}], "none": []}'
    assert json_splits(io.BytesIO(content)) == {"train": 2, "test": 1, "none": 0}
    assert values(content, "json", "test") == [{"a": 3}]
    assert values(content, "json", "train") == [{"a": 1}, {"a": [{}]}]


def test_an_array_has_no_splits() -> None:
    assert json_splits(io.BytesIO(b'[{"train": []}]')) is None


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b'[\n{"a": 1},\n{"a" 2}\n]', "broken_json", "Line 3"),
        (b'[\n{"a": 1},\n]\n', "broken_json", "Line 3"),
        (b'[\n{"a": 1}\n] x\n', "broken_json", "Line 3"),
        (b'[\n{"a": NaN}]', "broken_json", "Line 2"),
        (b'[\n{"a": 99999999999999999999}]', "broken_json", "Line 2 .* in quotes"),
        (b'[\n{"a": 1},\n{"a": ', "broken_json", "breaks off at line 3"),
        (b'[\n{"a": "\xff"}\n]', "invalid_utf8", "Line 2"),
    ],
)
def test_a_broken_json_document_is_refused_with_its_line(content: bytes, code: str, words: str) -> None:
    with pytest.raises(UnreadableFile, match=words) as caught:
        items(content, "json")
    assert caught.value.code == code


def test_csv_rows_carry_the_line_on_which_they_begin() -> None:
    content = b'\xef\xbb\xbftext , label\r\n"one\ntwo, ""three""",a\r\n\r\nfour,b'
    found = items(content, "csv")
    assert [(item.number, item.line) for item in found] == [(0, 2), (1, 5)]
    assert values(content, "csv") == [{"text": 'one\ntwo, "three"', "label": "a"}, {"text": "four", "label": "b"}]


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=5))
def test_csv_gives_back_what_a_csv_writer_wrote(rows: list[tuple[str, str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(["a", "b"])
    writer.writerows(rows)
    assert values(text.getvalue().encode(), "csv") == [{"a": a, "b": b} for a, b in rows]


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (b"one", "ragged_row", "1 fields where the header names 2"),
        (b"one,two,three", "ragged_row", "3 fields"),
        (b'"one" more,two', "broken_csv", "followed by"),
        (b"on\re,two", "broken_csv", "carriage return"),
        (b"\xff,two", "invalid_utf8", "UTF-8"),
    ],
)
def test_a_broken_csv_record_is_a_defect_and_its_neighbours_are_read(line: bytes, code: str, words: str) -> None:
    found = items(b"a,b\n1,2\n" + line + b"\n3,4\n", "csv")
    defect = only_defect(found)
    assert (defect.number, defect.line, defect.code) == (1, 3, code)
    assert words in defect.reason
    assert isinstance(found[2], Row)
    assert found[2].value == {"a": "3", "b": "4"}


@pytest.mark.parametrize("ending", [b"", b'"8, or more",9\n'])
def test_an_unclosed_quote_costs_its_own_line_and_no_other(ending: bytes) -> None:
    found = items(b'a,b\n1,2\n"3,4\n5,6\n6,7\n' + ending, "csv")
    defect = only_defect(found)
    assert (defect.line, defect.code) == (3, "broken_csv")
    lines = [item.line for item in found]
    assert lines == ([2, 3, 4, 5, 6] if ending else [2, 3, 4, 5])


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"text,label,text\n", "broken_header", "'text' twice"),
        (b"text,,label\n", "broken_header", "column 2 without a name"),
        (b'"text,label\nhello,a\n', "broken_header", "Line 1"),
        (b"text\tlabel\nhello\ta\n", "unsupported_delimiter", "commas"),
        (b"\ntext;label\nhello;a\n", "unsupported_delimiter", "Line 2"),
        (b"te\xffxt,label\n", "invalid_utf8", "Line 1"),
        (b"\n\n", "empty_file", "empty"),
    ],
)
def test_a_csv_header_that_cannot_name_columns_is_refused(content: bytes, code: str, words: str) -> None:
    with pytest.raises(UnreadableFile, match=words) as caught:
        items(content, "csv")
    assert caught.value.code == code


@pytest.mark.parametrize(("format_", "line"), [("csv", b"1,2\n"), ("jsonl", b'{"a": 1}\n'), ("json", b'{"a": 1},\n')])
def test_reading_a_row_does_not_read_the_whole_file(format_: Format, line: bytes) -> None:
    begin = {"csv": b"a,b\n", "jsonl": b"", "json": b"[\n"}[format_]
    file: BinaryIO = io.BytesIO(begin + line * 100_000)
    assert isinstance(next(read_rows(file, format_, None)), Row)
    assert file.tell() < 10_000
