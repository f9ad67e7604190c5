"""A PostgreSQL of our own for the length of a test session: made in a temporary folder, gone afterwards.

It needs the server's programs and nothing else: no running service, no rights, no fixed port. Durability is off.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "200",
    "timezone": "Australia/Adelaide",  # far from UTC and half an hour off: who forgets the zone is seen
}


class Cluster:
    """A running server."""

    def __init__(self, port: int) -> None:
        self._url = f"postgresql+psycopg://postgres@127.0.0.1:{port}"
        self._admin = sa.create_engine(f"{self._url}/postgres", isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)

    @contextmanager
    def database(self, *, like: str | None = None) -> Iterator[str]:
        """The URL of a new database for the length of the block: an empty one, or a copy of the one at `like`."""
        name = f"test_{uuid.uuid4().hex}"
        template = like.rsplit("/", 1)[1] if like else "template1"
        self._run(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        yield f"{self._url}/{name}"
        self._run(f"DROP DATABASE {name} WITH (FORCE)")

    def _run(self, statement: str) -> None:
        with self._admin.connect() as connection:
            connection.execute(sa.text(statement))


def programs() -> Path | None:
    """The folder of initdb and postgres: the newest of Debian's, or where the PATH leads."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = str(debian[-1]) if debian else shutil.which("initdb")
    return Path(found).resolve().parent if found else None


@contextmanager
def cluster(bin_: Path) -> Iterator[Cluster]:
    """Make and run a server for the length of the block."""
    folder = Path(tempfile.mkdtemp(prefix="slmforge-postgres-"))
    as_user = _another_user(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    initdb = [
        str(bin_ / "initdb"),
        "-D",
        str(data),
        "-U",
        "postgres",
        "-A",
        "trust",
        "--no-sync",
        "-E",
        "UTF8",
        "--locale=C",
    ]
    subprocess.run(initdb, check=True, capture_output=True, cwd="/", **as_user)
    options = {**OPTIONS, "port": port, "unix_socket_directories": folder}
    start = [str(bin_ / "postgres"), "-D", str(data), *(f"-c{name}={value}" for name, value in options.items())]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(start, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **as_user)
    try:
        _wait_until_ready(server, data, folder / "log")
        yield Cluster(port)
    finally:
        server.send_signal(signal.SIGINT)  # ends without waiting for connections that are still open
        server.wait(30)
        shutil.rmtree(folder)


def _another_user(folder: Path) -> dict[str, Any]:
    """PostgreSQL refuses to run as root; hand the folder to a user that it accepts."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    user = names.get("postgres") or names["nobody"]
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _wait_until_ready(server: subprocess.Popen[bytes], data: Path, log: Path) -> None:
    # The server itself writes "ready" into the last line of its pid file.
    pid_file = data / "postmaster.pid"
    while not (pid_file.exists() and pid_file.read_text().splitlines()[-1].strip() == "ready"):
        try:
            server.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}")
