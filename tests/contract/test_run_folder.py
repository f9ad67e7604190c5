import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from slmforge.blobs import BlobMissing, BlobRef, LocalBlobStore
from slmforge.contract import run_folder
from slmforge.contract.events import (
    Cancelled,
    Failed,
    Finished,
    KnownEvent,
    Measured,
    Noted,
    Progressed,
    Record,
    Started,
    encode,
)
from slmforge.contract.run_folder import (
    PUBLISH_EVERY_SECONDS,
    AlreadyClaimed,
    EventWriter,
    IntegrityError,
    RunFolder,
    claimed,
    fetch_artifact,
    fetch_blob,
)
from slmforge.contract.spec import ArtifactRef, DatasetRef, ProfileSpec

STARTED = Started(host="h", pid=1, device="cpu", choices={}, versions={})


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class FlakyStore(LocalBlobStore):
    """Fails the next puts: before anything is stored, or (`after`) when all is stored and only the answer is lost."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fail = 0
        self.after = False

    def put(self, key: str, chunks: Iterable[bytes], *, overwrite: bool = True) -> BlobRef:
        if self.fail and not self.after:
            self.fail -= 1
            raise OSError("the store is away")
        ref = super().put(key, chunks, overwrite=overwrite)
        if self.fail:
            self.fail -= 1
            raise OSError("the answer was lost")
        return ref


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(run_folder, "time", clock)
    return clock


@pytest.fixture
def store(tmp_path: Path) -> FlakyStore:
    return FlakyStore(tmp_path / "blobs")


@pytest.fixture
def folder(store: FlakyStore) -> RunFolder:
    return RunFolder(store, "run", 1)


@pytest.fixture
def say(folder: RunFolder, clock: Clock) -> EventWriter:
    return EventWriter(folder)


def measured(step: int) -> Measured:
    return Measured(step=step, values={"loss": 1.0})


def noted(message: str) -> Noted:
    return Noted(level="info", message=message)


def segments(folder: RunFolder) -> list[tuple[int, list[int]]]:
    return [(number, [record.seq for record in records]) for number, records in folder.segments_after(0)]


def events(folder: RunFolder) -> list[object]:
    return [record.event for _, records in folder.segments_after(0) for record in records]


def test_events_are_numbered_from_one_and_what_is_not_a_metric_is_published_at_once(
    say: EventWriter, folder: RunFolder
) -> None:
    said: list[KnownEvent] = [STARTED, noted("a"), Finished(summary={}, artifacts={})]
    for n, event in enumerate(said, start=1):
        say(event)
        assert segments(folder) == [(i, [i]) for i in range(1, n + 1)]
    assert events(folder) == said


def test_metrics_are_gathered_for_a_second(say: EventWriter, folder: RunFolder, clock: Clock) -> None:
    say(STARTED)
    say(measured(1))
    clock.now += PUBLISH_EVERY_SECONDS * 0.9
    say(Progressed(stage="training", done=1, total=9, unit="steps"))
    assert segments(folder) == [(1, [1])]
    clock.now += PUBLISH_EVERY_SECONDS * 0.1
    say(measured(2))
    assert segments(folder) == [(1, [1]), (2, [2, 3, 4])]
    say(measured(3))
    assert len(segments(folder)) == 2


def test_whatever_is_gathered_goes_out_before_what_is_published_at_once(say: EventWriter, folder: RunFolder) -> None:
    say(STARTED)
    say(measured(1))
    say(noted("now"))
    assert segments(folder) == [(1, [1]), (2, [2, 3])]


def test_a_second_writer_on_an_attempt_leaves_without_a_trace(
    say: EventWriter, folder: RunFolder, store: FlakyStore
) -> None:
    say(STARTED)
    before = {key: b"".join(store.open(key)) for key in store.list("runs")}
    with pytest.raises(AlreadyClaimed):
        EventWriter(folder)(STARTED)
    assert {key: b"".join(store.open(key)) for key in store.list("runs")} == before
    say(noted("the first goes on"))
    assert segments(folder) == [(1, [1]), (2, [2])]


def test_of_processes_that_begin_together_exactly_one_gets_the_attempt(folder: RunFolder) -> None:
    barrier = threading.Barrier(4, timeout=20)

    def begin(n: int) -> int | None:
        barrier.wait()
        try:
            EventWriter(folder)(STARTED.model_copy(update={"pid": n}))
        except AlreadyClaimed:
            return None
        return n

    with ThreadPoolExecutor(4) as pool:
        won = [n for n in pool.map(begin, range(4)) if n is not None]
    assert [event.pid for event in events(folder) if isinstance(event, Started)] == won


def test_another_attempt_of_the_same_run_is_free(say: EventWriter, store: FlakyStore) -> None:
    say(STARTED)
    assert claimed(RunFolder(store, "run", 1))
    assert not claimed(RunFolder(store, "run", 2))
    EventWriter(RunFolder(store, "run", 2))(STARTED)


def test_without_the_store_nothing_begins(say: EventWriter, store: FlakyStore, folder: RunFolder) -> None:
    store.fail = 1
    with pytest.raises(OSError, match="away"):
        say(STARTED)
    assert not claimed(folder)


def test_what_is_said_while_the_store_is_away_goes_out_later_in_order(
    say: EventWriter, store: FlakyStore, folder: RunFolder
) -> None:
    say(STARTED)
    store.fail = 2
    said: list[KnownEvent] = [noted("a"), noted("b"), noted("c")]
    for event in said:
        say(event)
    assert segments(folder) == [(1, [1]), (2, [2, 3, 4])]
    assert events(folder) == [STARTED, *said]


def test_metrics_do_not_try_an_absent_store_at_every_step(say: EventWriter, store: FlakyStore, clock: Clock) -> None:
    say(STARTED)
    store.fail = 100
    for step in range(50):
        clock.now += PUBLISH_EVERY_SECONDS / 10
        say(measured(step))
    assert store.fail >= 100 - 6


def test_a_segment_whose_acknowledgement_is_lost_is_not_said_twice(
    say: EventWriter, store: FlakyStore, folder: RunFolder
) -> None:
    """The store took it and the answer got lost: the next try finds the key taken, by ourselves."""
    say(STARTED)
    store.fail, store.after = 1, True
    said: list[KnownEvent] = [noted("a"), noted("b"), Finished(summary={}, artifacts={})]
    for event in said:
        say(event)
    assert events(folder) == [STARTED, *said]
    assert [seq for _, seqs in segments(folder) for seq in seqs] == [1, 2, 3, 4]


@pytest.mark.parametrize("after", [False, True])
def test_the_last_word_is_tried_again(
    say: EventWriter, store: FlakyStore, folder: RunFolder, clock: Clock, after: bool
) -> None:
    say(STARTED)
    say(measured(1))
    store.fail, store.after = 3, after
    say(Cancelled(step=1))
    assert events(folder) == [STARTED, measured(1), Cancelled(step=1)]
    assert clock.slept == sorted(clock.slept)
    assert 0 < sum(clock.slept) < 30


def test_a_last_word_that_nobody_takes_does_not_hold_the_process_for_ever(
    say: EventWriter, store: FlakyStore, clock: Clock
) -> None:
    say(STARTED)
    store.fail = 1000
    say(Cancelled(step=1))
    assert sum(clock.slept) < 60


@pytest.mark.parametrize(
    "end",
    [Finished(summary={}, artifacts={}), Failed(code="internal_error", message="x"), Cancelled(step=1)],
    ids=lambda end: end.type,
)
def test_nothing_is_said_after_the_end(say: EventWriter, folder: RunFolder, end: KnownEvent) -> None:
    say(STARTED)
    say(end)
    assert say.ended
    for late in (noted("late"), end):
        with pytest.raises(RuntimeError, match="too late"):
            say(late)
    assert events(folder) == [STARTED, end]


def test_a_spec_is_written_and_read(folder: RunFolder) -> None:
    with pytest.raises(BlobMissing):
        folder.read_spec()
    blob = BlobRef(key="a", sha256="0" * 64, size_bytes=1)
    spec = ProfileSpec(dataset=DatasetRef(blob=blob, format="csv", layout="text", columns={}, split=None))
    folder.write_spec(spec)
    assert folder.read_spec() == spec


def test_a_spec_that_does_not_fit_is_refused(folder: RunFolder, store: FlakyStore) -> None:
    store.put(f"{folder.path}/spec.json", [b'{"kind": "profile"}'])
    with pytest.raises(ValidationError):
        folder.read_spec()


def put_segment(folder: RunFolder, number: int, seq: int) -> None:
    record = Record.model_validate({"seq": seq, "at": "2026-01-01T00:00:00Z", "event": Cancelled(step=seq)})
    folder.store.put(f"{folder.path}/events/{number:08d}.jsonl", [encode(record)])


def test_reading_goes_on_after_the_cursor_and_stops_at_a_gap(folder: RunFolder) -> None:
    """A listing may show a later segment before an earlier one; what is skipped would be lost."""
    assert list(folder.segments_after(0)) == []
    for number in (1, 2, 3, 5):
        put_segment(folder, number, seq=number)
    assert [number for number, _ in folder.segments_after(0)] == [1, 2, 3]
    assert [number for number, _ in folder.segments_after(2)] == [3]
    assert [number for number, _ in folder.segments_after(3)] == []
    put_segment(folder, 4, seq=4)
    assert [number for number, _ in folder.segments_after(3)] == [4, 5]


def test_attempts_and_runs_do_not_see_each_other(store: FlakyStore) -> None:
    put_segment(RunFolder(store, "run", 1), 1, seq=1)
    for other in (RunFolder(store, "run", 2), RunFolder(store, "run", 11), RunFolder(store, "ru", 1)):
        assert list(other.segments_after(0)) == []


@pytest.fixture
def made(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "deep").mkdir(parents=True)
    (made / "config.json").write_bytes(b"{}")
    (made / "deep" / "weights.safetensors").write_bytes(b"w" * 3_000_000)
    return made


def test_an_artefact_is_published_and_fetched_file_by_file(
    folder: RunFolder, store: FlakyStore, made: Path, tmp_path: Path
) -> None:
    artifact = folder.publish_folder("adapter", made)
    assert artifact.prefix == "runs/run/1/artifacts/adapter"
    target = fetch_artifact(store, artifact, tmp_path / "fetched")
    files = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert files == {"config.json": b"{}", "deep/weights.safetensors": b"w" * 3_000_000}


def test_bytes_that_are_not_those_recorded_are_refused_and_removed(
    folder: RunFolder, store: FlakyStore, made: Path, tmp_path: Path
) -> None:
    artifact = folder.publish_folder("adapter", made)
    store.put(f"{artifact.prefix}/config.json", [b"{ }"])
    with pytest.raises(IntegrityError, match=r"config\.json"):
        fetch_artifact(store, artifact, tmp_path / "fetched")
    assert not (tmp_path / "fetched" / "config.json").exists()


def test_a_missing_blob_leaves_no_file_and_spoils_none(store: FlakyStore, tmp_path: Path) -> None:
    target = tmp_path / "config.json"
    with pytest.raises(BlobMissing):
        fetch_blob(store, BlobRef(key="a/b", sha256="0" * 64, size_bytes=1), target)
    assert not target.exists()


@pytest.mark.parametrize(
    ("prefix", "key"),
    [
        ("p", "{outside}"),
        ("p", "p/../../outside"),
        ("p", "p/{outside}"),
        ("p", "p/a/../../../outside"),
        ("p", "other/blob"),
        ("p", "p"),
        ("other", "p/blob"),
    ],
)
def test_an_artefact_cannot_write_outside_its_folder(store: FlakyStore, tmp_path: Path, prefix: str, key: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    for taken in ("other/blob", "p/blob"):
        store.put(taken, [b"x"])
    ref = BlobRef(key=key.format(outside=outside), sha256="0" * 64, size_bytes=1)
    with pytest.raises(IntegrityError, match="does not lie in"):
        fetch_artifact(store, ArtifactRef(prefix=prefix, files=(ref,)), tmp_path / "fetched")
    assert outside.read_bytes() == b"precious"
    assert not (tmp_path / "fetched").exists()
