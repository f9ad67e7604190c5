"""`slmforge run` and `slmforge demo` for real: processes, a server, a training, an evaluation, and what is left."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import IO

import pytest

from slmforge.clients.http import Client
from slmforge.clients.server import OwnServer

TOKEN_VARIABLE = "SLMFORGE_TEST_TOKEN"
GONE_WITHIN_SECONDS = 30
SLMFORGE = [sys.executable, "-c", "from slmforge.clients.cli import main; main()"]


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """An environment whose token every process started from it inherits; none of them may be left at the end."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SLMFORGE_")}
    token = uuid.uuid4().hex
    yield {**ours, TOKEN_VARIABLE: token, "OMP_NUM_THREADS": "1"}
    for pid in with_token(token):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    """Two labels that a few words tell apart."""
    path = tmp_path / "tickets.csv"
    write_tickets(path, 60)
    return path


def write_tickets(path: Path, rows: int) -> None:
    kinds = [("late and has not come", "delivery"), ("broken and has a crack", "damage")]
    things = ["parcel", "order", "box", "lamp", "chair"]
    lines = [f"My {things[n // 2 % 5]} number {n} is {kinds[n % 2][0]},{kinds[n % 2][1]}\n" for n in range(rows)]
    path.write_text("text,label\n" + "".join(lines))


def with_token(token: str) -> list[int]:
    """The processes of this machine that inherited the token and still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if token.encode() in (folder / "environ").read_bytes() and " Z " not in (folder / "stat").read_text():
                found.append(int(folder.name))
        except OSError:
            continue  # gone meanwhile, or not ours to look at
    return found


def wait_until_gone(token: str) -> list[int]:
    """The processes that are left after a while; it ends as soon as there is none."""
    give_up_at = time.monotonic() + GONE_WITHIN_SECONDS
    while (left := with_token(token)) and time.monotonic() < give_up_at:
        time.sleep(0.05)
    return left


def test_a_file_becomes_an_evaluated_model_with_one_command(
    environment: dict[str, str], tickets: Path, tmp_path: Path
) -> None:
    command = ["run", "--json", "--train", tickets, "--set", "num_epochs=1", "--data", tmp_path / "data"]
    done = subprocess.run([*SLMFORGE, *map(str, command)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert wait_until_gone(environment[TOKEN_VARIABLE]) == []
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"experiment_id", "status", "metrics", "artifacts"}
    assert result["experiment_id"].startswith("exp_")
    assert result["status"] == "completed"
    assert {"accuracy", "macro_f1"} <= set(result["metrics"])
    for metric in result["metrics"].values():
        assert set(metric) == {"base", "tuned", "difference", "interval", "verdict"}
        low, high = metric["interval"]
        assert low <= metric["difference"] <= high
        assert metric["verdict"] in {"better", "worse", "not distinguishable"}
    model = Path(result["artifacts"]["model"].removeprefix("file://"))
    assert (model / "model.safetensors").is_file()
    for told in ("60 rows of classification", "2 labels: damage 30, delivery 30", "held-out loss", "95% interval"):
        assert told in done.stderr


def test_an_interrupt_cancels_the_training_and_leaves_no_process(
    environment: dict[str, str], tickets: Path, tmp_path: Path
) -> None:
    options = ["--json", "--train", str(tickets), "--set", "num_epochs=1000", "--data", str(tmp_path / "data")]
    with subprocess.Popen(
        [*SLMFORGE, "run", *options], stdout=PIPE, stderr=PIPE, text=True, env=environment
    ) as command:
        read_until(command.stderr, "training")
        assert len(with_token(environment[TOKEN_VARIABLE])) >= 4  # the command, the API, the worker, the training
        command.send_signal(signal.SIGINT)
        stdout, stderr = command.communicate()
    assert command.returncode == 130, stderr
    assert stdout == ""
    assert "Cancelling exp_" in stderr
    assert "Traceback" not in stderr
    assert wait_until_gone(environment[TOKEN_VARIABLE]) == []
    with OwnServer(tmp_path / "data") as server, Client(server.url) as client:
        assert [experiment.status for experiment in client.list_experiments()] == ["cancelled"]


def test_a_demo_that_is_killed_leaves_no_process_and_the_next_one_works(
    environment: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "examples" / "support_tickets"
    folder.mkdir(parents=True)
    write_tickets(folder / "train.csv", 60)
    write_tickets(folder / "eval.csv", 20)
    demo = [*SLMFORGE, "demo"]
    with subprocess.Popen(demo, stdout=PIPE, stderr=PIPE, text=True, env=environment, cwd=tmp_path) as killed:
        read_until(killed.stdout, "reading rows", "learning the tokenizer", "training")
        killed.kill()
        killed.communicate()
    assert wait_until_gone(environment[TOKEN_VARIABLE]) == []
    done = subprocess.run(demo, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Base against tuned on 20 held-out rows" in done.stdout
    assert "/docs answers" in done.stdout
    assert "Press Ctrl-C" not in done.stdout
    assert wait_until_gone(environment[TOKEN_VARIABLE]) == []
    assert (tmp_path / ".slmforge" / "demo").is_dir()


def read_until(lines: IO[str] | None, *words: str) -> None:
    """Read until a line begins with one of the words. Fails when the lines end before."""
    assert lines is not None
    seen = []
    for line in lines:
        if line.startswith(words):
            return
        seen.append(line)
    pytest.fail("".join(seen))
