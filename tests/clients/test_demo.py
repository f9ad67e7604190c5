import io
from pathlib import Path

import pytest

from slmforge.clients import demo
from slmforge.clients.display import Display
from slmforge.clients.errors import BadUsage, ClientError
from slmforge.clients.http import Client

from .conftest import Answer, FakeService, experiment


def test_the_tickets_of_the_checkout_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (demo.find_tickets() / "eval.csv").is_file()


def test_without_tickets_the_sentence_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "TICKETS", Path("no", "such", "folder"))
    with pytest.raises(BadUsage, match=r"no/such/folder/train\.csv and eval\.csv"):
        demo.find_tickets()


def test_what_a_killed_demo_left_to_be_gone_on_with_is_cancelled(client: Client, service: FakeService) -> None:
    left = [experiment(experiment_id=f"exp_{n}", status=s) for n, s in enumerate(["completed", "running", "failed"])]
    service.on("GET", "/experiments", Answer(left))
    service.on("POST", "/experiments/exp_1/cancel", Answer(left[1]))
    service.on("GET", "/experiments/exp_1", Answer(experiment(status="cancelled")))
    demo.clear_leftovers(client, Display(io.StringIO()))
    assert [asked.path for asked in service.asked if asked.method == "POST"] == ["/experiments/exp_1/cancel"]


def test_docs_that_do_not_answer_are_not_advertised(client: Client, service: FakeService) -> None:
    screen = io.StringIO()
    with pytest.raises(ClientError):
        demo.show_docs(client, Display(screen))
    assert screen.getvalue() == ""
    service.on("GET", "/docs", Answer(b"<html>"))
    demo.show_docs(client, Display(screen))
    assert screen.getvalue() == f"The API is running: {service.url}/docs answers.\n"
