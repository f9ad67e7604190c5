"""Runs as processes of this machine, which outlive the worker that started them.

A process holds a file lock for as long as it lives: the lock, not a pid that may have been given to another, says
whether it is there. It is taken before the process starts and handed down to it, so there is no moment at which a
second process of the same name could slip in, even if the worker dies between starting one and writing that down.
"""

import fcntl
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from slmforge.control.launchers.protocol import Alive, Exited, Resources

TAIL_BYTES = 4096
# The shell writes its own pid and becomes the command: the pid is on disk before any of our code runs in it.
_RECORD_PID = 'echo $$ > "$0" && exec "$@"'


class LocalLauncher:
    """Processes whose lock, pid, output and temporary files lie in `folder`. The handle is the name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def launch(self, name: str, command: list[str], needs: Resources) -> str:
        lock = os.open(self._path(name, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return name
        else:
            self._start(name, command, needs, lock)
            return name
        finally:
            os.close(lock)

    def poll(self, handle: str) -> Alive | Exited:
        child = self._children.get(handle)
        code = child.poll() if child else None
        if self._is_locked(handle):
            return Alive()
        if child and code is None:
            code = child.wait()  # the lock goes a moment before the parent can see the end
        return Exited(code)

    def stop(self, handle: str, *, force: bool) -> None:
        if not self._is_locked(handle):
            return
        with suppress(FileNotFoundError, ValueError, ProcessLookupError):
            pid = int(self._path(handle, "pid").read_text())
            os.killpg(pid, signal.SIGKILL if force else signal.SIGTERM)

    def handles(self) -> list[str]:
        return sorted(path.stem for path in self._folder.glob("*.lock"))

    def output_tail(self, handle: str) -> str:
        with suppress(FileNotFoundError), self._path(handle, "log").open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL_BYTES))
            return log.read(TAIL_BYTES).decode(errors="replace").strip()
        return ""

    def forget(self, handle: str) -> None:
        self._children.pop(handle, None)
        for kind in ("lock", "pid", "log"):
            self._path(handle, kind).unlink(missing_ok=True)
        shutil.rmtree(self._path(handle, "tmp"), ignore_errors=True)

    def _start(self, name: str, command: list[str], needs: Resources, lock: int) -> None:
        self._path(name, "pid").unlink(missing_ok=True)
        # Temporary files go where `forget` finds them: a killed process cannot clean up after itself.
        temporary = self._path(name, "tmp")
        temporary.mkdir(exist_ok=True)
        with self._path(name, "log").open("ab") as log:
            self._children[name] = subprocess.Popen(
                ["/bin/sh", "-c", _RECORD_PID, str(self._path(name, "pid")), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": str(needs.cpu_threads), "TMPDIR": str(temporary)},
                pass_fds=[lock],
                start_new_session=True,
            )

    def _is_locked(self, name: str) -> bool:
        try:
            lock = os.open(self._path(name, "lock"), os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(lock)

    def _path(self, name: str, kind: str) -> Path:
        return self._folder / f"{name}.{kind}"
