"""`python -m slmforge.control`: the API in this process, and a worker beside it that is started again if it dies.

Whatever ends this process ends the worker: in order on SIGTERM and SIGINT, through the lifeline on kill -9.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import uvicorn
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from slmforge.control.app import create_app
from slmforge.control.database import Database
from slmforge.control.identity import is_loopback
from slmforge.control.lifeline import on_parent_gone
from slmforge.control.migrate import upgrade
from slmforge.control.settings import Settings

WORKER_STOP_SECONDS = 15
RESTART_PAUSE_SECONDS = 1.0


def main() -> None:
    """Serve until told to stop. Ends with one sentence and exit code 2 when it cannot begin."""
    arguments = _arguments()
    if arguments.data:
        os.environ["SLMFORGE_DATA"] = str(Path(arguments.data).absolute())
    try:
        settings = Settings()
        _refuse_public_bind(arguments.host, settings)
        settings.data.mkdir(parents=True, exist_ok=True)
        database = Database(settings.database_url)
        upgrade(database)
        database.close()
        listening = _listen(arguments.host, arguments.port)
    except (ValidationError, ValueError, RuntimeError, OSError, SQLAlchemyError) as error:
        sys.exit(f"slmforge: {_sentence(error)}")
    _serve(settings, listening, arguments.host, exit_with_parent=arguments.exit_with_parent)


def _serve(settings: Settings, listening: socket.socket, host: str, *, exit_with_parent: bool) -> None:
    port = listening.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="warning", timeout_graceful_shutdown=3))
    if exit_with_parent:
        on_parent_gone(lambda: setattr(server, "should_exit", True))
    # The server handles these signals while it runs and raises them again at its end, when the worker is yet to stop.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    worker = SupervisedWorker()
    url = f"http://{_in_url(host)}:{port}"
    # One that ends with its parent is that parent's alone; each other one may be used by any command.
    note = settings.data / (f"server-{os.getpid()}.json" if exit_with_parent else "server.json")
    _write_note(note, {"url": url, "pid": os.getpid()})
    sys.stdout.write(f"SLM Forge at {url}, documentation at {url}/docs, files in {settings.data}. Ctrl-C ends it.\n")
    sys.stdout.flush()
    try:
        server.run(sockets=[listening])
    finally:
        worker.stop()
        with suppress(OSError, ValueError):
            if json.loads(note.read_text())["pid"] == os.getpid():
                note.unlink()


def _write_note(path: Path, note: dict[str, object]) -> None:
    """Say where the server is, for commands that would use a running one. The latest server's note stands."""
    unfinished = path.with_suffix(f".{os.getpid()}.new")
    unfinished.write_text(json.dumps(note))
    unfinished.replace(path)


class SupervisedWorker:
    """The worker as a child process, started again whenever it ends unasked."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._child = self._start()
        self._thread = threading.Thread(target=self._watch, name="worker-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let it end in order: its runs are stopped, to go on later."""
        self._stopping.set()
        self._child.terminate()
        try:
            self._child.wait(WORKER_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()

    def _watch(self) -> None:
        while not self._stopping.is_set():
            self._child.wait()
            if not self._stopping.wait(RESTART_PAUSE_SECONDS):
                self._child = self._start()

    @staticmethod
    def _start() -> subprocess.Popen[bytes]:
        # A session of its own: a Ctrl-C in the terminal reaches us alone, and we end it in order.
        command = [sys.executable, "-m", "slmforge.control.worker"]
        return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="slmforge up", description="Run the API and a worker.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--data")
    parser.add_argument("--exit-with-parent", action="store_true", help="end when standard input does")
    return parser.parse_args()


def _refuse_public_bind(host: str, settings: Settings) -> None:
    if not is_loopback(host) and not settings.allow_public_bind:
        raise ValueError(
            f"listening on {host} would let anybody on the network in, because auth is none; "
            "use 127.0.0.1, or set SLMFORGE_ALLOW_PUBLIC_BIND=true if that is what you want."
        )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port} ({error.strerror}); choose another with --port.") from None
    return listening


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _sentence(error: Exception) -> str:
    if isinstance(error, ValidationError):
        found = error.errors()[0]
        return f"SLMFORGE_{'_'.join(map(str, found['loc'])).upper()}: {found['msg']}."
    if isinstance(error, SQLAlchemyError):
        return "the database cannot be opened; check SLMFORGE_DATABASE_URL and that it runs."
    return str(error)


if __name__ == "__main__":
    main()
