"""The worker process: claims runs, launches them, folds what they say. Any number may run beside each other.

The composition root of the plane: the only place that knows who launches, and who follows which kind of run.
"""

import os
import signal
import socket
import threading
from types import FrameType

import structlog

from slmforge.blobs import open_store
from slmforge.control.database import Database
from slmforge.control.datasets import service as datasets
from slmforge.control.evaluations import service as evaluations
from slmforge.control.experiments import service as experiments
from slmforge.control.ids import new_id
from slmforge.control.launchers.local import LocalLauncher
from slmforge.control.lifeline import on_parent_gone
from slmforge.control.runs.reconciler import Limits, Reconciler
from slmforge.control.settings import Settings

TICK_SECONDS = 0.4
FOLLOWERS = {
    "profile": [datasets.follow],
    "train": [experiments.follow, evaluations.start_after_training],
}

log = structlog.get_logger()


def create_reconciler(settings: Settings, database: Database) -> Reconciler:
    """A reconciler for this machine, put together from the settings."""
    return Reconciler(
        database,
        open_store(settings.storage_url),
        LocalLauncher(settings.data / "processes"),
        FOLLOWERS,
        Limits(
            slots=settings.max_parallel_runs,
            lease_seconds=settings.lease_seconds,
            grace_seconds=settings.stop_grace_seconds,
            cpu_threads=max(1, len(os.sched_getaffinity(0)) // settings.max_parallel_runs),
        ),
        worker=new_id().hex,
        node=socket.gethostname(),
    )


def main() -> None:
    """Work until SIGTERM, SIGINT or the end of the parent; then stop what runs here, to go on later."""
    stopping = threading.Event()

    def stop(_signal: int = 0, _frame: FrameType | None = None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    on_parent_gone(stopping.set)
    settings = Settings()
    database = Database(settings.database_url)
    reconciler = create_reconciler(settings, database)
    while not stopping.wait(TICK_SECONDS):
        try:
            reconciler.tick()
        except Exception:
            # The database is away or busy: nothing was half done, the next round sees to it.
            log.exception("a round failed")
    reconciler.shutdown(settings.stop_grace_seconds + 1.5)
    database.close()


if __name__ == "__main__":
    main()
