import subprocess
import sys

CHILD = """
import threading
from slmforge.control.lifeline import on_parent_gone
gone = threading.Event()
on_parent_gone(gone.set)
print("waiting", flush=True)
print("gone" if gone.wait(60) else "left alone", flush=True)
"""


def test_a_process_learns_that_its_parent_is_gone_and_not_before() -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"waiting\n"
        child.stdin.write(b"a line is not the end\n" * 100)
        child.stdin.flush()
        assert child.poll() is None
        child.stdin.close()
        assert child.stdout.readline() == b"gone\n"


def test_a_parent_that_is_killed_is_noticed() -> None:
    parent = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdin=subprocess.PIPE)
child.wait()
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        process.kill()
        assert process.stdout.readline() == b"gone\n"
