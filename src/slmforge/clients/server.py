"""The server that a command talks to: one that runs already on the data folder, or one that it starts for itself.

The server we start holds our end of a pipe as its standard input: it ends when we do, even if we are killed.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from slmforge.clients.errors import ClientError, ServerFailed
from slmforge.clients.http import Client

START_SECONDS = 60
STOP_SECONDS = 25
POLL_SECONDS = 0.05
_IN_ENV_FILE = re.compile(r"""^\s*(?:export\s+)?SLMFORGE_DATA\s*=\s*["']?([^"'#\n]+?)["']?\s*(?:#.*)?$""", re.MULTILINE)


def data_folder() -> Path:
    """The data folder that a server started here would take: of the environment, of `.env`, or `.slmforge`."""
    if named := os.environ.get("SLMFORGE_DATA"):
        return Path(named).absolute()
    env_file = Path(".env")
    found = _IN_ENV_FILE.search(env_file.read_text(encoding="utf-8")) if env_file.is_file() else None
    return Path(found[1] if found else ".slmforge").absolute()


def running_server(data: Path) -> str | None:
    """The address of a server that runs on this data folder and will go on running, if there is one.

    One that another command started for itself is not: it ends with that command.
    """
    note = _read_note(data / "server.json")
    if note is None or not _is_alive(note.pid):
        return None
    return note.url if _parts_answer(note.url) else None


class OwnServer:
    """A server on `data` for as long as the `with` block lasts.

    Raises `ServerFailed`, with the server's own sentence, when it does not come up. `environment` is added to ours.
    """

    url: str

    def __init__(self, data: Path, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        self._data = data
        self._environment = {**os.environ, **environment}
        self._log = data / "server.log"

    def __enter__(self) -> "OwnServer":
        require_server()
        try:
            self._process = self._start()
        except OSError as error:
            raise ServerFailed(f"The server cannot be started on {self._data}: {error.strerror}.") from None
        try:
            self.url = self._wait_until_it_serves()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it and all it started. Runs that are not done go on when a server next runs on this folder."""
        if self._process.stdin is not None:
            self._process.stdin.close()  # a server that is just coming up may not hear the signal, but will see this
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._note.unlink(missing_ok=True)

    def wait(self) -> None:
        """Block until the server ends by itself."""
        self._process.wait()

    @property
    def _note(self) -> Path:
        return self._data / f"server-{self._process.pid}.json"

    def _start(self) -> subprocess.Popen[bytes]:
        self._data.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "slmforge.control", "--port", "0", "--data", str(self._data)]
        with self._log.open("ab") as log:
            self._log_start_bytes = log.tell()
            return subprocess.Popen(
                [*command, "--exit-with-parent"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,  # a Ctrl-C in the terminal reaches us alone: we end it in order
            )

    def _wait_until_it_serves(self) -> str:
        give_up_at = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up_at:
            if self._process.poll() is not None:
                raise ServerFailed(self._last_words())
            note = _read_note(self._note)
            if note is not None and _parts_answer(note.url):
                return note.url
            time.sleep(POLL_SECONDS)
        raise ServerFailed(f"The server did not come up within {START_SECONDS} seconds; {self._log} may say why.")

    def _last_words(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._log_start_bytes)
            said = log.read().decode(errors="replace").strip().splitlines()
        return said[-1].removeprefix("slmforge: ") if said else f"The server ended at once; {self._log} may say why."


def require_server() -> None:
    """Raises `ServerFailed` when this installation holds the client alone."""
    if not all(map(importlib.util.find_spec, ("uvicorn", "torch"))):
        raise ServerFailed(
            "Only the client is installed here. Name a server with --server, or install one: "
            "pip install 'slmforge[server,train]'"
        )


@dataclass(frozen=True)
class _Note:
    """What a server writes down in its data folder while it runs."""

    url: str
    pid: int


def _read_note(path: Path) -> _Note | None:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        return _Note(str(note["url"]), int(note["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no server, or one that is just writing it


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _parts_answer(url: str) -> bool:
    try:
        with Client(url) as client:
            return client.health().status == "ok"
    except ClientError:
        return False
