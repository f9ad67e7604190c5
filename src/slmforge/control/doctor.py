"""`slmforge doctor`: the settings in force, where each came from, and whether what they name answers."""

import os
import re
import sys

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from slmforge import __version__
from slmforge.blobs import open_store
from slmforge.control.database import Database
from slmforge.control.settings import Settings

_PASSWORD = re.compile(r"(?<=:)[^:@/]+(?=@)")


def report(settings: Settings) -> str:
    """One line for each setting; passwords inside addresses are masked."""
    lines = [f"slmforge {__version__}, Python {sys.version.split()[0]}", ""]
    for name in Settings.model_fields:
        variable = f"SLMFORGE_{name.upper()}"
        origin = "environment" if variable in os.environ else "default or .env"
        lines.append(f"{variable:<32} {_masked(str(getattr(settings, name))):<48} {origin}")
    return "\n".join([*lines, "", f"database: {_database(settings)}", f"storage:  {_storage(settings)}"])


def _masked(value: str) -> str:
    return _PASSWORD.sub("•••", value)


def _database(settings: Settings) -> str:
    if settings.database_url.startswith("sqlite") and not settings.data.exists():
        return "not there yet; slmforge up creates it"
    try:
        database = Database(settings.database_url)
        with database.engine.connect():
            return "answers"
    except (SQLAlchemyError, ImportError):
        return "does not answer; check SLMFORGE_DATABASE_URL and that it runs"


def _storage(settings: Settings) -> str:
    if not settings.data.exists():
        return "not there yet; slmforge up creates it"
    try:
        open_store(settings.storage_url).stat("health")
    except (OSError, ValueError) as error:
        return f"does not answer: {error}"
    return "answers"


def main() -> None:
    """Print the report, or one sentence about a setting that cannot be read."""
    try:
        sys.stdout.write(report(Settings()) + "\n")
    except ValidationError as error:
        found = error.errors()[0]
        sys.exit(f"slmforge: SLMFORGE_{'_'.join(map(str, found['loc'])).upper()}: {found['msg']}.")


if __name__ == "__main__":
    main()
