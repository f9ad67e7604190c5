"""What the control plane's tests share: databases of both kinds, a store, settings, a client, hand-written fakes."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.control.fakes import FakeLauncher
from tests.control.postgres import Cluster, cluster, programs

from slmforge.blobs import LocalBlobStore
from slmforge.control import migrate
from slmforge.control.app import create_app
from slmforge.control.database import Database
from slmforge.control.settings import Settings


def migrated(url: str) -> None:
    database = Database(url)
    migrate.upgrade(database)
    database.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A server whose databases are empty; one for each process that runs tests."""
    bin_ = programs()
    if bin_ is None:
        reason = "PostgreSQL is not installed (Debian: apt-get install postgresql)"
        if "postgres" in os.environ.get("SLMFORGE_TEST_REQUIRE", ""):
            pytest.fail(reason)
        pytest.skip(reason)
    with cluster(bin_) as running:
        yield running


@pytest.fixture(scope="session")
def migrated_postgres(postgres: Cluster) -> Iterator[str]:
    """The URL of a database to copy."""
    with postgres.database() as url:
        migrated(url)
        yield url


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to copy: faster than to migrate for each test."""
    path = tmp_path_factory.mktemp("template") / "slmforge.db"
    migrated(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Database]:
    """A database for what does not lock."""
    shutil.copy(migrated_sqlite, tmp_path / "test.db")
    yield from _open(f"sqlite:///{tmp_path / 'test.db'}")


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """Each of the two databases in turn, for whatever locks."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite")
        return
    postgres: Cluster = request.getfixturevalue("postgres")
    with postgres.database(like=request.getfixturevalue("migrated_postgres")) as url:
        yield from _open(url)


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Each of the two databases in turn, without any table."""
    if request.param == "sqlite":
        yield from _open(f"sqlite:///{tmp_path / 'empty.db'}")
        return
    postgres: Cluster = request.getfixturevalue("postgres")
    with postgres.database() as url:
        yield from _open(url)


@pytest.fixture
def store(tmp_path: Path) -> LocalBlobStore:
    return LocalBlobStore(tmp_path / "blobs")


@pytest.fixture
def launcher() -> FakeLauncher:
    return FakeLauncher()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The defaults over a folder of the test's own, whatever stands in the environment or in `.env`."""
    for name in [name for name in os.environ if name.startswith("SLMFORGE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return Settings(data=tmp_path / "data")


@pytest.fixture
def client(settings: Settings, migrated_sqlite: Path) -> Iterator[TestClient]:
    """The API over a migrated SQLite. A bug behind a 500 is raised here, not answered."""
    settings.data.mkdir()
    shutil.copy(migrated_sqlite, settings.data / "slmforge.db")
    with TestClient(create_app(settings), base_url="http://127.0.0.1:8000") as client:
        yield client


def _open(url: str) -> Iterator[Database]:
    database = Database(url)
    yield database
    database.close()
