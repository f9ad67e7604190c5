"""Runs as rows, on both databases: who may change them, and what never happens to them."""

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from sqlalchemy.orm import Session
from tests.control.fakes import STARTED, artifact, checkpoint, profile_spec, train_spec
from tests.control.runs.conftest import Machine

from slmforge.contract.events import Cancelled, Event, Failed, Finished, Noted, Record, Unknown
from slmforge.control.errors import Conflict
from slmforge.control.runs import service as runs
from slmforge.control.runs.service import LostLease
from slmforge.control.tables import Run

FINISHED = Finished(summary={"loss": 1.5}, artifacts={"adapter": artifact("adapter")})
ENDS = [
    (FINISHED, "completed"),
    (Failed(code="diverged", message="The loss is no number."), "failed"),
    (Cancelled(step=3), "cancelled"),
]


def nobody(session: Session, run: Run) -> None:
    """Follows without doing anything."""


def records(*events: Event, first: int = 1) -> list[Record]:
    return [Record(seq=n, at=datetime.now(UTC), event=event) for n, event in enumerate(events, start=first)]


def claim(machine: Machine, worker: str, *, slots: int | None = 1, node: str = "here") -> list[uuid.UUID]:
    with machine.database.write() as session:
        return runs.claim(session, worker=worker, node=node, lease_seconds=10, slots=slots)


def launched(machine: Machine, run_id: uuid.UUID, worker: str = "a", attempt: int = 1) -> None:
    with machine.database.write() as session:
        runs.launched(session, run_id, worker, attempt, node="here", handle=f"{run_id.hex}-{attempt}")


def fold(
    machine: Machine, run_id: uuid.UUID, segment: int, *events: Event, worker: str = "a", attempt: int = 1
) -> None:
    with machine.database.write() as session:
        runs.fold(session, run_id, worker, attempt, segment, records(*events, first=segment * 100), nobody)


def exited(
    machine: Machine, run_id: uuid.UUID, worker: str = "a", attempt: int = 1, code: int | None = -9, output: str = ""
) -> None:
    with machine.database.write() as session:
        runs.exited(session, run_id, worker, attempt, code, output, nobody)


def at_work(machine: Machine) -> uuid.UUID:
    """A run of worker "a" whose process has started."""
    run_id = machine.submit()
    assert claim(machine, "a") == [run_id]
    launched(machine, run_id)
    fold(machine, run_id, 1, STARTED)
    return run_id


STALE: dict[str, Callable[[Machine, uuid.UUID], None]] = {
    "fold": lambda machine, run_id: fold(machine, run_id, 2, FINISHED),
    "launched": launched,
    "exited": exited,
}


def test_a_run_is_told_from_its_creation_to_its_end(machine: Machine) -> None:
    run_id = machine.submit()
    assert machine.run(run_id).status == "created"
    claim(machine, "a")
    launched(machine, run_id)
    assert machine.run(run_id).status == "created"
    fold(machine, run_id, 1, STARTED)
    run = machine.run(run_id)
    assert (run.status, run.started_at is not None, run.finished_at) == ("running", True, None)
    fold(machine, run_id, 2, checkpoint(3), FINISHED)
    run = machine.run(run_id)
    assert (run.status, run.summary, run.finished_at is not None) == ("completed", {"loss": 1.5}, True)
    assert run.lease_owner is None
    told = ["created", "launched", "started", "checkpointed", "finished", "ended"]
    assert machine.story(run_id) == told


@pytest.mark.parametrize(("end", "status"), ENDS)
def test_an_end_is_an_end(machine: Machine, end: Event, status: str) -> None:
    run_id = at_work(machine)
    fold(machine, run_id, 2, end)
    story = machine.story(run_id)
    for change in STALE.values():
        with pytest.raises(LostLease):
            change(machine, run_id)
    with pytest.raises(Conflict, match=f"It is {status} already"):
        machine.cancel(run_id)
    machine.expire_leases()
    assert claim(machine, "a") == claim(machine, "b") == []
    assert machine.run(run_id).status == status
    assert machine.story(run_id) == story


def test_what_is_said_behind_the_last_word_has_no_effect(machine: Machine) -> None:
    run_id = at_work(machine)
    fold(machine, run_id, 2, Cancelled(step=1), FINISHED, STARTED)
    run = machine.run(run_id)
    assert (run.status, run.summary) == ("cancelled", None)
    assert machine.story(run_id).count("ended") == 1


def test_claims_of_many_workers_never_meet(machine: Machine) -> None:
    workers, count = 4, 60
    ids = {machine.submit() for _ in range(count)}
    barrier = threading.Barrier(workers, timeout=20)

    def work(name: str) -> list[uuid.UUID]:
        barrier.wait()
        taken: list[uuid.UUID] = []
        for slots in range(3, count + 20, 3):
            taken += set(claim(machine, name, slots=slots, node=name)) - set(taken)
        return taken

    with ThreadPoolExecutor(workers) as pool:
        taken = [run_id for each in pool.map(work, map(str, range(workers))) for run_id in each]
    assert sorted(taken) == sorted(ids)


def test_a_claim_holds_until_it_expires(machine: Machine) -> None:
    run_id = machine.submit()
    assert claim(machine, "a") == [run_id]
    assert claim(machine, "b") == []
    assert claim(machine, "a") == [run_id], "a worker renews its own"
    machine.expire_leases()
    assert claim(machine, "b") == [run_id]
    assert claim(machine, "a") == []


def test_the_oldest_waits_least(machine: Machine) -> None:
    ids = [machine.submit() for _ in range(3)]
    assert set(claim(machine, "a", slots=2)) == set(ids[:2])


def test_a_run_at_work_elsewhere_is_not_taken_from_another_machine(machine: Machine) -> None:
    run_id = at_work(machine)
    machine.expire_leases()
    assert claim(machine, "b", node="there") == [], "its process cannot be seen from there"
    assert claim(machine, "b") == [run_id]


def test_two_workers_of_one_machine_share_its_slots(machine: Machine) -> None:
    first, second = machine.submit(), machine.submit()
    assert claim(machine, "a", slots=1) == [first]
    assert claim(machine, "b", slots=1) == [], "the slot is taken although nothing runs in it yet"
    assert claim(machine, "b", slots=1, node="there") == [second]


def test_a_claim_that_was_never_used_takes_no_slot_for_ever(machine: Machine) -> None:
    first = machine.submit()
    claim(machine, "a", slots=1)
    machine.expire_leases()
    assert claim(machine, "b", slots=1) == [first]


def test_analyses_do_not_wait_for_trainings(machine: Machine) -> None:
    at_work(machine)
    training, analysis = machine.submit(), machine.submit(profile_spec())
    taken = claim(machine, "a", slots=1)
    assert analysis in taken
    assert training not in taken


@pytest.mark.parametrize("step", STALE)
def test_a_worker_whose_lease_was_taken_over_changes_nothing(machine: Machine, step: str) -> None:
    run_id = at_work(machine)
    machine.expire_leases()
    claim(machine, "b")
    before = machine.story(run_id), machine.run(run_id).version
    with pytest.raises(LostLease):
        STALE[step](machine, run_id)
    assert (machine.story(run_id), machine.run(run_id).version) == before


@pytest.mark.parametrize("step", STALE)
def test_what_concerns_a_former_attempt_changes_nothing(machine: Machine, step: str) -> None:
    run_id = at_work(machine)
    exited(machine, run_id)
    assert machine.run(run_id).attempt == 2
    story = machine.story(run_id)
    with pytest.raises(LostLease):
        STALE[step](machine, run_id)
    assert machine.story(run_id) == story


@pytest.mark.parametrize("segment", [1, 3])
def test_a_segment_is_folded_once_and_in_its_turn(machine: Machine, segment: int) -> None:
    run_id = at_work(machine)
    with pytest.raises(LostLease):
        fold(machine, run_id, segment, FINISHED)
    assert machine.run(run_id).status == "running"
    assert machine.story(run_id) == ["created", "launched", "started"]


def test_numbers_go_on_over_attempts(machine: Machine) -> None:
    run_id = at_work(machine)
    exited(machine, run_id)
    launched(machine, run_id, attempt=2)
    fold(machine, run_id, 1, STARTED, attempt=2)
    fold(machine, run_id, 2, FINISHED, attempt=2)
    assert machine.story(run_id) == [
        *("created", "launched", "started", "lost"),
        *("launched", "started", "finished", "ended"),
    ]
    assert [event.attempt for event in machine.events(run_id)] == [1, 1, 1, 1, 2, 2, 2, 2]


def test_cancelling_what_waits_ends_it_at_once_and_nobody_takes_it_up(machine: Machine) -> None:
    run_id = machine.submit()
    machine.cancel(run_id)
    assert machine.run(run_id).status == "cancelled"
    assert claim(machine, "a") == []


def test_cancelling_twice_is_one_request(machine: Machine) -> None:
    run_id = at_work(machine)
    machine.cancel(run_id)
    asked = machine.run(run_id).stop_requested_at
    machine.cancel(run_id)
    assert machine.run(run_id).stop_requested_at == asked
    assert machine.story(run_id).count("cancel_requested") == 1


@pytest.mark.parametrize(("end", "status"), ENDS)
def test_a_cancel_that_was_acknowledged_before_the_end_was_told_wins(machine: Machine, end: Event, status: str) -> None:
    run_id = at_work(machine)
    machine.cancel(run_id)
    fold(machine, run_id, 2, end)
    run = machine.run(run_id)
    assert (run.status, run.failure_code) == ("cancelled", None)
    assert machine.story(run_id).count("ended") == 1


def test_a_cancel_that_races_the_end_has_one_outcome_and_is_told_it(machine: Machine) -> None:
    for _ in range(15):
        run_id = at_work(machine)
        barrier = threading.Barrier(2, timeout=20)

        def cancel(run_id: uuid.UUID = run_id, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            try:
                machine.cancel(run_id)
            except Conflict:
                return False
            return True

        def finish(run_id: uuid.UUID = run_id, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            fold(machine, run_id, 2, FINISHED)

        with ThreadPoolExecutor(2) as pool:
            acknowledged = pool.submit(cancel)
            pool.submit(finish).result()
        assert machine.run(run_id).status == ("cancelled" if acknowledged.result() else "completed")
        assert machine.story(run_id).count("ended") == 1


def test_a_process_that_goes_goes_on_from_its_checkpoint_and_after_three_losses_is_given_up(machine: Machine) -> None:
    run_id = at_work(machine)
    fold(machine, run_id, 2, checkpoint(3), checkpoint(6))
    for attempt in (1, 2):
        exited(machine, run_id, attempt=attempt)
        run = machine.run(run_id)
        assert (run.status, run.attempt, run.handle, run.cursor) == ("running", attempt + 1, None, 0)
        assert runs.spec_of(run) == train_spec().model_copy(update={"resume_from": artifact("checkpoint-6")})
        launched(machine, run_id, attempt=attempt + 1)
    exited(machine, run_id, attempt=3)
    run = machine.run(run_id)
    assert (run.status, run.failure_code) == ("failed", "process_lost")
    assert run.failure_message is not None
    assert "lower batch_size" in run.failure_message
    assert machine.story(run_id).count("lost") == 3


def test_a_process_that_ends_before_it_began_is_not_tried_again(machine: Machine) -> None:
    run_id = machine.submit()
    claim(machine, "a")
    launched(machine, run_id)
    exited(machine, run_id, code=1, output="Traceback\n  …\nImportError: no module named torch")
    run = machine.run(run_id)
    assert (run.status, run.failure_code) == ("failed", "launch_failed")
    assert run.failure_message == (
        "The process ended before it began (exit code 1): ImportError: no module named torch"
    )


@pytest.mark.parametrize("code", [None, -9, 0])
def test_a_process_that_was_killed_before_it_began_is_tried_again(machine: Machine, code: int | None) -> None:
    run_id = machine.submit()
    claim(machine, "a")
    launched(machine, run_id)
    exited(machine, run_id, code=code)
    run = machine.run(run_id)
    assert (run.status, run.attempt, run.losses) == ("created", 2, 1)


def test_what_a_process_prints_cannot_keep_its_end_from_being_told(machine: Machine) -> None:
    """PostgreSQL takes no NUL in a text."""
    run_id = machine.submit()
    claim(machine, "a")
    launched(machine, run_id)
    exited(machine, run_id, code=1, output="bad \0 byte, \ufffd and 🎫")
    assert machine.run(run_id).status == "failed"


def test_what_a_run_says_cannot_keep_it_from_ending(machine: Machine) -> None:
    run_id = at_work(machine)
    fold(machine, run_id, 2, Noted(level="info", message="a \0 b"), Unknown(type="x" * 40, payload={"a": "\0"}))
    fold(machine, run_id, 3, Failed(code="internal_error", message="a \0 b"))
    run = machine.run(run_id)
    assert (run.status, run.failure_message is not None) == ("failed", True)


def test_a_shutdown_is_no_loss_and_no_end(machine: Machine) -> None:
    run_id = at_work(machine)
    for attempt in (1, 2, 3, 4):
        with machine.database.write() as session:
            runs.interrupt(session, run_id, "a")
        if attempt % 2:
            fold(machine, run_id, machine.run(run_id).cursor + 1, Cancelled(step=1), attempt=attempt)
        else:
            exited(machine, run_id, attempt=attempt, code=0)
        run = machine.run(run_id)
        assert (run.status, run.attempt, run.losses, run.stop_reason) == ("running", attempt + 1, 0, None)
        launched(machine, run_id, attempt=attempt + 1)


def test_a_run_that_finishes_in_spite_of_the_shutdown_is_finished(machine: Machine) -> None:
    run_id = at_work(machine)
    with machine.database.write() as session:
        runs.interrupt(session, run_id, "a")
    fold(machine, run_id, 2, FINISHED)
    assert machine.run(run_id).status == "completed"


def test_a_cancel_during_the_shutdown_is_a_cancel(machine: Machine) -> None:
    run_id = at_work(machine)
    with machine.database.write() as session:
        runs.interrupt(session, run_id, "a")
    machine.cancel(run_id)
    fold(machine, run_id, 2, Cancelled(step=1))
    assert machine.run(run_id).status == "cancelled"


def test_a_worker_that_goes_in_order_leaves_its_runs_free(machine: Machine) -> None:
    run_id = machine.submit()
    claim(machine, "a")
    with machine.database.write() as session:
        runs.release(session, "a")
    assert claim(machine, "b") == [run_id]


def test_events_are_read_from_where_the_reader_was(machine: Machine) -> None:
    run_id = at_work(machine)
    with machine.database.read() as session:
        assert [e.number for e in runs.events(session, run_id, after=0, limit=2)] == [1, 2]
        assert [e.number for e in runs.events(session, run_id, after=2, limit=2)] == [3]
        assert [e.number for e in runs.events(session, run_id, after=0, limit=9, types=["started"])] == [3]
