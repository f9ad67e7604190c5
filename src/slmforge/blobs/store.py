"""Blobs: named, immutable runs of bytes behind one small interface.

A key is a relative path of plain segments (`datasets/0198.../data`). Both planes use this module;
neither ever builds a file-system path from a user's text.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISDIR
from typing import Protocol
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict

CHUNK_BYTES = 1 << 20
MKDIR_TRIES = 100
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


class InvalidKey(ValueError):
    """The key is not a relative path of plain segments."""


class BlobMissing(LookupError):
    """No blob is stored under this key."""


class BlobExists(Exception):
    """A blob is already stored under this key and `overwrite` was off."""


class BlobRef(BaseModel):
    """A stored blob, content-addressed: the bytes under `key` hash to `sha256`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    sha256: str
    size_bytes: int


class BlobStat(BaseModel):
    """What a store knows of a blob without reading it."""

    model_config = ConfigDict(frozen=True)

    size_bytes: int
    modified_at: datetime


class BlobStore(Protocol):
    """The whole of what we ask of a place for bytes."""

    url: str

    def put(self, key: str, chunks: Iterable[bytes], *, overwrite: bool = True) -> BlobRef:
        """Store the chunks under `key`, visible whole or not at all.

        Raises `BlobExists` when `overwrite` is off and the key is taken: of several writers exactly one wins.
        """
        ...

    def open(self, key: str, offset: int = 0) -> Iterator[bytes]:
        """Yield the bytes from `offset` on. Raises `BlobMissing` at once, not at the first chunk."""
        ...

    def stat(self, key: str) -> BlobStat | None:
        """Size and time of the blob, or None when there is none."""
        ...

    def list(self, prefix: str, after: str | None = None) -> Iterator[str]:
        """Yield the keys below the folder `prefix` in order, those greater than `after`."""
        ...

    def delete(self, key: str) -> None:
        """Remove the blob. A missing one is not an error."""
        ...


class LocalBlobStore:
    """Blobs as files below one folder: written beside, synced to disk, then renamed into place."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._root.mkdir(parents=True, exist_ok=True)
        self.url = self._root.as_uri()

    def put(self, key: str, chunks: Iterable[bytes], *, overwrite: bool = True) -> BlobRef:
        path = self._path(key)
        digest, size = hashlib.sha256(), 0
        handle, temporary = _new_file(path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                file.flush()
                os.fsync(file.fileno())
            if overwrite:
                os.replace(temporary, path)
            else:
                _link(temporary, path, key)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            self._prune(path.parent)
        self._sync_folders(path.parent)
        return BlobRef(key=key, sha256=digest.hexdigest(), size_bytes=size)

    def open(self, key: str, offset: int = 0) -> Iterator[bytes]:
        try:
            file = self._path(key).open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise BlobMissing(key) from None

        def chunks() -> Iterator[bytes]:
            with file:
                file.seek(offset)
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk

        return chunks()

    def stat(self, key: str) -> BlobStat | None:
        try:
            found = self._path(key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if S_ISDIR(found.st_mode):
            return None
        return BlobStat(size_bytes=found.st_size, modified_at=datetime.fromtimestamp(found.st_mtime, UTC))

    def list(self, prefix: str, after: str | None = None) -> Iterator[str]:
        keys = sorted(
            Path(folder, name).relative_to(self._root).as_posix()
            for folder, _, names in os.walk(self._path(prefix))  # passes over a folder that goes away meanwhile
            for name in names
            if not name.startswith(".")
        )
        yield from (key for key in keys if after is None or key > after)

    def delete(self, key: str) -> None:
        path = self._path(key)
        if self.stat(key) is not None:
            path.unlink(missing_ok=True)
        self._prune(path.parent)

    def _prune(self, folder: Path) -> None:
        """Remove `folder` and those above it as far as they are empty."""
        for empty in (folder, *folder.parents):
            if empty == self._root:
                break
            try:
                empty.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                break

    def _sync_folders(self, folder: Path) -> None:
        """Make the names on the way to a new blob outlast a power cut: each may have been new itself."""
        for each in (folder, *folder.parents):
            with suppress(FileNotFoundError):  # the blob has been deleted already
                _sync_folder(each)
            if each == self._root:
                break

    def _path(self, key: str) -> Path:
        segments = key.split("/")
        if not all(_SEGMENT.fullmatch(segment) for segment in segments):
            raise InvalidKey(f"{key!r} is not a storage key: plain segments joined by '/' are")
        return self._root.joinpath(*segments)


def open_store(url: str) -> BlobStore:
    """The store at `url`: `file:///folder` or a plain path. Raises `ValueError` for any other scheme."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return LocalBlobStore(Path(unquote(parts.path)))
    if not parts.scheme:
        return LocalBlobStore(Path(url))
    raise ValueError(f"storage at {parts.scheme}:// is not supported; use a folder or a file:// URL")


def _new_file(folder: Path) -> tuple[int, str]:
    """Open a new file in `folder`. A `delete` next door may prune the folder just as we make it: then again."""
    for _ in range(MKDIR_TRIES - 1):
        with suppress(FileNotFoundError, FileExistsError):
            return _try_new_file(folder)
    return _try_new_file(folder)


def _try_new_file(folder: Path) -> tuple[int, str]:
    folder.mkdir(parents=True, exist_ok=True)
    # A leading dot keeps the unfinished file out of `list`: no key segment may start with one.
    return tempfile.mkstemp(prefix=".put-", dir=folder)


def _link(temporary: str, path: Path, key: str) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise BlobExists(key) from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
