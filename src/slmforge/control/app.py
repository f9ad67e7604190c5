"""The API: routers, error handling and what they share, put together from the settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from fastapi_offline import FastAPIOffline

from slmforge import __version__
from slmforge.blobs import open_store
from slmforge.control import health, problems
from slmforge.control.body_limit import BodyLimit
from slmforge.control.database import Database
from slmforge.control.datasets import api as datasets
from slmforge.control.evaluations import api as evaluations
from slmforge.control.experiments import api as experiments
from slmforge.control.identity import expected_host
from slmforge.control.models import api as models
from slmforge.control.models.service import seed_catalog
from slmforge.control.settings import Settings

MULTIPART_OVERHEAD_BYTES = 64 << 10


def create_app(settings: Settings) -> FastAPI:
    """The application over a database whose schema is up to date."""
    # Its documentation page comes from this machine: the usual one is blank where there is no internet.
    app = FastAPIOffline(
        redoc_url=None,
        title="SLM Forge",
        summary="From a file of your own data to a small language model that is measurably better on it.",
        version=__version__,
        lifespan=_lifespan,
        dependencies=[Depends(expected_host)],
        responses=problems.ALWAYS,
    )
    app.add_middleware(BodyLimit, max_bytes=settings.max_upload_bytes + MULTIPART_OVERHEAD_BYTES)
    app.state.settings = settings
    app.state.database = Database(settings.database_url)
    app.state.store = open_store(settings.storage_url)
    problems.install(app)
    for part in (health, datasets, models, experiments, evaluations):
        app.include_router(part.router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    with app.state.database.write() as session:
        seed_catalog(session)
    yield
    app.state.database.close()
