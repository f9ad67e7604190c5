"""A process that must not outlive the one that started it waits for the end of its standard input.

The parent holds the other end of the pipe; the kernel closes it even when the parent is killed with -9.
"""

import os
import sys
import threading
from collections.abc import Callable


def on_parent_gone(then: Callable[[], None]) -> None:
    """Call `then`, in a thread of its own, once standard input has ended."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        then()

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
