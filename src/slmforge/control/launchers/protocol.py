"""What the reconciler asks of any place that can run a process."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Resources:
    """What a run needs of its place."""

    cpu_threads: int


@dataclass(frozen=True)
class Alive:
    """The process is there."""


@dataclass(frozen=True)
class Exited:
    """The process is gone. `code` is None when nobody was there to see it end; negative for a signal."""

    code: int | None


class Launcher(Protocol):
    """Starts, watches and stops processes by name."""

    def launch(self, name: str, command: list[str], needs: Resources) -> str:
        """Start `command` and return a handle; if `name` is running already, return the handle of that.

        Raises `OSError` when the process cannot be started.
        """
        ...

    def poll(self, handle: str) -> Alive | Exited:
        """Whether the process is there. An unknown handle has exited."""
        ...

    def stop(self, handle: str, *, force: bool) -> None:
        """Ask the process to end, or end it. An unknown handle is not an error."""
        ...

    def handles(self) -> list[str]:
        """The handles of all processes that have been launched and not forgotten."""
        ...

    def output_tail(self, handle: str) -> str:
        """The last lines that the process printed."""
        ...

    def forget(self, handle: str) -> None:
        """Remove what was kept to watch a process that has exited."""
        ...
