"""Whatever happens to a run, in whatever order: a state machine that hypothesis drives into corners."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy.orm import Session
from tests.control.fakes import STARTED, checkpoint, train_spec

from slmforge.contract.events import Cancelled, Event, Failed, Finished, Record
from slmforge.control.database import Database
from slmforge.control.errors import Conflict
from slmforge.control.runs import service as runs
from slmforge.control.runs.service import LostLease
from slmforge.control.tables import Run, RunEvent

LEGAL = {
    "created": {"created", "running", "completed", "failed", "cancelled"},
    "running": {"running", "completed", "failed", "cancelled"},
    "completed": {"completed"},
    "failed": {"failed"},
    "cancelled": {"cancelled"},
}
WORKERS = st.sampled_from(["a", "b"])
ENDS = st.sampled_from(
    [Finished(summary={}, artifacts={}), Failed(code="diverged", message="No number."), Cancelled(step=1)]
)


class AnyOrder(RuleBasedStateMachine):
    """One run, two workers, one process for each attempt. The model knows what was published and who is alive."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        with self.database.write() as session:
            self.run_id = runs.submit(session, train_spec()).id
        self.status = "created"
        self.streams: dict[int, list[Event]] = {}  # what the process of each attempt has published
        self.processes: list[int] = []  # the attempts whose process is alive
        self.launches: list[int] = []
        self.followed: list[str] = []
        self.cancel_acknowledged = False

    def teardown(self) -> None:
        with self.database.write() as session:
            session.execute(sa.delete(Run))

    @rule(worker=WORKERS)
    def claim(self, worker: str) -> None:
        with self.database.write() as session:
            runs.claim(session, worker=worker, node="here", lease_seconds=60, slots=1)

    @rule()
    def leases_expire(self) -> None:
        with self.database.write() as session:
            past = datetime.now(UTC) - timedelta(seconds=1)
            session.execute(sa.update(Run).where(Run.lease_owner.is_not(None)).values(lease_expires_at=past))

    @rule(worker=WORKERS, dies=st.booleans())
    def launch(self, worker: str, dies: bool) -> None:
        """As the reconciler does it; `dies`: the worker is killed before it can note that it did."""
        run = self.read()
        if run.lease_owner != worker or run.status not in runs.UNFINISHED or run.handle or run.stop_reason:
            return
        if run.attempt not in self.processes and run.attempt not in self.streams:
            self.processes.append(run.attempt)
            self.launches.append(run.attempt)
        if not dies:
            handle = f"{run.id.hex}-{run.attempt}"
            self.attempted(lambda s: runs.launched(s, run.id, worker, run.attempt, node="here", handle=handle))

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), events=st.lists(st.builds(checkpoint, st.integers(1, 9)), max_size=2))
    def process_speaks(self, data: st.DataObject, events: list[Event]) -> None:
        attempt = data.draw(st.sampled_from(self.processes))
        self.streams.setdefault(attempt, [STARTED]).extend(events)

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), end=ENDS)
    def process_ends(self, data: st.DataObject, end: Event) -> None:
        attempt = data.draw(st.sampled_from(self.processes))
        self.streams.setdefault(attempt, [STARTED]).append(end)
        self.processes.remove(attempt)

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def process_is_killed(self, data: st.DataObject) -> None:
        self.processes.remove(data.draw(st.sampled_from(self.processes)))

    @rule(worker=WORKERS, attempt=st.integers(1, 4), skip=st.integers(-1, 1))
    def fold(self, worker: str, attempt: int, skip: int) -> None:
        """Fold one event as one segment; not always the one whose turn it is."""
        run = self.read()
        stream = self.streams.get(attempt, [])
        number = run.cursor + 1 + skip
        if not 1 <= number <= len(stream):
            return
        record = Record(seq=number, at=datetime.now(UTC), event=stream[number - 1])
        self.attempted(lambda s: runs.fold(s, run.id, worker, attempt, number, [record], self.follow))

    @rule(worker=WORKERS, code=st.sampled_from([None, -9, 0, 1]))
    def settle(self, worker: str, code: int | None) -> None:
        """As the reconciler does it: only once the process is gone and all that it said is folded."""
        run = self.read()
        if run.handle and run.attempt not in self.processes and run.cursor == len(self.streams.get(run.attempt, [])):
            self.attempted(lambda s: runs.exited(s, run.id, worker, run.attempt, code, "", self.follow))

    @rule()
    def cancel(self) -> None:
        try:
            with self.database.write() as session:
                runs.cancel(session, self.run_id)
        except Conflict:
            assert self.read().status not in runs.UNFINISHED
        else:
            self.cancel_acknowledged = True

    @rule(worker=WORKERS)
    def cancelled_before_launch(self, worker: str) -> None:
        run = self.read()
        if run.stop_reason == "cancel" and run.handle is None:
            self.attempted(lambda s: runs.cancelled_before_launch(s, run.id, worker))

    @rule(worker=WORKERS)
    def shutdown(self, worker: str) -> None:
        self.attempted(lambda s: runs.interrupt(s, self.run_id, worker))

    @rule(worker=WORKERS)
    def release(self, worker: str) -> None:
        self.attempted(lambda s: runs.release(s, worker))

    @invariant()
    def nothing_is_broken(self) -> None:
        with self.database.read() as session:
            run = session.get_one(Run, self.run_id)
            events = session.execute(sa.select(RunEvent.number, RunEvent.type).order_by(RunEvent.number)).all()
        ended = run.status not in runs.UNFINISHED
        assert run.status in LEGAL[self.status], "transitions are legal and ends are final"
        assert [number for number, _ in events] == list(range(1, run.event_count + 1)), "numbers have no gaps"
        assert [type_ for _, type_ in events].count("ended") == ended
        assert len(self.launches) == len(set(self.launches)), "no attempt has two processes"
        if self.cancel_acknowledged:
            assert run.status == "cancelled" or run.stop_reason == "cancel"
        if ended:
            assert (run.lease_owner, run.lease_expires_at) == (None, None)
            assert run.finished_at is not None
        assert self.followed in ([], [run.status])
        self.status = run.status

    def read(self) -> Run:
        with self.database.read() as session:
            return session.get_one(Run, self.run_id)

    def attempted(self, change: Callable[[Session], Any]) -> None:
        try:
            with self.database.write() as session:
                change(session)
        except LostLease:
            pass

    def follow(self, session: Session, run: Run) -> None:
        self.followed.append(run.status)


def test_no_order_of_events_breaks_a_run(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    sa.event.listen(sqlite.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
    monkeypatch.setattr(AnyOrder, "database", sqlite, raising=False)
    run_state_machine_as_test(
        AnyOrder, settings=settings(max_examples=200, stateful_step_count=30, deadline=None, database=None)
    )
