"""Real processes: small shells and Pythons that wait until they are told to end."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slmforge.control.launchers.local import TAIL_BYTES, LocalLauncher
from slmforge.control.launchers.protocol import Alive, Exited, Resources

NEEDS = Resources(cpu_threads=3)
Until = Callable[[Callable[[], bool]], None]


@pytest.fixture
def until() -> Until:
    """Wait for what other processes do; the timeout of the test bounds it."""
    pause = threading.Event()

    def wait(condition: Callable[[], bool]) -> None:
        for _ in range(2000):
            if condition():
                return
            pause.wait(0.01)
        raise AssertionError("it never came true")

    return wait


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "processes"


@pytest.fixture
def launcher(folder: Path) -> Iterator[LocalLauncher]:
    launcher = LocalLauncher(folder)
    yield launcher
    for handle in launcher.handles():
        launcher.stop(handle, force=True)
    for child in launcher._children.values():
        child.wait(20)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """Reading it blocks for ever: nobody opens the other end."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def starts(folder: Path) -> int:
    path = folder.parent / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def waiting(folder: Path, pipe: Path) -> list[str]:
    """A process that leaves a line when it starts and then waits."""
    return shell(f"echo $$ >> {folder.parent / 'starts'}; echo up; cat {pipe}")


def exit_of(launcher: LocalLauncher, handle: str, until: Until) -> int | None:
    until(lambda: isinstance(launcher.poll(handle), Exited))
    state = launcher.poll(handle)
    assert isinstance(state, Exited)
    return state.code


def pid_of(folder: Path, handle: str) -> int:
    return int((folder / f"{handle}.pid").read_text())


def gone(pid: int) -> bool:
    """Whether there is no such process, or only what a parent has not looked at yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_process_runs_and_its_exit_code_is_told(launcher: LocalLauncher, until: Until) -> None:
    for code in (0, 3):
        handle = launcher.launch(f"run-{code}", shell(f"exit {code}"), NEEDS)
        assert exit_of(launcher, handle, until) == code


def test_the_same_name_twice_is_one_process(launcher: LocalLauncher, folder: Path, pipe: Path, until: Until) -> None:
    handle = launcher.launch("run-1", waiting(folder, pipe), NEEDS)
    assert launcher.launch("run-1", waiting(folder, pipe), NEEDS) == handle
    assert LocalLauncher(folder).launch("run-1", waiting(folder, pipe), NEEDS) == handle
    until(lambda: starts(folder) > 0)
    launcher.stop(handle, force=True)
    exit_of(launcher, handle, until)
    assert starts(folder) == 1


def test_of_launchers_that_race_for_a_name_one_starts_it(folder: Path, pipe: Path, until: Until) -> None:
    launchers = [LocalLauncher(folder) for _ in range(6)]
    barrier = threading.Barrier(len(launchers), timeout=20)

    def launch(launcher: LocalLauncher) -> str:
        barrier.wait()
        return launcher.launch("run-1", waiting(folder, pipe), NEEDS)

    with ThreadPoolExecutor(len(launchers)) as pool:
        assert set(pool.map(launch, launchers)) == {"run-1"}
    until(lambda: starts(folder) > 0)
    launchers[0].stop("run-1", force=True)
    for launcher in launchers:
        exit_of(launcher, "run-1", until)
    assert starts(folder) == 1


def test_a_name_whose_process_is_gone_can_be_launched_again(launcher: LocalLauncher, until: Until) -> None:
    launcher.launch("run-1", shell("exit 1"), NEEDS)
    assert exit_of(launcher, "run-1", until) == 1
    launcher.launch("run-1", shell("exit 2"), NEEDS)
    assert exit_of(launcher, "run-1", until) == 2


def test_a_restarted_worker_sees_the_process_and_can_stop_it(
    launcher: LocalLauncher, folder: Path, pipe: Path, until: Until
) -> None:
    launcher.launch("run-1", waiting(folder, pipe), NEEDS)
    until(lambda: starts(folder) > 0)
    restarted = LocalLauncher(folder)
    assert restarted.handles() == ["run-1"]
    assert restarted.poll("run-1") == Alive()
    restarted.stop("run-1", force=False)
    assert exit_of(restarted, "run-1", until) is None, "the end of another's child is seen, its code is not"
    assert exit_of(launcher, "run-1", until) == -signal.SIGTERM


def test_a_killed_process_is_seen_to_be_gone_and_leaves_no_zombie(
    launcher: LocalLauncher, folder: Path, pipe: Path, until: Until
) -> None:
    handle = launcher.launch("run-1", ["cat", str(pipe)], NEEDS)
    until(lambda: (folder / "run-1.pid").exists() and (folder / "run-1.pid").read_text() != "")
    pid = pid_of(folder, handle)
    os.kill(pid, signal.SIGKILL)
    assert exit_of(launcher, handle, until) == -signal.SIGKILL
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("force", [False, True])
def test_stopping_reaches_the_children_of_the_process(
    launcher: LocalLauncher, folder: Path, pipe: Path, until: Until, force: bool
) -> None:
    child_pid = folder.parent / "child"
    script = f"cat {pipe} & echo $! > {child_pid}.tmp; mv {child_pid}.tmp {child_pid}; wait"
    handle = launcher.launch("run-1", shell(script), NEEDS)
    until(child_pid.exists)
    launcher.stop(handle, force=force)
    exit_of(launcher, handle, until)
    until(lambda: gone(int(child_pid.read_text())))


def test_a_process_that_ignores_the_request_is_ended_by_force(
    launcher: LocalLauncher, folder: Path, pipe: Path, until: Until
) -> None:
    command = shell(f"trap '' TERM; echo up > {folder.parent / 'starts'}; cat {pipe}")
    handle = launcher.launch("run-1", command, NEEDS)
    until(lambda: starts(folder) > 0)
    launcher.stop(handle, force=False)
    assert launcher.poll(handle) == Alive()
    launcher.stop(handle, force=True)
    assert exit_of(launcher, handle, until) == -signal.SIGKILL


def test_a_stranger_that_got_the_pid_is_left_alone(
    launcher: LocalLauncher, folder: Path, pipe: Path, until: Until
) -> None:
    """The record of an ended process may name a pid that another program has by now."""
    launcher.launch("run-1", shell("exit 0"), NEEDS)
    exit_of(launcher, "run-1", until)
    launcher.launch("stranger", ["cat", str(pipe)], NEEDS)
    until(lambda: (folder / "stranger.pid").exists() and (folder / "stranger.pid").read_text() != "")
    (folder / "run-1.pid").write_text(str(pid_of(folder, "stranger")))
    launcher.stop("run-1", force=True)
    assert launcher.poll("stranger") == Alive()
    assert launcher.poll("run-1") == Exited(0)


def test_an_unknown_handle_harms_nobody(launcher: LocalLauncher, folder: Path) -> None:
    assert launcher.poll("nobody-1") == Exited(None)
    launcher.stop("nobody-1", force=True)
    launcher.forget("nobody-1")
    assert launcher.output_tail("nobody-1") == ""
    assert list(folder.iterdir()) == [], "asking leaves no file"


def test_what_is_forgotten_leaves_no_file(launcher: LocalLauncher, folder: Path, until: Until) -> None:
    launcher.launch("run-1", shell("echo x"), NEEDS)
    exit_of(launcher, "run-1", until)
    launcher.forget("run-1")
    assert list(folder.iterdir()) == []
    assert launcher.handles() == []


def test_the_process_gets_the_environment_and_its_number_of_threads(
    launcher: LocalLauncher, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "of the user")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    launcher.launch("run-1", shell('echo "$HF_TOKEN, $OMP_NUM_THREADS"'), NEEDS)
    exit_of(launcher, "run-1", until)
    assert launcher.output_tail("run-1") == "of the user, 3"


def test_an_argument_of_any_content_arrives_as_it_is(launcher: LocalLauncher, until: Until) -> None:
    odd = "a b'c\"d $HOME `ls` \\ ; * \n ä"
    launcher.launch("run-1", [sys.executable, "-c", "import sys; print(ascii(sys.argv[1]))", odd], NEEDS)
    exit_of(launcher, "run-1", until)
    assert launcher.output_tail("run-1") == ascii(odd)


def test_the_tail_of_the_output_holds_its_end_from_both_streams(launcher: LocalLauncher, until: Until) -> None:
    launcher.launch("run-1", shell("seq 1 5000; printf '\\377 the end' >&2; exit 1"), NEEDS)
    exit_of(launcher, "run-1", until)
    tail = launcher.output_tail("run-1")
    assert tail.endswith("5000\n\ufffd the end")
    assert len(tail.encode()) <= TAIL_BYTES + 2


def test_a_command_that_is_not_there_ends_with_a_code_and_a_reason(launcher: LocalLauncher, until: Until) -> None:
    launcher.launch("run-1", ["/nowhere/python", "x"], NEEDS)
    assert exit_of(launcher, "run-1", until) == 127
    assert "/nowhere/python" in launcher.output_tail("run-1")


def test_temporary_files_of_a_killed_process_go_when_it_is_forgotten(folder: Path, until: Until) -> None:
    launcher = LocalLauncher(folder)
    handle = launcher.launch("a-1", ["/bin/sh", "-c", 'touch "$TMPDIR/left"; kill -9 $$'], NEEDS)
    until(lambda: isinstance(launcher.poll(handle), Exited))
    assert [path.name for path in folder.rglob("left")] == ["left"]
    launcher.forget(handle)
    assert list(folder.iterdir()) == []
