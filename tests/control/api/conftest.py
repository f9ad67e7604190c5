"""The API over a real database, and a hand that plays the worker and the trainer."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from slmforge.blobs import BlobRef
from slmforge.contract.events import Checkpointed, KnownEvent, Record, Started
from slmforge.contract.spec import ArtifactRef
from slmforge.control.app import create_app
from slmforge.control.database import Database
from slmforge.control.migrate import upgrade
from slmforge.control.runs import service as runs
from slmforge.control.settings import Settings
from slmforge.control.tables import Run, utc_now
from slmforge.control.worker import FOLLOWERS

CSV = "text,category\n" + "".join(f"where is parcel {n},delivery\nmoney back for {n},refund\n" for n in range(30))
STARTED = Started(host="here", pid=1, device="cpu", choices={}, versions={"slmforge": "0.1.0"})
MODEL = ArtifactRef(
    prefix="runs/r/1/artifacts/model",
    files=(BlobRef(key="runs/r/1/artifacts/model/model.safetensors", sha256="00", size_bytes=4),),
)
CHECKPOINT = Checkpointed(step=5, artifact=ArtifactRef(prefix="runs/r/1/artifacts/checkpoint-5", files=()))


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "slmforge.db"
    database = Database(f"sqlite:///{path}")
    upgrade(database)
    database.close()
    return path


@pytest.fixture
def api(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.chdir(tmp_path)
    settings = Settings(data=tmp_path / "data", max_upload_bytes=100_000)
    settings.data.mkdir()
    shutil.copy(migrated, settings.data)
    with TestClient(create_app(settings), base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def upload(api: TestClient) -> Callable[..., dict[str, Any]]:
    def upload(text: str = CSV, filename: str = "tickets.csv", **form: str) -> dict[str, Any]:
        answer = api.post("/datasets/upload", files={"file": (filename, text.encode())}, data=form)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    return upload


@pytest.fixture
def experiment(api: TestClient, upload: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def experiment(**body: Any) -> dict[str, Any]:
        dataset_id = body.pop("training_dataset_id", None) or upload()["dataset_id"]
        wanted = {"name": "tickets", "base_model_id": "scratch-1m", "training_dataset_id": dataset_id, **body}
        answer = api.post("/experiments", json=wanted)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    return experiment


@pytest.fixture
def play(api: TestClient) -> Callable[..., None]:
    """Claim, launch and fold the oldest unfinished run of a kind, as worker and trainer would."""
    database: Database = api.app.state.database  # type: ignore[attr-defined]

    def follow(session: Any, run: Run) -> None:
        for told in FOLLOWERS.get(run.kind, ()):
            told(session, run)

    def play(kind: str, *events: KnownEvent) -> None:
        with database.write() as session:
            run = session.scalars(
                sa.select(Run).where(Run.kind == kind, Run.status.in_(runs.UNFINISHED)).order_by(Run.id).limit(1)
            ).one()
            if run.handle is None:
                runs.claim(session, worker="w", node="n", lease_seconds=60, slots=100)
                session.refresh(run)
                runs.launched(session, run.id, "w", run.attempt, node="n", handle=f"{run.id.hex}-{run.attempt}")
            first = run.event_count + 1
            records = [Record(seq=first + n, at=utc_now(), event=event) for n, event in enumerate(events)]
            runs.fold(session, run.id, "w", run.attempt, run.cursor + 1, records, follow)

    return play
