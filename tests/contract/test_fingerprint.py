from pathlib import Path

import pytest

from slmforge.contract.fingerprint import directory_fingerprint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_a_changed_weight_changes_the_fingerprint(folder: Path) -> None:
    before = directory_fingerprint(folder)
    (folder / "model.safetensors").write_bytes(b"weighty")
    assert directory_fingerprint(folder) != before


def test_a_renamed_file_changes_the_fingerprint(folder: Path) -> None:
    before = directory_fingerprint(folder)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert directory_fingerprint(folder) != before


def test_what_is_not_loaded_does_not_count(folder: Path) -> None:
    before = directory_fingerprint(folder)
    (folder / "README.md").write_text("about it")
    (folder / "checkpoint").mkdir()
    assert directory_fingerprint(folder) == before


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        directory_fingerprint(tmp_path)
