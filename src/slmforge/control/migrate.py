"""Brings the schema of a database to the one that this version knows."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import text

from slmforge.control.database import Database

MIGRATIONS = Path(__file__).with_name("migrations")
_LOCK = 0x5_1F0E6E  # any number, the same in every process that migrates


def upgrade(database: Database) -> None:
    """Apply what is missing; processes that start together wait for each other.

    Raises `RuntimeError` for a database that a newer version has written.
    """
    with database.engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        try:
            command.upgrade(config(connection), "head")
        except CommandError as error:
            raise RuntimeError(
                "The database was written by a newer version of slmforge; upgrade this installation, or name "
                "another database with SLMFORGE_DATABASE_URL."
            ) from error


def config(connection: object) -> Config:
    """Alembic's configuration over an open connection."""
    settings = Config()
    settings.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    settings.attributes["connection"] = connection
    return settings
