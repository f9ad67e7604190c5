"""The trainer as the process it is: claims, signals, exit codes. Every test starts a real one."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slmforge.blobs import LocalBlobStore
from slmforge.contract.events import Cancelled, Checkpointed, Failed, Finished, KnownEvent, Measured, Started
from slmforge.contract.run_folder import EventWriter, RunFolder
from slmforge.contract.spec import DatasetRef, ProfileSpec, TrainSpec

MakeSpec = Callable[..., TrainSpec]
DEADLINE_SECONDS = 120


@pytest.fixture
def folder(store: LocalBlobStore) -> RunFolder:
    return RunFolder(store, "run", 1)


@pytest.fixture
def start() -> Iterator[Callable[[RunFolder], subprocess.Popen[bytes]]]:
    """Start the trainer on a folder; what still lives at the end of the test is killed."""
    processes = []

    def starter(folder: RunFolder) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "slmforge.training", folder.url]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
        processes.append(process)
        return process

    yield starter
    for process in processes:
        process.kill()
        process.communicate()


def log_of(process: subprocess.Popen[bytes]) -> str:
    """Wait for the process and return what it printed."""
    return process.communicate(timeout=DEADLINE_SECONDS)[0].decode()


def events(folder: RunFolder) -> list[KnownEvent]:
    return [record.event for _, records in folder.segments_after(0) for record in records]  # type: ignore[misc]  # all known


def wait_for(folder: RunFolder, process: subprocess.Popen[bytes], kind: type[KnownEvent]) -> None:
    """Follow the run folder, as the control plane does, until an event of `kind` is there."""
    while not any(isinstance(event, kind) for event in events(folder)):
        try:
            process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(log_of(process))


def test_a_profile_needs_no_torch(
    folder: RunFolder, dataset: Callable[..., DatasetRef], start: Callable[[RunFolder], subprocess.Popen[bytes]]
) -> None:
    folder.write_spec(ProfileSpec(dataset=dataset("rows.csv", [("a rose", "red"), ("", "red")])))
    process = start(folder)
    log = log_of(process)
    assert process.returncode == 0, log
    started, finished = events(folder)
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    assert (finished.summary["rows"], finished.summary["invalid_rows"]) == (1, 1)
    assert log == ""


def test_of_two_processes_for_one_attempt_one_works(
    folder: RunFolder, make_spec: MakeSpec, start: Callable[[RunFolder], subprocess.Popen[bytes]]
) -> None:
    folder.write_spec(make_spec(optimization={"epochs": 0.2}))
    pair = [start(folder), start(folder)]
    logs = [log_of(process) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], logs
    told = events(folder)
    assert [isinstance(event, Started) for event in told].count(True) == 1
    assert isinstance(told[-1], Finished)
    assert isinstance(told[0], Started)
    assert told[0].pid in {process.pid for process in pair}


def test_sigterm_in_the_loop_makes_a_checkpoint_and_ends_cancelled(
    folder: RunFolder, make_spec: MakeSpec, start: Callable[[RunFolder], subprocess.Popen[bytes]]
) -> None:
    folder.write_spec(make_spec(optimization={"epochs": 100_000}))
    process = start(folder)
    wait_for(folder, process, Measured)
    process.send_signal(signal.SIGTERM)
    log = log_of(process)
    assert process.returncode == 0, log
    *_, checkpointed, cancelled = events(folder)
    assert isinstance(checkpointed, Checkpointed)
    assert cancelled == Cancelled(step=checkpointed.step)
    assert all(folder.store.stat(file.key) for file in checkpointed.artifact.files)


def test_sigterm_before_the_loop_ends_cancelled_at_once(
    folder: RunFolder, make_spec: MakeSpec, start: Callable[[RunFolder], subprocess.Popen[bytes]]
) -> None:
    folder.write_spec(make_spec())
    process = start(folder)
    wait_for(folder, process, Started)
    process.send_signal(signal.SIGTERM)
    log = log_of(process)
    assert process.returncode == 0, log
    assert events(folder)[-1] == Cancelled(step=0)


def test_a_failure_is_the_last_event_and_the_exit_code(
    folder: RunFolder, make_spec: MakeSpec, start: Callable[[RunFolder], subprocess.Popen[bytes]]
) -> None:
    spec = make_spec()
    folder.write_spec(spec)
    folder.store.delete(spec.data.train.blob.key)
    process = start(folder)
    log = log_of(process)
    assert process.returncode == 1, log
    failed = events(folder)[-1]
    assert isinstance(failed, Failed)
    assert failed.code == "integrity_error"
    assert "upload" in failed.message
    assert failed.details is not None
    assert "Traceback" in failed.details


@pytest.mark.parametrize("text", ["{", '{"kind": "train"}', '{"kind": "dance"}'])
def test_a_spec_that_cannot_be_read_is_told(
    text: str, folder: RunFolder, start: Callable[[RunFolder], subprocess.Popen[bytes]]
) -> None:
    folder.store.put(f"{folder.path}/spec.json", [text.encode()])
    process = start(folder)
    log = log_of(process)
    assert process.returncode == 1, log
    (failed,) = events(folder)
    assert isinstance(failed, Failed)
    assert failed.code == "invalid_spec"


def test_an_attempt_that_ended_is_not_begun_again(
    folder: RunFolder, make_spec: MakeSpec, start: Callable[[RunFolder], subprocess.Popen[bytes]]
) -> None:
    folder.write_spec(make_spec())
    EventWriter(folder)(Cancelled(step=0))
    process = start(folder)
    log = log_of(process)
    assert process.returncode == 0, log
    assert events(folder) == [Cancelled(step=0)]


def test_a_place_that_is_no_run_folder_is_a_usage_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "slmforge.training", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"STORE/runs/RUN/ATTEMPT" in done.stderr
