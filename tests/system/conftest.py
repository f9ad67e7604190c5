"""A real server with a real worker and real trainers, which the tests may kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

PATIENCE_SECONDS = 90
ROWS = "text,category\n" + "".join(
    f"where is parcel number {n},delivery\nplease pay back order {n},refund\nthe app stops at page {n},crash\n"
    for n in range(40)
)


def poll(condition: Callable[[], Any], what: str) -> Any:
    """Poll until the condition holds; the bound is there only to end a test that hangs."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited in vain for {what}")


class Server:
    """`python -m slmforge.control` on a data folder of its own, and everything that descends from it."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.http = httpx2.Client(timeout=30)
        self.start()

    def start(self) -> None:
        environment = {**os.environ, "SLMFORGE_DATA": str(self.data), "SLMFORGE_LEASE_SECONDS": "3"}
        with (self.data.parent / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "slmforge.control", "--port", "0"],
                env=environment,
                stderr=log,
                start_new_session=True,
            )
        note = self.data / "server.json"

        def answers() -> bool:
            with suppress(OSError, ValueError, httpx2.HTTPError):
                found = json.loads(note.read_text())
                self.http.base_url = found["url"]
                return bool(found["pid"] == self.process.pid and self.http.get("/health").json()["compute"] == "ok")
            return False

        poll(answers, "the server")

    def processes(self, *words: str) -> list[int]:
        """The live processes that have our data folder in their environment and all the words in their command."""
        found = []
        for folder in Path("/proc").iterdir():
            with suppress(OSError):
                if not folder.name.isdigit() or str(self.data).encode() not in (folder / "environ").read_bytes():
                    continue
                if all(word.encode() in (folder / "cmdline").read_bytes() for word in words):
                    found.append(int(folder.name))
        return found

    def trainers(self) -> list[int]:
        return self.processes("slmforge.training")

    def workers(self) -> list[int]:
        return self.processes("slmforge.control.worker")

    def create_experiment(self, **config: Any) -> str:
        upload = self.http.post("/datasets/upload", files={"file": ("rows.csv", ROWS.encode())})
        wanted = {
            "name": "survivor",
            "base_model_id": "scratch-1m",
            "training_dataset_id": upload.json()["dataset_id"],
            "training_config": {"checkpoint_every_seconds": 1, **config},
        }
        answer = self.http.post("/experiments", json=wanted)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["experiment_id"])

    def experiment(self, experiment_id: str) -> dict[str, Any]:
        return dict(self.http.get(f"/experiments/{experiment_id}").json())

    def event_types(self, experiment_id: str) -> list[str]:
        events = self.http.get(f"/experiments/{experiment_id}/events?limit=10000").json()
        assert [event["number"] for event in events] == list(range(1, len(events) + 1))
        return [event["type"] for event in events]

    def wait_for_status(self, experiment_id: str, *statuses: str) -> dict[str, Any]:
        poll(lambda: self.experiment(experiment_id)["status"] in statuses, f"{statuses}")
        return self.experiment(experiment_id)

    def wait_for_checkpoint(self, experiment_id: str) -> None:
        poll(lambda: "checkpointed" in self.event_types(experiment_id), "a checkpoint")

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def kill_everything(self) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(60)
        self.http.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "data")
    yield server
    server.kill_everything()


@pytest.fixture
def wait_for() -> Callable[..., Any]:
    return poll
