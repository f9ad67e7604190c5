import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slmforge.clients import server
from slmforge.clients.errors import ServerFailed
from slmforge.clients.server import OwnServer, data_folder, running_server

from .conftest import Answer, FakeService


def write_note(data: Path, **note: object) -> None:
    (data / "server.json").write_text(json.dumps(note))


def test_a_server_that_runs_on_the_folder_is_found(service: FakeService, tmp_path: Path) -> None:
    write_note(tmp_path, url=service.url, pid=os.getpid())
    assert running_server(tmp_path) == service.url


def test_a_folder_without_a_server_has_none(tmp_path: Path) -> None:
    assert running_server(tmp_path) is None


def test_a_note_that_is_half_written_is_no_server(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text('{"url": "http')
    assert running_server(tmp_path) is None


def test_a_server_that_was_killed_is_not_taken_for_one_that_runs(service: FakeService, tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write_note(tmp_path, url=service.url, pid=gone.pid)
    assert running_server(tmp_path) is None
    assert service.asked == []


def test_a_server_whose_parts_do_not_answer_is_not_used(service: FakeService, tmp_path: Path) -> None:
    service.on("GET", "/health", Answer({"detail": "away"}, 503))
    write_note(tmp_path, url=service.url, pid=os.getpid())
    assert running_server(tmp_path) is None


def test_two_commands_on_one_folder_each_have_their_server_and_neither_takes_the_others(tmp_path: Path) -> None:
    with OwnServer(tmp_path) as one, OwnServer(tmp_path) as other:
        assert one.url != other.url
        assert running_server(tmp_path) is None
    assert list(tmp_path.glob("server*.json*")) == []


def test_a_server_that_cannot_start_says_why_in_its_own_words(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerFailed, match="SLMFORGE_LEASE_SECONDS"),
        OwnServer(tmp_path, {"SLMFORGE_LEASE_SECONDS": "0"}),
    ):
        pass


def test_a_data_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(ServerFailed, match=r"cannot be started on .*: Not a directory"),
        OwnServer(tmp_path / "file" / "x"),
    ):
        pass


def test_without_the_server_installed_the_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ServerFailed, match="pip install"):
        server.require_server()


def test_the_data_folder_is_that_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLMFORGE_DATA", raising=False)
    assert data_folder() == tmp_path / ".slmforge"
    (tmp_path / ".env").write_text("SLMFORGE_AUTH=none\nexport SLMFORGE_DATA = 'my data'  # mine\n")
    assert data_folder() == tmp_path / "my data"
    monkeypatch.setenv("SLMFORGE_DATA", "elsewhere")
    assert data_folder() == tmp_path / "elsewhere"
