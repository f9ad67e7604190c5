"""Workers that die at the worst moment, on both databases: nothing lost, nothing doubled, nothing left over."""

import time
import uuid
from collections.abc import Callable

import pytest
from tests.control.fakes import artifact, checkpoint, play, profile_spec, train_spec, trainer
from tests.control.runs.conftest import Machine

from slmforge.blobs import LocalBlobStore
from slmforge.contract.events import Cancelled, Failed, Finished
from slmforge.contract.run_folder import RunFolder
from slmforge.contract.spec import TrainSpec
from slmforge.control.launchers.protocol import Alive, Exited
from slmforge.control.runs import service as runs
from slmforge.control.runs.reconciler import Reconciler
from slmforge.control.tables import Run

FINISHED = Finished(summary={}, artifacts={})


class Died(BaseException):
    """The worker was killed: nothing in it gets to react."""


def name(run_id: uuid.UUID, attempt: int = 1) -> str:
    return f"{run_id.hex}-{attempt}"


def finish(machine: Machine, run_id: uuid.UUID, attempt: int = 1) -> None:
    """What the process of the attempt does: work, say so, end."""
    play(machine.store, run_id, FINISHED, attempt=attempt)
    machine.launcher.end(name(run_id, attempt), 0)


def die_in(monkeypatch: pytest.MonkeyPatch, owner: object, attribute: str, *, before: bool) -> None:
    """Kill the worker once, right before or right after it has done this."""
    original: Callable[..., object] = getattr(owner, attribute)

    def dying(*args: object, **kwargs: object) -> object:
        monkeypatch.setattr(owner, attribute, original)
        if not before:
            original(*args, **kwargs)
        raise Died

    monkeypatch.setattr(owner, attribute, dying)


def test_a_run_is_launched_followed_and_settled(machine: Machine) -> None:
    run_id, worker = machine.submit(), machine.worker()
    worker.tick()
    assert machine.launcher.launched == [name(run_id)]
    assert machine.launcher.commands[name(run_id)][1:3] == ["-m", "slmforge.training"]
    assert RunFolder(machine.store, run_id.hex, 1).read_spec() == train_spec()
    finish(machine, run_id)
    worker.tick()
    assert machine.run(run_id).status == "completed"
    assert machine.ended == [(run_id, "completed")]
    worker.tick()
    assert machine.launcher.handles() == [], "nothing is kept of a run that has ended"
    assert machine.story(run_id) == ["created", "launched", "started", "finished", "ended"]


def dies_after_claim(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    die_in(monkeypatch, Reconciler, "_step", before=True)


def dies_before_launch(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    die_in(monkeypatch, machine.launcher, "launch", before=True)


def dies_after_launch(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    die_in(monkeypatch, machine.launcher, "launch", before=False)


def dies_before_the_launch_is_committed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    die_in(monkeypatch, runs, "launched", before=False)


def dies_after_the_tick(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    die_in(monkeypatch, Reconciler, "_sweep", before=True)


CRASHES = [
    dies_after_claim,
    dies_before_launch,
    dies_after_launch,
    dies_before_the_launch_is_committed,
    dies_after_the_tick,
]


@pytest.mark.parametrize("crash", CRASHES)
def test_a_worker_that_dies_on_the_way_to_a_process_costs_no_run_and_no_second_process(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, crash: Callable[[Machine, pytest.MonkeyPatch], None]
) -> None:
    run_id = machine.submit()
    crash(machine, monkeypatch)
    with pytest.raises(Died):
        machine.worker().tick()
    heir = machine.worker()
    heir.tick()
    assert machine.launcher.launched in ([], [name(run_id)]), "the lease holds"
    machine.expire_leases()
    heir.tick()
    assert machine.launcher.launched == [name(run_id)]
    finish(machine, run_id)
    heir.tick()
    assert machine.run(run_id).status == "completed"
    assert machine.run(run_id).losses == 0
    assert machine.story(run_id) == ["created", "launched", "started", "finished", "ended"]


@pytest.mark.parametrize("crash", CRASHES)
def test_a_process_that_was_done_before_the_heir_came_is_not_started_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, crash: Callable[[Machine, pytest.MonkeyPatch], None]
) -> None:
    run_id = machine.submit()
    crash(machine, monkeypatch)
    with pytest.raises(Died):
        machine.worker().tick()
    done_already = list(machine.launcher.launched)
    if done_already:
        finish(machine, run_id)
    machine.expire_leases()
    heir = machine.worker()
    heir.tick()
    if not done_already:
        finish(machine, run_id)
    heir.tick()
    assert machine.launcher.launched == [name(run_id)]
    assert machine.run(run_id).status == "completed"


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("segment", [1, 2, 3])
def test_a_worker_that_dies_while_folding_loses_and_doubles_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, segment: int, before: bool
) -> None:
    run_id, worker = machine.submit(), machine.worker()
    worker.tick()
    say = play(machine.store, run_id)
    for step in range(1, segment):
        say(checkpoint(step))
        worker.tick()
    say(FINISHED)
    machine.launcher.end(name(run_id), 0)
    die_in(monkeypatch, runs, "fold", before=before)
    with pytest.raises(Died):
        worker.tick()
    machine.expire_leases()
    heir = machine.worker()
    heir.tick()
    assert machine.run(run_id).status == "completed"
    told = ["created", "launched", "started", *["checkpointed"] * (segment - 1), "finished", "ended"]
    assert machine.story(run_id) == told
    assert machine.launcher.launched == [name(run_id)]


def test_a_worker_that_wakes_up_after_its_lease_was_taken_lets_go(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, sleeper, heir = machine.submit(), machine.worker(), machine.worker()
    step = sleeper._step

    def sleep_then_step(id_: uuid.UUID) -> None:
        machine.expire_leases()
        heir.tick()
        step(id_)

    monkeypatch.setattr(sleeper, "_step", sleep_then_step)
    sleeper.tick()
    assert machine.launcher.launched == [name(run_id)]
    assert machine.story(run_id) == ["created", "launched"]


def test_two_workers_side_by_side_launch_each_run_once(machine: Machine) -> None:
    ids = [machine.submit() for _ in range(10)]
    workers = [machine.worker(slots=4), machine.worker(slots=4)]
    for _ in range(20):
        for worker in workers:
            worker.tick()
        for handle in sorted(machine.launcher.alive):
            finish(machine, uuid.UUID(handle.partition("-")[0]))
    assert sorted(machine.launcher.launched) == sorted(map(name, ids))
    assert {machine.run(run_id).status for run_id in ids} == {"completed"}
    assert sorted(machine.ended) == sorted((run_id, "completed") for run_id in ids)


def test_a_process_that_vanished_goes_on_from_its_last_checkpoint(machine: Machine) -> None:
    run_id, worker = machine.submit(), machine.worker()
    worker.tick()
    play(machine.store, run_id, checkpoint(5))
    machine.launcher.end(name(run_id), -9)
    worker.tick()
    worker.tick()
    assert machine.launcher.launched == [name(run_id), name(run_id, 2)]
    spec = RunFolder(machine.store, run_id.hex, 2).read_spec()
    assert isinstance(spec, TrainSpec)
    assert spec.resume_from == artifact("checkpoint-5"), "what it said last was read before it was given up"
    finish(machine, run_id, attempt=2)
    worker.tick()
    assert machine.run(run_id).status == "completed"


def test_what_a_process_says_right_before_it_ends_is_not_taken_for_silence(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, worker = machine.submit(), machine.worker()
    worker.tick()
    poll = machine.launcher.poll

    def finish_then_poll(handle: str) -> Alive | Exited:
        if machine.launcher.alive:
            finish(machine, run_id)
        return poll(handle)

    monkeypatch.setattr(machine.launcher, "poll", finish_then_poll)
    worker.tick()
    assert machine.run(run_id).status == "completed"
    assert "lost" not in machine.story(run_id)


def test_a_process_that_vanishes_again_and_again_is_given_up_in_a_sentence(machine: Machine) -> None:
    run_id, worker = machine.submit(), machine.worker()
    for attempt in (1, 2, 3):
        worker.tick()
        play(machine.store, run_id, attempt=attempt)
        machine.launcher.end(name(run_id, attempt), -9)
        worker.tick()
    for _ in range(3):
        worker.tick()
    run = machine.run(run_id)
    assert (run.status, run.failure_code) == ("failed", "process_lost")
    assert machine.launcher.launched == [name(run_id, attempt) for attempt in (1, 2, 3)]
    assert machine.ended == [(run_id, "failed")]


def test_a_process_that_cannot_begin_fails_with_what_it_printed_last(machine: Machine) -> None:
    run_id, worker = machine.submit(), machine.worker()
    worker.tick()
    machine.launcher.output = "Traceback\nImportError: libgomp"
    machine.launcher.end(name(run_id), 1)
    worker.tick()
    run = machine.run(run_id)
    assert (run.status, run.failure_code) == ("failed", "launch_failed")
    assert str(run.failure_message).endswith("ImportError: libgomp")


@pytest.mark.parametrize("refusal", [OSError(11, "Resource temporarily unavailable"), OSError("no more room")])
def test_a_process_that_cannot_be_started_is_a_failed_run_with_the_reason(machine: Machine, refusal: OSError) -> None:
    run_id, worker = machine.submit(), machine.worker()
    machine.launcher.refuses = refusal
    worker.tick()
    run = machine.run(run_id)
    assert (run.status, run.failure_code) == ("failed", "launch_failed")
    assert str(run.failure_message).endswith(refusal.strerror or "no more room")
    assert machine.ended == [(run_id, "failed")]


def test_a_late_process_of_a_former_attempt_is_not_listened_to_and_seen_out(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, worker = machine.submit(), machine.worker()
    worker.tick()
    old = play(machine.store, run_id)
    worker.tick()
    with machine.database.write() as session:  # the launcher had said that it was gone
        runs.exited(session, run_id, "worker-1", 1, None, "", lambda session, run: None)
    worker.tick()
    old(Failed(code="internal_error", message="late"))
    assert machine.launcher.alive == {name(run_id), name(run_id, 2)}
    worker.tick()
    assert machine.run(run_id).status == "running"
    let_time_pass(monkeypatch)
    worker.tick()
    assert machine.launcher.alive == {name(run_id, 2)}


def let_time_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    later = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: later)


def test_a_leftover_of_a_run_that_was_cancelled_unseen_is_ended(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = machine.submit()
    dies_after_launch(machine, monkeypatch)
    with pytest.raises(Died):
        machine.worker().tick()
    machine.expire_leases()
    machine.cancel(run_id)
    assert machine.run(run_id).status == "cancelled"
    heir = machine.worker()
    heir.tick()
    assert machine.launcher.alive == {name(run_id)}, "it may be about to end by itself"
    let_time_pass(monkeypatch)
    heir.tick()
    heir.tick()
    assert (machine.launcher.alive, machine.launcher.handles()) == (set(), [])
    assert machine.run(run_id).status == "cancelled"


def test_cancelling_asks_once_and_then_forces(machine: Machine) -> None:
    run_id, worker = machine.submit(), machine.worker()
    worker.tick()
    play(machine.store, run_id)
    machine.cancel(run_id)
    for _ in range(3):
        worker.tick()
    assert machine.launcher.stopped == [(name(run_id), False)]
    assert machine.run(run_id).status == "running", "cancelled is said when the process is gone"
    machine.let_grace_pass()
    worker.tick()
    assert machine.launcher.stopped[-1] == (name(run_id), True)
    worker.tick()
    assert machine.run(run_id).status == "cancelled"
    assert machine.launcher.alive == set()


def test_a_process_that_obeys_is_cancelled_with_what_it_said(machine: Machine) -> None:
    run_id, worker = machine.submit(), machine.worker()
    worker.tick()
    say = play(machine.store, run_id)
    machine.cancel(run_id)
    worker.tick()
    say(checkpoint(4))
    say(Cancelled(step=4))
    machine.launcher.end(name(run_id), 0)
    worker.tick()
    run = machine.run(run_id)
    assert (run.status, run.checkpoint is not None) == ("cancelled", True)
    assert machine.story(run_id).count("ended") == 1


def test_a_run_cancelled_while_it_was_claimed_is_never_launched(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = machine.submit()
    worker = machine.worker()
    step = worker._step

    def cancel_then_step(id_: uuid.UUID) -> None:
        machine.cancel(run_id)
        assert machine.run(run_id).status == "created", "the worker may be starting it at this moment"
        step(id_)

    monkeypatch.setattr(worker, "_step", cancel_then_step)
    worker.tick()
    assert machine.run(run_id).status == "cancelled"
    assert machine.launcher.launched == []


def test_a_run_cancelled_while_it_was_launched_is_stopped(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id, worker = machine.submit(), machine.worker()
    launch = machine.launcher.launch

    def cancel_then_launch(*args: object) -> str:
        machine.cancel(run_id)
        return launch(*args)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(machine.launcher, "launch", cancel_then_launch)
    machine.launcher.obeys_stop = True
    for _ in range(3):
        worker.tick()
    assert machine.run(run_id).status == "cancelled"
    assert machine.launcher.alive == set()


def test_one_slot_takes_one_training_and_analyses_pass_by(machine: Machine) -> None:
    worker = machine.worker(slots=1)
    first, second = machine.submit(), machine.submit()
    analyses = [machine.submit(profile_spec()) for _ in range(2)]
    for _ in range(3):
        worker.tick()
    assert set(machine.launcher.launched) == {name(first), *map(name, analyses)}
    finish(machine, first)
    worker.tick()
    worker.tick()
    assert name(second) in machine.launcher.launched


def test_a_run_that_cannot_be_stepped_does_not_stop_the_others(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good, worker = machine.submit(), machine.submit(), machine.worker(slots=2)
    step = worker._step

    def fail_for_one(id_: uuid.UUID) -> None:
        if id_ == bad:
            raise ZeroDivisionError
        step(id_)

    monkeypatch.setattr(worker, "_step", fail_for_one)
    worker.tick()
    assert machine.launcher.launched == [name(good)]


def test_a_spec_that_this_version_cannot_read_fails_and_frees_the_slot(machine: Machine) -> None:
    bad, good, worker = machine.submit(), machine.submit(), machine.worker(slots=1)
    with machine.database.write() as session:
        session.get_one(Run, bad).spec = {"kind": "train", "schema_version": 0}
    worker.tick()
    worker.tick()
    run = machine.run(bad)
    assert (run.status, run.failure_code) == ("failed", "invalid_spec")
    assert machine.launcher.launched == [name(good)]


def test_a_stream_that_cannot_be_read_ends_the_run_and_its_process(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would show `running` for ever, whatever became of the process."""
    run_id, worker = machine.submit(), machine.worker()
    worker.tick()
    play(machine.store, run_id)
    machine.store.put(f"runs/{run_id.hex}/1/events/00000002.jsonl", [b"not an event\n"])
    worker.tick()
    run = machine.run(run_id)
    assert (run.status, run.failure_code) == ("failed", "internal_error")
    assert "00000002.jsonl" in str(run.failure_message)
    worker.tick()
    let_time_pass(monkeypatch)
    worker.tick()
    assert machine.launcher.alive == set()


def test_a_store_that_is_away_ends_no_run(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id, worker = machine.submit(), machine.worker()
    worker.tick()
    finish(machine, run_id)

    def away(store: object, prefix: str, after: str | None = None) -> None:
        raise OSError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(LocalBlobStore, "list", away)
        worker.tick()
        assert machine.run(run_id).status == "created"
    worker.tick()
    assert machine.run(run_id).status == "completed"


def test_followers_and_the_end_stand_or_fall_together(machine: Machine) -> None:
    run_id, worker = machine.submit(), machine.worker()
    worker.tick()
    finish(machine, run_id)

    def raise_() -> None:
        raise ZeroDivisionError

    machine.follow = raise_
    worker.tick()
    assert machine.run(run_id).status == "running", "the segment with the end was rolled back whole"
    assert machine.story(run_id) == ["created", "launched", "started"]
    machine.follow = lambda: None
    for _ in range(3):
        worker.tick()
    assert machine.ended == [(run_id, "completed")]
    assert machine.story(run_id) == ["created", "launched", "started", "finished", "ended"]


@pytest.mark.parametrize("obeys", [True, False])
def test_a_shutdown_ends_every_process_and_the_next_worker_goes_on(machine: Machine, obeys: bool) -> None:
    ids = [machine.submit() for _ in range(2)]
    worker = machine.worker(slots=2)
    machine.launcher.obeys_stop = obeys
    worker.tick()
    for run_id in ids:
        play(machine.store, run_id, checkpoint(2))
    if not obeys:
        for run_id in ids:
            with machine.database.write() as session:
                runs.interrupt(session, run_id, "worker-1")
        machine.let_grace_pass()
    worker.shutdown(20)
    assert machine.launcher.alive == set()
    assert machine.run(ids[0]).lease_owner is None
    machine.worker(slots=2).tick()
    assert sorted(machine.launcher.launched[2:]) == sorted(name(run_id, 2) for run_id in ids)
    assert [(machine.run(run_id).losses, machine.run(run_id).attempt) for run_id in ids] == [(0, 2)] * 2
    assert "interrupted" in machine.story(ids[0])


def test_a_shutdown_starts_nothing(machine: Machine) -> None:
    machine.submit()
    machine.worker().shutdown(20)
    assert machine.launcher.launched == []


def test_a_run_that_cannot_be_stepped_does_not_keep_the_shutdown_from_the_others(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good, worker = machine.submit(), machine.submit(), machine.worker(slots=2)
    machine.launcher.obeys_stop = True
    worker.tick()
    step = worker._step
    failures: list[uuid.UUID] = []

    def fail_at_first(id_: uuid.UUID) -> None:
        if id_ == bad and machine.run(good).attempt == 1:
            failures.append(id_)
            raise ZeroDivisionError
        step(id_)

    monkeypatch.setattr(worker, "_step", fail_at_first)
    worker.shutdown(60)
    assert failures
    assert machine.launcher.alive == set()
    assert [machine.run(run_id).attempt for run_id in (bad, good)] == [2, 2]
    assert machine.run(bad).lease_owner is None


def test_a_restarted_worker_goes_on_with_a_shutdown_that_was_cut_off(machine: Machine) -> None:
    run_id, worker = machine.submit(), machine.worker()
    worker.tick()
    with machine.database.write() as session:
        runs.interrupt(session, run_id, "worker-1")
    machine.expire_leases()
    machine.launcher.obeys_stop = True
    heir = machine.worker()
    for _ in range(4):
        heir.tick()
    assert machine.launcher.launched == [name(run_id), name(run_id, 2)]
    assert machine.launcher.alive == {name(run_id, 2)}
    trainer(machine.store, run_id, 2)
    assert machine.run(run_id).losses == 0
