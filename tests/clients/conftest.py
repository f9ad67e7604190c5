"""A service by hand: it answers what a test tells it to, and remembers what it was asked."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from slmforge.clients.http import Client


@dataclass(frozen=True)
class Answer:
    """`status` None drops the connection without a word."""

    body: Any = None
    status: int | None = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class FakeService:
    """Answers by method and path; of several answers each is given once, and the last one from then on."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._answers: dict[tuple[str, str], list[Answer]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def on(self, method: str, path: str, *answers: Answer) -> None:
        self._answers[method, path] = list(answers)

    def asked_for(self, method: str, path: str) -> list[Asked]:
        return [asked for asked in self.asked if (asked.method, asked.path) == (method, path)]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(service) -> type[BaseHTTPRequestHandler]:  # noqa: N805  # `self` is the handler's, below
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet: else each answer waits for a delayed acknowledgement

            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self._answer()

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                service.asked.append(Asked(self.command, self.path, dict(self.headers), body))
                answer = service._next(self.command, self.path)
                if answer.status is None:
                    self.close_connection = True
                    return
                content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                for name, value in (answer.headers | {"Content-Length": str(len(content))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name is the base class's
                pass

        return Handler

    def _next(self, method: str, path: str) -> Answer:
        answers = self._answers.get((method, path))
        if not answers:
            return Answer({"detail": f"no answer to {method} {path}"}, 404)
        return answers.pop(0) if len(answers) > 1 else answers[0]


HEALTHY = Answer({"status": "ok", "database": "ok", "storage": "ok", "compute": "ok"})


def dataset(**changed: Any) -> dict[str, Any]:
    return {
        "dataset_id": "ds_1",
        "name": "tickets",
        "filename": "tickets.csv",
        "row_count": 60,
        "invalid_rows": 0,
        "format": "csv",
        "layout": "classification",
        "mapping": {"text": "message", "label": "label"},
        "issues": [],
        "profile_status": "completed",
        "profile": None,
        "a_field_of_a_later_version": 1,
    } | changed


def experiment(**changed: Any) -> dict[str, Any]:
    return {
        "experiment_id": "exp_1",
        "name": "tickets",
        "status": "created",
        "progress": None,
        "base_model_id": "scratch-1m",
        "eval_dataset_id": None,
        "training_config": {"method": "full", "num_epochs": 1.0, "held_out_fraction": 0.1},
        "actual": None,
        "model_id": None,
        "evaluations": [],
        "artifacts": {},
        "failure": None,
    } | changed


def evaluation(**changed: Any) -> dict[str, Any]:
    return {
        "evaluation_id": "eval_1",
        "status": "completed",
        "progress": None,
        "rows": 6,
        "metrics": {},
        "sample_outputs": [],
        "failure": None,
    } | changed


@pytest.fixture
def service() -> Iterator[FakeService]:
    fake = FakeService()
    fake.on("GET", "/health", HEALTHY)
    yield fake
    fake.close()


@pytest.fixture
def pauses() -> list[float]:
    """The waits that a client would have made."""
    return []


@pytest.fixture
def client(service: FakeService, pauses: list[float]) -> Iterator[Client]:
    with Client(service.url, pause=pauses.append) as connected:
        yield connected
