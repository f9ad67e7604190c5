"""`slmforge demo`: the whole product once, on the project's own tickets, in a data folder of its own."""

import sys
from pathlib import Path

from slmforge.clients.answers import ENDED
from slmforge.clients.display import Display
from slmforge.clients.errors import BadUsage
from slmforge.clients.flow import Job, cancel, run_job
from slmforge.clients.http import Client
from slmforge.clients.run import show
from slmforge.clients.server import OwnServer, data_folder

TICKETS = Path("examples", "support_tickets")
BASE_MODEL = "scratch-1m"
# The demo keeps to its folder, whatever else is configured for this user.
EMBEDDED = {"SLMFORGE_DATABASE_URL": "", "SLMFORGE_STORAGE_URL": "", "SLMFORGE_PUBLIC_URL": ""}


def demo(*, stay: bool) -> str | None:
    """Run it. With `stay` the server answers until Ctrl-C. Returns what was wrong, or None. Raises `ClientError`."""
    tickets = find_tickets()
    job = Job(
        train=tickets / "train.csv",
        eval=tickets / "eval.csv",
        base=BASE_MODEL,
        settings={},
        mapping={},
        name="Support tickets",
    )
    display = Display(sys.stdout)
    display.say("Support tickets: from a file to an evaluated model, over HTTP, on this machine.", style="bold")
    with OwnServer(data_folder() / "demo", EMBEDDED) as server, Client(server.url) as client:
        clear_leftovers(client, display)
        outcome = run_job(client, job, display)
        show(outcome, display)
        show_docs(client, display)
        if stay:
            _stay(server, display)
    return outcome.problem


def find_tickets() -> Path:
    """The demo's data, in the present folder or in the checkout that this package runs from. Raises `BadUsage`."""
    for root in (Path.cwd(), Path(__file__).parents[3]):
        if (root / TICKETS / "train.csv").is_file() and (root / TICKETS / "eval.csv").is_file():
            return root / TICKETS
    raise BadUsage(f"The demo's data ({TICKETS}/train.csv and eval.csv) is not here; run it in the project's folder.")


def clear_leftovers(client: Client, display: Display) -> None:
    """Cancel what a demo that was killed has left to be gone on with: it would come before ours."""
    for experiment in client.list_experiments():
        if experiment.status not in ENDED:
            cancel(client, experiment.experiment_id, display)


def show_docs(client: Client, display: Display) -> None:
    """Say where the API describes itself, having looked. Raises `ClientError` when it does not answer there."""
    docs = f"{client.base_url}/docs"
    client.look_at("/docs")
    display.say(f"The API is running: {docs} answers.")


def _stay(server: OwnServer, display: Display) -> None:
    display.say("Press Ctrl-C to stop.")
    try:
        server.wait()
    except KeyboardInterrupt:
        display.say("Stopping …")
