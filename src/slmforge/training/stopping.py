"""SIGTERM, in two manners: before the training loop it interrupts at once, inside the loop it is a flag to look at.

Importing, loading and tokenizing keep nothing worth saving, so they are simply left; the loop ends its micro-batch,
makes a checkpoint and then leaves. Installed by `__main__` before heavy imports.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """The run was asked to stop. Not an `Exception`, so that no library takes it for an error and goes on."""

    def __init__(self, step: int = 0) -> None:
        super().__init__(step)
        self.step = step


class StopRequest:
    """Whether SIGTERM came (or, for a run started by hand, Ctrl-C)."""

    def __init__(self) -> None:
        self.asked = False
        self._depth = 0

    def install(self) -> None:
        """Take over both signals."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a request only sets `asked`; one that nobody acted upon interrupts on the way out."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self.asked and not self._depth:
            raise Interrupted

    def check(self) -> None:
        """Raise `Interrupted` if the run was asked to stop."""
        if self.asked:
            raise Interrupted

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        first, self.asked = not self.asked, True
        if first and not self._depth:
            raise Interrupted
