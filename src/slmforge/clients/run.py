"""`slmforge run`: one job against a server that runs, or against one started for it and stopped again."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slmforge.clients.display import Display
from slmforge.clients.flow import Job, Outcome, run_job
from slmforge.clients.http import Client
from slmforge.clients.server import OwnServer, data_folder, running_server


def run(job: Job, *, server: str | None, data: Path | None, as_json: bool) -> str | None:
    """Do the job and show how it ended. Returns what was wrong, as a sentence, or None. Raises `ClientError`."""
    display = Display(sys.stderr if as_json else sys.stdout)
    with connected(server, data or data_folder(), display) as client:
        outcome = run_job(client, job, display)
        show(outcome, display)
    if as_json:
        sys.stdout.write(json.dumps(outcome.as_json()) + "\n")
        sys.stdout.flush()
    return outcome.problem


def show(outcome: Outcome, display: Display) -> None:
    """The end of a job: the comparison, and where things lie."""
    if outcome.evaluation is not None and outcome.evaluation.metrics:
        display.comparison(outcome.evaluation)
    if outcome.experiment.artifacts:
        display.artifacts(outcome.experiment)


@contextmanager
def connected(server: str | None, data: Path, display: Display) -> Iterator[Client]:
    """A client of `server`; without one, of a server that runs on the data folder; else of one of our own."""
    if address := server or running_server(data):
        with Client(address) as client:
            client.health()
            display.say(f"Using the server at {client.base_url}.")
            yield client
        return
    display.say(f"Starting a server on {data} …")
    with OwnServer(data) as own, Client(own.url) as client:
        yield client
