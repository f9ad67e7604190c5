"""Workers that share one machine and one store, and the means to let time pass without waiting."""

import itertools
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from tests.control.fakes import FakeLauncher, train_spec

from slmforge.blobs import LocalBlobStore
from slmforge.contract.spec import RunSpec
from slmforge.control.database import Database
from slmforge.control.runs import service as runs
from slmforge.control.runs.reconciler import Limits, Reconciler
from slmforge.control.tables import Run, RunEvent


class Machine:
    """A database, a store and a launcher; `worker()` is one more worker process over them."""

    def __init__(self, database: Database, store: LocalBlobStore, launcher: FakeLauncher) -> None:
        self.database = database
        self.store = store
        self.launcher = launcher
        self.ended: list[tuple[uuid.UUID, str]] = []
        self.follow: Callable[[], None] = lambda: None
        self._names = map("worker-{}".format, itertools.count(1))

    def worker(self, *, slots: int = 1, node: str = "here") -> Reconciler:
        limits = Limits(slots=slots, lease_seconds=10, grace_seconds=3.5, cpu_threads=1)
        followers = {"train": [self._followed], "profile": [self._followed]}
        return Reconciler(
            self.database, self.store, self.launcher, followers, limits, worker=next(self._names), node=node
        )

    def submit(self, spec: RunSpec | None = None) -> uuid.UUID:
        with self.database.write() as session:
            return runs.submit(session, spec or train_spec()).id

    def cancel(self, run_id: uuid.UUID) -> None:
        with self.database.write() as session:
            runs.cancel(session, run_id)

    def run(self, run_id: uuid.UUID) -> Run:
        with self.database.read() as session:
            return session.get_one(Run, run_id)

    def events(self, run_id: uuid.UUID) -> list[RunEvent]:
        with self.database.read() as session:
            return list(session.scalars(sa.select(RunEvent).where(RunEvent.run_id == run_id).order_by(RunEvent.number)))

    def story(self, run_id: uuid.UUID) -> list[str]:
        """The types of the run's events; fails unless they are numbered 1 to n."""
        events = self.events(run_id)
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        assert len(events) == self.run(run_id).event_count
        return [event.type for event in events]

    def expire_leases(self) -> None:
        """As if the workers that hold them had been silent for too long."""
        self._set(lease_expires_at=datetime.now(UTC) - timedelta(seconds=1))

    def let_grace_pass(self) -> None:
        self._set(stop_requested_at=datetime.now(UTC) - timedelta(seconds=60))

    def _set(self, **values: object) -> None:
        column = Run.__table__.c[next(iter(values))]
        with self.database.write() as session:
            session.execute(sa.update(Run).where(column.is_not(None)).values(**values))

    def _followed(self, session: object, run: Run) -> None:
        self.follow()
        self.ended.append((run.id, run.status))


@pytest.fixture
def machine(database: Database, store: LocalBlobStore, launcher: FakeLauncher) -> Machine:
    return Machine(database, store, launcher)
