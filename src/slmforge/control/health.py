"""What this service is, and whether its parts answer."""

from datetime import timedelta
from typing import Literal

import sqlalchemy as sa
from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import SQLAlchemyError

from slmforge import __version__
from slmforge.control.dependencies import Store, TheDatabase
from slmforge.control.tables import Worker, utc_now

router = APIRouter(tags=["service"])

WORKER_SILENT_SECONDS = 15


class Info(BaseModel):
    """Name, version, where to go next."""

    name: str = Field(examples=["SLM Forge"])
    version: str = Field(examples=["0.1.0"])
    links: dict[str, str] = Field(examples=[{"docs": "/docs", "health": "/health"}])


class Health(BaseModel):
    """Whether each part answers; `compute` is ok while a worker has been heard of lately."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"status": "ok", "database": "ok", "storage": "ok", "compute": "ok"}]}
    )

    status: Literal["ok", "degraded"]
    database: Literal["ok", "away"]
    storage: Literal["ok", "away"]
    compute: Literal["ok", "away"]


@router.get("/")
def info() -> Info:
    """What this is and where its parts are."""
    links = {name: f"/{name}" for name in ("docs", "health", "datasets", "models", "experiments", "evaluations")}
    return Info(name="SLM Forge", version=__version__, links={**links, "openapi": "/openapi.json"})


@router.get("/health", responses={503: {"model": Health, "description": "A part does not answer."}})
def health(database: TheDatabase, store: Store, response: Response) -> Health:
    """Whether database, storage and compute answer; 503 when the database or the storage does not."""
    parts = {"database": "away", "storage": "away", "compute": "away"}
    try:
        with database.read() as session:
            lately = utc_now() - timedelta(seconds=WORKER_SILENT_SECONDS)
            alive = session.scalar(sa.select(sa.exists().where(Worker.seen_at > lately)))
        parts["database"] = "ok"
        parts["compute"] = "ok" if alive else "away"
    except SQLAlchemyError:
        pass
    try:
        store.stat("health")
        parts["storage"] = "ok"
    except OSError:
        pass
    if "away" in (parts["database"], parts["storage"]):
        response.status_code = 503
    return Health.model_validate({**parts, "status": "degraded" if "away" in parts.values() else "ok"})
