import io
import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmforge.blobs import BlobMissing, LocalBlobStore
from slmforge.contract.spec import DatasetRef
from slmforge.data.conversations import Conversation, Defect
from slmforge.data.formats import UnreadableFile
from slmforge.data.reading import Purpose, Scan, read_dataset, scan, task_of

PIECES = [
    *(bytes([byte]) for byte in b'"\r\n,{}[]:\\\xff'),
    *(b"text", b"label", b'{"text": "a"}', b'"label": 1', b'{"messages": [{"role": "user", "content": "a"},'),
    *(b'{"role": "assistant", "content": "b"}]}', b'"from"', b'{"train": [', b"null", b"-1e999", b"\xef\xbb\xbf"),
]
TICKETS = b"text,category\nwhere is my parcel,delivery\n,delivery\nrefund please,refund\n"


def scanned(content: bytes, purpose: Purpose = "training", **more: Any) -> Scan:
    return scan(io.BytesIO(content), purpose=purpose, **more)


def jsonl(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_a_scan_settles_how_a_file_is_read_and_counts_what_is_usable() -> None:
    found = scanned(TICKETS)
    assert (found.format, found.layout, found.columns) == (
        "csv",
        "classification",
        {"text": "text", "label": "category"},
    )
    assert (found.row_count, found.invalid_count, found.split, found.splits) == (2, 1, None, {})
    assert [(defect.number, defect.line, defect.code) for defect in found.defects] == [(1, 3, "empty_prompt")]


def test_only_the_first_defects_are_kept_but_all_are_counted() -> None:
    content = jsonl({"prompt": "a", "completion": "b"}, *[{"prompt": "", "completion": "b"}] * 7)
    found = scanned(content, max_defects=3)
    assert (found.row_count, found.invalid_count) == (1, 7)
    assert [defect.line for defect in found.defects] == [2, 3, 4]


def test_a_mapping_is_followed() -> None:
    found = scanned(b"body,kind\na,b\n", mapping={"text": "body", "label": "kind"})
    assert (found.layout, found.row_count) == ("classification", 1)


@pytest.mark.parametrize(
    ("splits", "purpose", "chosen"),
    [
        (("train", "test"), "training", "train"),
        (("train", "test"), "evaluation", "test"),
        (("train", "validation", "test"), "evaluation", "test"),
        (("Train", "dev"), "evaluation", "dev"),
        (("Train", "dev"), "training", "Train"),
        (("data",), "training", "data"),
        (("train",), "evaluation", "train"),
    ],
)
def test_the_purpose_chooses_the_split(splits: tuple[str, ...], purpose: Purpose, chosen: str) -> None:
    found = scanned(json.dumps({name: [{"text": name, "label": "x"}] for name in splits}).encode(), purpose)
    assert found.split == chosen
    assert found.splits == dict.fromkeys(splits, 1)


def test_an_empty_split_is_not_chosen() -> None:
    assert scanned(b'{"train": [], "data": [{"text": "a"}]}').split == "data"


def test_splits_of_unclear_purpose_are_refused_by_name() -> None:
    with pytest.raises(UnreadableFile, match=r"'a' \(1 rows\), 'b' \(1 rows\).*call it 'train'"):
        scanned(b'{"a": [{"text": "a"}], "b": [{"text": "b"}]}')


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"text,label\n,a\nb,\n", "no_usable_rows", "line 2: Column 'text' is empty"),
        (b'{"a": NaN}\n', "no_usable_rows", "line 1: .* at column 7"),
        (b'[{"prompt": "", "completion": "a"}]', "no_usable_rows", "record /0"),
        (b"text,label\n", "no_rows", "no rows"),
        (b"[]", "no_rows", "no rows"),
        (b'{"train": []}', "no_such_split", r"'train' \(0 rows\)"),
        (b'{\n  "prompt": "a",\n  "completion": "b"\n}', "no_rows", "array of objects"),
        (b"a,b\n1,2\n", "unknown_layout", "'a', 'b'"),
    ],
)
def test_a_file_without_a_usable_row_is_refused_with_the_first_reason(content: bytes, code: str, words: str) -> None:
    with pytest.raises(UnreadableFile, match=words) as caught:
        scanned(content)
    assert caught.value.code == code


def test_many_broken_lines_before_the_first_good_one_do_not_hide_it() -> None:
    found = scanned(b'{"text\n' * 1500 + jsonl({"text": "a"}), max_defects=2)
    assert (found.layout, found.row_count, found.invalid_count) == ("text", 1, 1500)


def test_an_upload_that_was_spooled_is_scanned() -> None:
    with tempfile.SpooledTemporaryFile(max_size=10) as file:
        file.write(TICKETS)
        assert scan(cast("BinaryIO", file), purpose="training").row_count == 2


@given(st.lists(st.sampled_from(PIECES), max_size=20))
def test_whatever_the_bytes_are_they_are_read_or_refused(pieces: list[bytes]) -> None:
    with suppress(UnreadableFile):
        assert scanned(b"".join(pieces)).row_count > 0


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    "content",
    [
        TICKETS,
        jsonl({"text": "a", "label": 1}, {"text": "", "label": 1}, {"text": "b", "label": 2}),
        json.dumps({"train": [{"text": "a", "label": 1}, 7, {"text": "b", "label": 2}], "test": []}).encode(),
    ],
)
def test_a_stored_dataset_reads_as_it_was_scanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, chunk_bytes: int
) -> None:
    monkeypatch.setattr("slmforge.blobs.store.CHUNK_BYTES", chunk_bytes)
    store = LocalBlobStore(tmp_path)
    found = scanned(content)
    ref = DatasetRef(
        blob=store.put("datasets/1/data", [content]),
        format=found.format,
        layout=found.layout,
        columns=found.columns,
        split=found.split,
    )
    items = list(read_dataset(store, ref))
    assert [type(item) for item in items] == [Conversation, Defect, Conversation]
    assert [item.number for item in items] == [0, 1, 2]
    assert tuple(item for item in items if isinstance(item, Defect)) == found.defects


def test_a_dataset_whose_bytes_are_gone_says_so_at_once(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    blob = store.put("datasets/1/data", [TICKETS])
    store.delete(blob.key)
    with pytest.raises(BlobMissing):
        read_dataset(store, DatasetRef(blob=blob, format="csv", layout="text", columns={"text": "text"}, split=None))


def test_the_layout_says_what_is_learnt() -> None:
    assert task_of("classification") == "classification"
    assert task_of("text") == "language_modeling"
    assert {task_of("messages"), task_of("alpaca"), task_of("question_answer")} == {"generation"}
