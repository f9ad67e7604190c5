import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from slmforge import __version__
from slmforge.clients.cli import app

from .conftest import Answer, FakeService, dataset


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tickets.csv"
    path.write_text("text,label\nlate,delivery\n")
    return path


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_help_loads_nothing_that_takes_time() -> None:
    script = """
import sys
from slmforge.clients.cli import main
sys.argv = ["slmforge", "--help"]
try:
    main()
finally:
    sys.stderr.write(" ".join(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "demo" in done.stdout
    loaded = set(done.stderr.split())
    assert not loaded & {"httpx2", "pydantic", "rich", "fastapi", "torch", "sqlalchemy", "slmforge.clients.http"}


def test_the_version_is_told_both_ways() -> None:
    assert call("--version").stdout == call("version").stdout == f"slmforge {__version__}\n"


def test_a_file_that_is_not_there_is_bad_usage(tmp_path: Path) -> None:
    result = call("run", "--train", tmp_path / "gone.csv")
    assert result.exit_code == 2
    assert "does not exist" in result.stderr


def test_a_setting_without_a_value_is_bad_usage(file: Path) -> None:
    result = call("run", "--train", file, "--set", "num_epochs")
    assert result.exit_code == 2
    assert "'num_epochs' is not of the form key=value" in result.stderr


def test_settings_are_json_where_they_can_be_and_a_folder_is_named_in_full(
    service: FakeService, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    service.on("POST", "/datasets/upload", Answer(dataset(), 201))
    service.on("POST", "/experiments", Answer({"detail": "There is no model config.json."}, 400))
    settings = ["--set", "num_epochs=3", "--set", "learning_rate=4e-3", "--set", "method=lora", "--set", "x=a=b"]
    result = call("run", "--train", file, "--base", "./mine", *settings, "--server", service.url)
    (created,) = service.asked_for("POST", "/experiments")
    assert created.json["training_config"] == {"num_epochs": 3, "learning_rate": 0.004, "method": "lora", "x": "a=b"}
    assert created.json["base_model_id"] == str(tmp_path / "mine")
    assert created.json["name"] == "tickets"
    assert result.exit_code == 2
    assert "slmforge: There is no model config.json." in result.stderr


def test_the_server_can_be_named_in_the_environment(
    service: FakeService, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLMFORGE_SERVER", service.url)
    service.on("POST", "/datasets/upload", Answer({"detail": "No row can be used."}, 400))
    assert "slmforge: No row can be used." in call("run", "--train", file).stderr


def test_nobody_at_the_named_server_is_a_failure_in_one_line(file: Path) -> None:
    result = call("run", "--train", file, "--server", "127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "Nothing answers at http://127.0.0.1:1" in result.stderr
