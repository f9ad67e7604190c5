from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy import make_url

from slmforge.blobs import open_store
from slmforge.control.settings import Settings


def test_the_defaults_lie_in_the_data_folder(settings: Settings) -> None:
    assert settings.data.is_absolute()
    assert settings.database_url == f"sqlite:///{settings.data}/slmforge.db"
    assert settings.storage_url == f"file://{settings.data}/blobs"


def test_the_environment_wins_over_the_env_file(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("SLMFORGE_MAX_PARALLEL_RUNS=3\nSLMFORGE_LEASE_SECONDS=20\n")
    monkeypatch.setenv("SLMFORGE_LEASE_SECONDS", "30")
    both = Settings()
    assert (both.max_parallel_runs, both.lease_seconds) == (3, 30)
    assert settings.max_parallel_runs == 1, "what is made is frozen"


@pytest.mark.parametrize("name", ["DATABASE_URL", "DATA", "MAX_PARALLEL_RUNS", "AUTH"])
def test_an_empty_variable_means_the_default(settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("SLMFORGE_DATA", str(settings.data))
    monkeypatch.setenv(f"SLMFORGE_{name}", "")
    expected = settings if name != "DATA" else Settings(data=Path(".slmforge"))
    assert Settings() == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_PARALLEL_RUNS", "0"),
        ("MAX_UPLOAD_BYTES", "0"),
        ("MAX_UPLOAD_BYTES", "two"),
        ("LEASE_SECONDS", "1"),
        ("STOP_GRACE_SECONDS", "0"),
        ("AUTH", "password"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"SLMFORGE_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_settings_are_frozen(settings: Settings) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        settings.lease_seconds = 1  # type: ignore[misc]  # this is what is tested


def test_a_data_folder_of_any_name_gives_urls_that_lead_back_to_it(tmp_path: Path, settings: Settings) -> None:
    odd = tmp_path / "a folder 100% ours #1?"
    made = settings.model_validate({"data": odd})
    assert make_url(made.database_url).database == str(odd / "slmforge.db")
    open_store(made.storage_url).put("a", [b"x"])
    assert (odd / "blobs" / "a").read_bytes() == b"x"
