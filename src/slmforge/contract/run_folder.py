"""The run folder: the only thing the two planes share.

    runs/<run>/<attempt>/spec.json              written once by the control plane
    runs/<run>/<attempt>/events/00000001.jsonl  immutable numbered segments, written by the run
    runs/<run>/<attempt>/artifacts/…            what the run made

The first segment is created only if absent, so of two processes started for one attempt exactly one gets to work.
"""

import hashlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from slmforge.blobs import BlobExists, BlobRef, BlobStore
from slmforge.blobs.store import CHUNK_BYTES
from slmforge.contract.events import (
    Cancelled,
    Failed,
    Finished,
    KnownEvent,
    Measured,
    Progressed,
    Record,
    decode,
    encode,
)
from slmforge.contract.spec import RUN_SPEC, ArtifactRef, RunSpec

PUBLISH_EVERY_SECONDS = 1.0
LAST_WORD_TRIES = 8


class AlreadyClaimed(Exception):
    """Another process has begun this attempt; this one must leave without a trace."""


class IntegrityError(Exception):
    """Stored bytes are not the ones that were referred to."""


class UnreadableEvents(ValueError):
    """A published segment does not hold events: its writer is broken, or newer than its reader."""


class RunFolder:
    """One attempt of one run, inside a blob store."""

    def __init__(self, store: BlobStore, run: str, attempt: int) -> None:
        self.store = store
        self.path = f"runs/{run}/{attempt}"

    @property
    def url(self) -> str:
        return f"{self.store.url}/{self.path}"

    def write_spec(self, spec: RunSpec) -> None:
        self.store.put(f"{self.path}/spec.json", [spec.model_dump_json(indent=2).encode()])

    def read_spec(self) -> RunSpec:
        """Raises `BlobMissing` without a spec and `pydantic.ValidationError` for one that does not fit."""
        return RUN_SPEC.validate_json(b"".join(self.store.open(f"{self.path}/spec.json")))

    def segments_after(self, cursor: int) -> Iterator[tuple[int, list[Record]]]:
        """Yield (segment number, its records) for every published segment after number `cursor`, without gaps.

        Raises `UnreadableEvents`.
        """
        after = f"{self.path}/events/{cursor:08d}.jsonl"
        for key in self.store.list(f"{self.path}/events", after=after):
            number = int(key.rsplit("/", 1)[1].removesuffix(".jsonl"))
            if number != cursor + 1:
                return
            cursor = number
            lines = b"".join(self.store.open(key)).splitlines()
            try:
                records = [decode(line) for line in lines]
            except ValueError as error:
                raise UnreadableEvents(f"The run published events that cannot be read ({key}).") from error
            yield number, records

    def publish_folder(self, name: str, folder: Path) -> ArtifactRef:
        """Upload every file below `folder` as the artefact `name`."""
        prefix = f"{self.path}/artifacts/{name}"
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return ArtifactRef(
            prefix=prefix,
            files=tuple(self.store.put(f"{prefix}/{f.relative_to(folder).as_posix()}", read_file(f)) for f in files),
        )


def fetch_artifact(store: BlobStore, artifact: ArtifactRef, folder: Path) -> Path:
    """Download an artefact into `folder`, checking every digest. Raises `IntegrityError`, `BlobMissing`."""
    for ref in artifact.files:
        name = PurePosixPath(ref.key.removeprefix(artifact.prefix + "/"))
        if name.is_absolute() or ".." in name.parts or f"{artifact.prefix}/{name}" != ref.key:
            raise IntegrityError(f"{ref.key} does not lie in {artifact.prefix}; nobody can have published it so")
        fetch_blob(store, ref, folder / name)
    return folder


def fetch_blob(store: BlobStore, ref: BlobRef, path: Path) -> Path:
    """Download one blob to `path`, checking its digest. Raises `IntegrityError`, `BlobMissing`."""
    chunks = store.open(ref.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != ref.sha256:
        path.unlink()
        raise IntegrityError(f"the stored bytes of {ref.key} are not those that were recorded; upload or train again")
    return path


def read_file(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file in chunks, as `BlobStore.put` takes them."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


class EventWriter:
    """Numbers events and publishes them in segments: metrics gathered for a second, all else at once.

    While the store cannot be reached the events are kept, and go out with the next one that can be published.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._seq = 0
        self._segment = 0
        self._pending: list[Record] = []
        self._published_at = float("-inf")
        self.ended = False

    def __call__(self, event: KnownEvent) -> None:
        """Emit. Raises `AlreadyClaimed` if another process wrote the first segment of this attempt."""
        if self.ended:
            raise RuntimeError(f"the attempt has ended; {event.type!r} comes too late")
        self._seq += 1
        self._pending.append(Record(seq=self._seq, at=datetime.now(UTC), event=event))
        if isinstance(event, Finished | Failed | Cancelled):
            self.ended = True
            self._publish_last_word()
        elif not isinstance(event, Measured | Progressed) or self._due():
            self._try_to_publish()

    def _due(self) -> bool:
        return time.monotonic() - self._published_at >= PUBLISH_EVERY_SECONDS

    def _try_to_publish(self) -> bool:
        key = f"{self._folder.path}/events/{self._segment + 1:08d}.jsonl"
        self._published_at = time.monotonic()
        try:
            self._folder.store.put(key, map(encode, self._pending), overwrite=False)
        except BlobExists:
            if self._segment == 0:
                raise AlreadyClaimed(key) from None
            return self._went_out_before(key)
        except OSError:
            if self._segment == 0:
                raise  # without the claim nothing may begin
            return False
        self._segment += 1
        self._pending.clear()
        return True

    def _went_out_before(self, key: str) -> bool:
        """A try of ours succeeded although its acknowledgement was lost: go on behind what it stored."""
        try:
            stored = b"".join(self._folder.store.open(key)).splitlines()
        except OSError:
            return False
        self._segment += 1
        del self._pending[: len(stored)]
        return not self._pending or self._try_to_publish()

    def _publish_last_word(self) -> None:
        for attempt in range(LAST_WORD_TRIES):
            if self._try_to_publish():
                return
            time.sleep(2**attempt * 0.1)


def claimed(folder: RunFolder) -> bool:
    """Whether a process has begun this attempt."""
    return folder.store.stat(f"{folder.path}/events/00000001.jsonl") is not None
