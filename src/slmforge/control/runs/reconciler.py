"""The reconciler: brings every run one step nearer to what it should be, again and again.

For each run it holds a lease on: fold what the run said, start its process if there is none, settle it if the process
is gone, stop it if somebody asked. Each step is safe to repeat and safe to be cut off in; nothing slow is done within
a transaction. Rows are changed by `runs.service` alone.
"""

import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog
from pydantic import ValidationError
from sqlalchemy.orm import Session

from slmforge.blobs import BlobStore
from slmforge.contract.events import FailureCode
from slmforge.contract.run_folder import RunFolder, UnreadableEvents
from slmforge.control.database import Database
from slmforge.control.launchers.protocol import Alive, Exited, Launcher, Resources
from slmforge.control.runs import service as runs
from slmforge.control.runs.service import Follow, LostLease
from slmforge.control.tables import Run, Worker, utc_now

log = structlog.get_logger()


@dataclass(frozen=True)
class Limits:
    """How the worker works: see the settings of the same names."""

    slots: int
    lease_seconds: float
    grace_seconds: float
    cpu_threads: int


class Reconciler:
    """One worker's hands. `followers` hear, in the same transaction, of each run of their kind that a process ended."""

    def __init__(
        self,
        database: Database,
        store: BlobStore,
        launcher: Launcher,
        followers: Mapping[str, Sequence[Follow]],
        limits: Limits,
        *,
        worker: str,
        node: str,
    ) -> None:
        self._database = database
        self._store = store
        self._launcher = launcher
        self._followers = followers
        self._limits = limits
        self._worker = worker
        self._node = node
        self._launches = True
        self._asked_to_stop: set[str] = set()
        self._leaving_since: dict[str, float] = {}

    def tick(self) -> int:
        """One round over all runs that are ours to look after; returns how many those are."""
        with self._database.write() as session:
            session.merge(Worker(id=self._worker, node=self._node, seen_at=utc_now()))
            ids = runs.claim(
                session,
                worker=self._worker,
                node=self._node,
                lease_seconds=self._limits.lease_seconds,
                slots=self._limits.slots,
            )
        for run_id in ids:
            try:
                self._step(run_id)
            except LostLease:
                log.info("let go of a run", run=str(run_id))
            except Exception:
                # One run that cannot be stepped must not keep the others from going on; the next round tries again.
                log.exception("a step failed", run=str(run_id))
        self._sweep()
        return len(ids)

    def shutdown(self, deadline_seconds: float) -> None:
        """Stop every process of ours so that its run goes on later, then give the leases back."""
        self._launches = False
        self._sweep()
        deadline = time.monotonic() + deadline_seconds
        while time.monotonic() < deadline and (
            (at_work := self._at_work()) or self._asked_to_stop or self._leaving_since
        ):
            for run_id in at_work:
                try:
                    with self._database.write() as session:
                        runs.interrupt(session, run_id, self._worker)
                    self._step(run_id)
                except LostLease:
                    continue
                except Exception:
                    log.exception("a run could not be interrupted", run=str(run_id))
            self._sweep()
            time.sleep(0.1)
        with self._database.write() as session:
            runs.release(session, self._worker)

    def _at_work(self) -> list[uuid.UUID]:
        with self._database.write() as session:
            return runs.claim(
                session, worker=self._worker, node=self._node, lease_seconds=self._limits.lease_seconds, slots=None
            )

    def _step(self, run_id: uuid.UUID) -> None:
        run = self._read(run_id)
        try:
            self._advance(run)
        except UnreadableEvents as error:
            log.exception("a stream cannot be read", run=str(run_id))
            self._fail(run, "internal_error", f"{error} Its process is ended; look into the worker's log.")

    def _advance(self, run: Run) -> None:
        run = self._fold_news(run)
        if run.status not in runs.UNFINISHED:
            return
        if run.handle is not None:
            self._look_after(run, run.handle)
        elif run.stop_reason == "cancel":
            with self._database.write() as session:
                runs.cancelled_before_launch(session, run.id, self._worker)
        elif self._launches:
            self._launch(run)

    def _launch(self, run: Run) -> None:
        folder = RunFolder(self._store, run.id.hex, run.attempt)
        try:
            folder.write_spec(runs.spec_of(run))
        except ValidationError:
            self._fail(run, "invalid_spec", "This version cannot read what the run is to do; create it anew.")
            return
        command = [sys.executable, "-m", "slmforge.training", folder.url]
        name, needs = f"{run.id.hex}-{run.attempt}", Resources(cpu_threads=self._limits.cpu_threads)
        try:
            handle = self._launcher.launch(name, command, needs)
        except OSError as error:
            self._fail(run, "launch_failed", f"The process could not be started: {error.strerror or error}")
            return
        with self._database.write() as session:
            runs.launched(session, run.id, self._worker, run.attempt, node=self._node, handle=handle)

    def _look_after(self, run: Run, handle: str) -> None:
        state = self._launcher.poll(handle)
        if isinstance(state, Alive):
            if run.stop_requested_at is not None:
                waited = (utc_now() - run.stop_requested_at).total_seconds()
                self._stop(handle, force=waited > self._limits.grace_seconds)
            return
        # What it published between our last look and its end comes first.
        run = self._fold_news(run)
        if run.status in runs.UNFINISHED and run.handle == handle:
            self._settle(run, handle, state)

    def _stop(self, handle: str, *, force: bool) -> None:
        if force or handle not in self._asked_to_stop:
            self._launcher.stop(handle, force=force)
            self._asked_to_stop.add(handle)

    def _settle(self, run: Run, handle: str, state: Exited) -> None:
        output = self._launcher.output_tail(handle)
        with self._database.write() as session:
            runs.exited(session, run.id, self._worker, run.attempt, state.code, output, self._follow)

    def _fail(self, run: Run, code: FailureCode, message: str) -> None:
        with self._database.write() as session:
            runs.fail(session, run.id, self._worker, run.attempt, code, message, self._follow)

    def _fold_news(self, run: Run) -> Run:
        folder = RunFolder(self._store, run.id.hex, run.attempt)
        for segment, records in folder.segments_after(run.cursor):
            with self._database.write() as session:
                run = runs.fold(session, run.id, self._worker, run.attempt, segment, records, self._follow)
            if run.status not in runs.UNFINISHED:
                break
        return run

    def _sweep(self) -> None:
        """Processes whose run has ended or moved on: see them out, then remove what was kept of them."""
        for handle in self._launcher.handles():
            run_hex, _, attempt = handle.partition("-")
            with self._database.read() as session:
                if runs.is_current(session, uuid.UUID(run_hex), int(attempt)):
                    continue
            if isinstance(self._launcher.poll(handle), Exited):
                self._launcher.forget(handle)
                self._asked_to_stop.discard(handle)
                self._leaving_since.pop(handle, None)
                continue
            since = self._leaving_since.setdefault(handle, time.monotonic())
            if time.monotonic() - since > self._limits.grace_seconds:
                self._launcher.stop(handle, force=True)

    def _follow(self, session: Session, run: Run) -> None:
        for follow in self._followers.get(run.kind, ()):
            follow(session, run)

    def _read(self, run_id: uuid.UUID) -> Run:
        with self._database.read() as session:
            return session.get_one(Run, run_id)
