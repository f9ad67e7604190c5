"""Runs as rows: every change of one is here, each a guarded step within a transaction of the caller's.

    created ──► running ──► completed | failed | cancelled        created ──► failed | cancelled

A terminal state never changes. What happens to a process on the way (launched, lost, started again) are events.
"""

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from slmforge.contract.events import (
    Cancelled,
    Checkpointed,
    Event,
    Failed,
    FailureCode,
    Finished,
    Measured,
    Progressed,
    Record,
    Started,
)
from slmforge.contract.spec import RUN_SPEC, RunSpec, TrainSpec
from slmforge.control.errors import Conflict
from slmforge.control.tables import Run, RunEvent, utc_now

UNFINISHED = ("created", "running")
PARALLEL_PROFILES = 2
MAX_LOSSES = 3

Follow = Callable[[Session, Run], None]


class LostLease(Exception):
    """Another worker looks after this run now, or it has ended: let go of it."""


def submit(session: Session, spec: RunSpec) -> Run:
    """Queue a run. It exists once the caller commits."""
    run = Run(kind=spec.kind, spec=spec.model_dump(mode="json"))
    session.add(run)
    session.flush()
    _record(session, run, "created", {})
    return run


def spec_of(run: Run) -> RunSpec:
    """The spec for the run's current attempt: a training that was interrupted goes on from its last checkpoint."""
    spec = RUN_SPEC.validate_python(run.spec)
    if isinstance(spec, TrainSpec) and run.checkpoint:
        spec = spec.model_copy(update={"resume_from": Checkpointed.model_validate(run.checkpoint).artifact})
    return spec


def cancel(session: Session, run_id: uuid.UUID) -> Run:
    """Ask for the end of a run; one that no process works on ends at once. Raises `Conflict` if it has ended."""
    run = _locked(session, run_id)
    if run.status not in UNFINISHED:
        raise Conflict(f"It is {run.status} already; only something created or running can be cancelled.")
    if run.stop_reason != "cancel":
        run.stop_reason, run.stop_requested_at = "cancel", utc_now()
        _record(session, run, "cancel_requested", {})
    if run.handle is None and not _leased(run):
        _end(session, run, "cancelled")
    return run


def events(
    session: Session, run_id: uuid.UUID, *, after: int, limit: int, types: Sequence[str] = ()
) -> Sequence[RunEvent]:
    """The events numbered above `after`, in order; of the given types if any are given."""
    query = sa.select(RunEvent).where(RunEvent.run_id == run_id, RunEvent.number > after)
    if types:
        query = query.where(RunEvent.type.in_(types))
    return session.scalars(query.order_by(RunEvent.number).limit(limit)).all()


def has_ended(session: Session, run_id: uuid.UUID) -> bool:
    """Whether the run is in a terminal state. One that is gone has ended too."""
    return session.scalar(sa.select(Run.status).where(Run.id == run_id)) not in UNFINISHED


def claim(session: Session, *, worker: str, node: str, lease_seconds: float, slots: int | None) -> list[uuid.UUID]:
    """Lease to `worker` the unfinished runs that nobody looks after: those at work here, and as many new as fit.

    `slots` bounds the trainings and evaluations at work on this node; None takes no new run of any kind.
    Each run is leased to one worker at a time.
    """
    now = utc_now()
    free = sa.or_(Run.lease_owner == worker, Run.lease_owner.is_(None), Run.lease_expires_at < now)
    unfinished = Run.status.in_(UNFINISHED)
    at_work = sa.select(Run.id).where(unfinished, free, Run.handle.is_not(None), Run.node == node)
    ids = list(session.scalars(at_work.with_for_update(skip_locked=True)))
    rooms = ((Run.kind != "profile", slots), (Run.kind == "profile", PARALLEL_PROFILES)) if slots is not None else ()
    for is_kind, room in rooms:
        taken = sa.or_(Run.handle.is_not(None), sa.not_(free))  # also what another worker is just about to launch
        busy = sa.select(sa.func.count()).where(unfinished, is_kind, taken, Run.node == node)
        vacant = room - (session.scalar(busy) or 0)
        if vacant > 0:
            waiting = sa.select(Run.id).where(unfinished, free, is_kind, Run.handle.is_(None)).order_by(Run.id)
            ids += session.scalars(waiting.limit(vacant).with_for_update(skip_locked=True))
    # The guard stands in the update too: on PostgreSQL the row may have changed since the select saw it.
    update = sa.update(Run).where(Run.id.in_(ids), unfinished, free).returning(Run.id)
    expires = now + timedelta(seconds=lease_seconds)
    return list(session.scalars(update.values(lease_owner=worker, lease_expires_at=expires, node=node)))


def release(session: Session, worker: str) -> None:
    """Give back every lease of a worker that is going away in order."""
    session.execute(sa.update(Run).where(Run.lease_owner == worker).values(lease_owner=None, lease_expires_at=None))


def is_current(session: Session, run_id: uuid.UUID, attempt: int) -> bool:
    """Whether a process of this attempt has any business being there."""
    run = session.get(Run, run_id)
    return run is not None and run.status in UNFINISHED and run.attempt == attempt


def launched(session: Session, run_id: uuid.UUID, worker: str, attempt: int, *, node: str, handle: str) -> None:
    """Note that the process of this attempt has been started. Raises `LostLease`."""
    run = _owned(session, run_id, worker, attempt)
    run.node, run.handle = node, handle
    _record(session, run, "launched", {"node": node})


def cancelled_before_launch(session: Session, run_id: uuid.UUID, worker: str) -> None:
    """End a run that was cancelled while no process of it was there. Raises `LostLease`."""
    _end(session, _owned(session, run_id, worker), "cancelled")


def interrupt(session: Session, run_id: uuid.UUID, worker: str) -> None:
    """Note that the run is stopped because its worker shuts down: it is to go on later, not to end."""
    run = _owned(session, run_id, worker)
    if run.stop_reason is None:
        run.stop_reason, run.stop_requested_at = "shutdown", utc_now()
        _record(session, run, "interrupted", {})


def fold(
    session: Session, run_id: uuid.UUID, worker: str, attempt: int, segment: int, records: list[Record], follow: Follow
) -> Run:
    """Apply one event segment: its rows, its effects and the cursor in one transaction. Raises `LostLease`."""
    run = _owned(session, run_id, worker, attempt)
    if run.cursor != segment - 1:
        raise LostLease
    for record in records:
        _record(session, run, record.event.type, _payload(record.event), seq=record.seq, at=record.at)
        if run.status in UNFINISHED:
            _apply(session, run, record.event, record.at)
    if run.attempt == attempt:
        run.cursor = segment
    if run.status not in UNFINISHED:
        follow(session, run)
    return run


def exited(
    session: Session, run_id: uuid.UUID, worker: str, attempt: int, code: int | None, output: str, follow: Follow
) -> Run:
    """The process is gone without a last word: end the run as was asked, or try again, or give up."""
    run = _owned(session, run_id, worker, attempt)
    _record(session, run, "lost", {"exit_code": code, "output": output})
    if run.stop_reason == "cancel":
        _end(session, run, "cancelled")
    elif run.stop_reason == "shutdown":
        _again(run)
    elif run.cursor == 0 and code is not None and code > 0:
        last_line = output.rsplit("\n", 1)[-1][:300] or "it printed nothing"
        _fail(session, run, "launch_failed", f"The process ended before it began (exit code {code}): {last_line}")
    elif run.losses + 1 < MAX_LOSSES:
        run.losses += 1
        _again(run)
    else:
        _fail(
            session,
            run,
            "process_lost",
            f"The process vanished without a word, {MAX_LOSSES} times. Most often the machine ran out of "
            "memory: lower batch_size, micro_batch_tokens or max_seq_length, then resume.",
        )
    if run.status not in UNFINISHED:
        follow(session, run)
    return run


def fail(
    session: Session, run_id: uuid.UUID, worker: str, attempt: int, code: FailureCode, message: str, follow: Follow
) -> None:
    """End a run that cannot go on, whatever its process does. Raises `LostLease`."""
    run = _owned(session, run_id, worker, attempt)
    _fail(session, run, code, message)
    follow(session, run)


def _apply(session: Session, run: Run, event: Event, at: datetime) -> None:
    match event:
        case Started():
            run.status, run.started = "running", event.model_dump(mode="json")
            run.started_at = run.started_at or at
        case Progressed():
            run.progress = _progress(run.progress or {}, event, at)
        case Measured():
            run.progress = {**(run.progress or {}), "step": event.step, "values": event.values}
        case Checkpointed():
            run.checkpoint = event.model_dump(mode="json")
        case Finished():
            run.summary = event.summary
            run.artifacts = {name: artifact.model_dump(mode="json") for name, artifact in event.artifacts.items()}
            # A cancel that was acknowledged before the end was told wins.
            _end(session, run, "cancelled" if run.stop_reason == "cancel" else "completed", at)
        case Failed() if run.stop_reason != "cancel":
            _fail(session, run, event.code, event.message, at)
        case Cancelled() if run.stop_reason == "shutdown":
            _again(run)
        case Failed() | Cancelled():
            _end(session, run, "cancelled", at)
        case _:
            pass


def _progress(before: dict[str, Any], event: Progressed, at: datetime) -> dict[str, Any]:
    """Keep when the stage began and with how much done: from there its pace is told."""
    since = {"since": at.isoformat(), "done_at_first": event.done}
    if before.get("stage") == event.stage and before["done"] <= event.done:
        since = {"since": before["since"], "done_at_first": before["done_at_first"]}
    return {**before, **event.model_dump(mode="json", exclude={"type"}), **since}


def _again(run: Run) -> None:
    """Queue the next attempt."""
    run.stop_reason = run.stop_requested_at = None
    run.attempt, run.handle, run.node, run.cursor = run.attempt + 1, None, None, 0


def _fail(session: Session, run: Run, code: str, message: str, at: datetime | None = None) -> None:
    # What a process printed may hold a NUL, which no text of PostgreSQL can.
    run.failure_code, run.failure_message = code, message.replace("\0", "\ufffd")
    _end(session, run, "failed", at)


def _end(session: Session, run: Run, status: str, at: datetime | None = None) -> None:
    run.status, run.finished_at = status, at or utc_now()
    run.lease_owner = run.lease_expires_at = None
    _record(session, run, "ended", {"status": status})


def _record(
    session: Session,
    run: Run,
    type_: str,
    payload: dict[str, Any],
    *,
    seq: int | None = None,
    at: datetime | None = None,
) -> None:
    run.event_count += 1
    run.version += 1
    session.add(
        RunEvent(
            run_id=run.id,
            number=run.event_count,
            attempt=run.attempt,
            seq=seq,
            at=at or utc_now(),
            type=type_,
            payload=payload,
        )
    )


def _payload(event: Event) -> dict[str, Any]:
    return event.model_dump(mode="json", exclude={"type"})


def _locked(session: Session, run_id: uuid.UUID) -> Run:
    return session.scalars(sa.select(Run).where(Run.id == run_id).with_for_update()).one()


def _owned(session: Session, run_id: uuid.UUID, worker: str, attempt: int | None = None) -> Run:
    run = _locked(session, run_id)
    if run.lease_owner != worker or run.status not in UNFINISHED or attempt not in (None, run.attempt):
        raise LostLease
    return run


def _leased(run: Run) -> bool:
    return run.lease_expires_at is not None and run.lease_expires_at > utc_now()
