"""What really gets imported, asked of fresh interpreters: static rules do not see what a library imports for us."""

import subprocess
import sys

import pytest

SERVER_LIBRARIES = {"alembic", "fastapi", "sqlalchemy", "starlette", "uvicorn"}
TRAINING_LIBRARIES = {"accelerate", "peft", "torch", "transformers"}


LIST_THEM = "sys.stderr.write(' '.join({name.partition('.')[0] for name in sys.modules}))"


def imported_by(statements: str) -> set[str]:
    """The top-level names in `sys.modules` of a new interpreter after `statements`."""
    script = f"import sys\n{statements}\n{LIST_THEM}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize("module", ["slmforge.control.app", "slmforge.control.worker"])
def test_the_control_plane_loads_no_torch(module: str) -> None:
    assert not imported_by(f"import {module}") & TRAINING_LIBRARIES


def test_the_training_plane_loads_no_server_and_no_database() -> None:
    assert not imported_by("import slmforge.training.__main__") & SERVER_LIBRARIES


def test_the_data_room_loads_neither() -> None:
    modules = imported_by("import slmforge.data.profile, slmforge.data.rows, slmforge.data.conversations")
    assert not modules & (SERVER_LIBRARIES | TRAINING_LIBRARIES)


def test_asking_the_command_line_for_help_loads_only_the_client() -> None:
    run_help = """
from slmforge.clients.cli import main
sys.argv = ["slmforge", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
    heavy = SERVER_LIBRARIES | TRAINING_LIBRARIES | {"jinja2", "numpy", "pydantic_settings", "tokenizers"}
    assert not imported_by(run_help) & heavy
