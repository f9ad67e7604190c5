import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from slmforge.blobs import BlobExists, BlobMissing, InvalidKey, LocalBlobStore, open_store
from slmforge.blobs.store import CHUNK_BYTES


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def store(root: Path) -> LocalBlobStore:
    return LocalBlobStore(root)


def read(store: LocalBlobStore, key: str, offset: int = 0) -> bytes:
    return b"".join(store.open(key, offset))


def on_disk(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def test_what_is_put_comes_back_with_its_digest_and_size(store: LocalBlobStore) -> None:
    ref = store.put("a/b", [b"one ", b"", b"two"])
    assert (ref.key, ref.size_bytes) == ("a/b", 7)
    assert ref.sha256 == hashlib.sha256(b"one two").hexdigest()
    assert read(store, "a/b") == b"one two"


def test_an_empty_blob_is_a_blob(store: LocalBlobStore) -> None:
    assert store.put("a", []).sha256 == hashlib.sha256(b"").hexdigest()
    assert read(store, "a") == b""
    assert store.stat("a") is not None


def test_reading_from_an_offset_gives_the_rest(store: LocalBlobStore) -> None:
    body = bytes(range(256)) * (CHUNK_BYTES // 128)
    store.put("a", [body])
    for offset in (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, len(body), len(body) + 5):
        assert read(store, "a", offset) == body[offset:]


def test_a_blob_is_read_in_chunks(store: LocalBlobStore) -> None:
    store.put("a", [b"x" * (2 * CHUNK_BYTES + 1)])
    assert [len(chunk) for chunk in store.open("a")] == [CHUNK_BYTES, CHUNK_BYTES, 1]


def test_the_last_put_wins(store: LocalBlobStore) -> None:
    store.put("a", [b"first, and longer"])
    store.put("a", [b"second"])
    assert read(store, "a") == b"second"


def test_a_reader_keeps_what_it_opened_when_the_blob_is_replaced_or_deleted(store: LocalBlobStore) -> None:
    store.put("a", [b"first"])
    replaced = store.open("a")
    store.put("a", [b"second"])
    deleted = store.open("a")
    store.delete("a")
    assert (b"".join(replaced), b"".join(deleted)) == (b"first", b"second")


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_writer_that_raises_leaves_nothing(store: LocalBlobStore, root: Path, overwrite: bool) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        assert list(store.list("folder")) == [], "unfinished bytes were listed"
        assert store.stat("folder/a") is None
        raise OSError("the client went away")

    with pytest.raises(OSError, match="went away"):
        store.put("folder/a", chunks(), overwrite=overwrite)
    assert on_disk(root) == []


def test_a_writer_that_raises_leaves_the_former_bytes(store: LocalBlobStore, root: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise OSError("the client went away")

    store.put("folder/a", [b"whole"])
    with pytest.raises(OSError, match="went away"):
        store.put("folder/a", chunks())
    assert read(store, "folder/a") == b"whole"
    assert on_disk(root) == ["folder", "folder/a"]


def test_a_taken_key_is_refused_when_overwriting_is_off(store: LocalBlobStore, root: Path) -> None:
    store.put("a", [b"mine"], overwrite=False)
    with pytest.raises(BlobExists, match="a"):
        store.put("a", [b"yours"], overwrite=False)
    assert read(store, "a") == b"mine"
    assert on_disk(root) == ["a"]


def test_a_refused_put_leaves_no_folder(store: LocalBlobStore, root: Path) -> None:
    store.put("a", [b"x"])
    with pytest.raises(OSError, match="a"):
        store.put("a/b", [b"x"])
    assert on_disk(root) == ["a"]


def test_of_writers_that_race_for_a_key_exactly_one_wins(store: LocalBlobStore) -> None:
    writers = 4
    barrier = threading.Barrier(writers, timeout=20)

    def put(key: str, body: bytes) -> bytes | None:
        barrier.wait()
        try:
            store.put(key, [body], overwrite=False)
        except BlobExists:
            return None
        return body

    with ThreadPoolExecutor(writers) as pool:
        for round_ in range(25):
            key = f"race/{round_}"
            bodies = [f"writer {n}".encode() for n in range(writers)]
            won = [body for body in pool.map(put, [key] * writers, bodies) if body]
            assert won == [read(store, key)]


def test_a_put_survives_a_delete_next_door(store: LocalBlobStore) -> None:
    """Deleting the last blob of a folder removes the folder: perhaps the one that a put has just made sure of."""
    rounds, barrier = 300, threading.Barrier(2, timeout=20)

    def put() -> None:
        for n in range(rounds):
            barrier.wait()
            store.put(f"a/b/put-{n}", [b"x"])
            assert store.stat(f"a/b/put-{n}")
            store.delete(f"a/b/put-{n}")

    def put_and_delete() -> None:
        for n in range(rounds):
            store.put(f"a/b/next-{n}", [b"x"])
            barrier.wait()
            store.delete(f"a/b/next-{n}")

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(put), pool.submit(put_and_delete)]:
            done.result()
    assert list(store.list("a")) == []


def test_a_put_whose_folder_is_pruned_at_the_worst_moment_makes_it_again(
    store: LocalBlobStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir
    pruned: list[Path] = []

    def mkdir_then_lose_it(path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        mkdir(path, mode, parents, exist_ok)
        if path.name == "folder" and len(pruned) < 3:
            pruned.append(path)
            path.rmdir()

    monkeypatch.setattr(Path, "mkdir", mkdir_then_lose_it)
    store.put("folder/a", [b"x"])
    assert len(pruned) == 3
    assert on_disk(root) == ["folder", "folder/a"]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "/etc/passwd",
        "a/",
        "a//b",
        "..",
        "a/../b",
        "a/./b",
        ".hidden",
        "a/.put-x",
        "a\0b",
        "a\\b",
        "a b",
        "a\n",
        "ä",
        "a/x\u0301",
        "-rf",
        "C:a",
        "x" * 201,
    ],
)
def test_a_key_that_is_not_plain_segments_is_refused(store: LocalBlobStore, root: Path, key: str) -> None:
    with pytest.raises(InvalidKey, match="storage key"):
        store.put(key, [b"x"])
    for ask in (store.open, store.stat, store.delete):
        with pytest.raises(InvalidKey):
            ask(key)
    with pytest.raises(InvalidKey):
        list(store.list(key))
    assert on_disk(root) == []


def test_a_missing_blob_is_told_when_it_is_opened(store: LocalBlobStore) -> None:
    with pytest.raises(BlobMissing, match="a/b"):
        store.open("a/b")
    assert store.stat("a/b") is None


def test_a_folder_and_what_is_below_a_blob_are_no_blobs(store: LocalBlobStore) -> None:
    store.put("a/b", [b"x"])
    for key in ("a", "a/b/c"):
        assert store.stat(key) is None
        with pytest.raises(BlobMissing):
            store.open(key)
        store.delete(key)
    assert read(store, "a/b") == b"x"


def test_stat_tells_size_and_time(store: LocalBlobStore) -> None:
    store.put("a", [b"12345"])
    found = store.stat("a")
    assert found is not None
    assert found.size_bytes == 5
    assert abs(datetime.now(UTC) - found.modified_at) < timedelta(minutes=1)


def test_a_list_is_in_order_and_strictly_after(store: LocalBlobStore) -> None:
    for key in ("e/00000010", "e/00000002", "e/00000001", "e/sub/1", "e/sub-1", "f/1", "e.txt"):
        store.put(key, [b""])
    everything = ["e/00000001", "e/00000002", "e/00000010", "e/sub-1", "e/sub/1"]
    assert list(store.list("e")) == everything
    assert list(store.list("e", after="e/00000001")) == everything[1:]
    assert list(store.list("e", after="e/00000001x")) == everything[1:], "what it is after need not exist"
    assert list(store.list("e", after="e/sub/1")) == []
    assert list(store.list("missing")) == []


def test_a_delete_takes_the_folders_it_leaves_empty_and_no_others(store: LocalBlobStore, root: Path) -> None:
    store.put("a/b/c", [b""])
    store.put("a/d", [b""])
    store.delete("a/b/c")
    assert on_disk(root) == ["a", "a/d"]
    store.delete("a/d")
    assert on_disk(root) == []
    assert root.is_dir()


def test_deleting_what_is_not_there_is_no_error(store: LocalBlobStore) -> None:
    store.delete("a")
    store.delete("a/b/c")


def test_a_store_is_found_again_by_its_url(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path / "a folder, 100% ours")
    store.put("a", [b"x"])
    for url in (store.url, str(tmp_path / "a folder, 100% ours")):
        assert b"".join(open_store(url).open("a")) == b"x"


def test_a_store_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match="s3://"):
        open_store("s3://bucket/prefix")
