"""Every setting of the control plane: one frozen object, made in `app.py` and `worker.py` and passed down."""

from pathlib import Path
from typing import Literal, Self
from urllib.parse import quote

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read from the environment (prefix `SLMFORGE_`) and from a `.env` file; the defaults run on a laptop."""

    model_config = SettingsConfigDict(env_prefix="SLMFORGE_", env_file=".env", extra="ignore", frozen=True)

    data: Path = Field(default=Path(".slmforge"), description="Folder of the embedded database and storage.")
    database_url: str = Field(default="", description="SQLAlchemy URL; empty: SQLite in the data folder.")
    storage_url: str = Field(default="", description="Where files live; empty: a folder in the data folder.")
    auth: Literal["none"] = Field(default="none", description="Who may call: `none` is one local user.")
    public_url: str = Field(default="", description="The address clients use, when it is not the one listened on.")
    allow_public_bind: bool = Field(
        default=False, description="Listen beyond loopback although nobody is asked who they are."
    )
    max_upload_bytes: int = Field(default=2 << 30, gt=0, description="Largest accepted upload, in bytes.")
    max_parallel_runs: int = Field(default=1, ge=1, description="Trainings and evaluations at once on this machine.")
    lease_seconds: float = Field(default=10, gt=1, description="How long a silent worker keeps its runs.")
    stop_grace_seconds: float = Field(default=3.5, gt=0, description="Time a run has to stop before it is killed.")

    @model_validator(mode="before")
    @classmethod
    def _empty_means_default(cls, values: dict[str, object]) -> dict[str, object]:
        return {name: value for name, value in values.items() if value != ""}

    @model_validator(mode="after")
    def _embedded_defaults(self) -> Self:
        folder = self.data.absolute()
        object.__setattr__(self, "data", folder)
        if not self.database_url:
            object.__setattr__(self, "database_url", f"sqlite:///{quote(str(folder / 'slmforge.db'))}")
        if not self.storage_url:
            object.__setattr__(self, "storage_url", (folder / "blobs").as_uri())
        return self
