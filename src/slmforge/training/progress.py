"""Where a run stands, and a watch that counts training alone. Progress goes into every checkpoint, as JSON."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Progress:
    """The run after `step` optimizer steps. Sums are over the whole run; `revision` pins a base from the hub."""

    rows: int
    total_steps: int
    revision: str | None = None
    step: int = 0
    tokens: int = 0
    label_tokens: int = 0
    seconds: float = 0.0
    unlogged_losses: list[float] = field(default_factory=list)
    evaluated_at: int | None = None
    held_out_first: float | None = None
    held_out_last: float | None = None
    held_out_best: float | None = None

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps

    def measured(self, held_out_loss: float) -> None:
        """Take note of the held-out loss at the present step."""
        self.evaluated_at = self.step
        self.held_out_last = held_out_loss
        self.held_out_first = held_out_loss if self.held_out_first is None else self.held_out_first
        self.held_out_best = held_out_loss if self.held_out_best is None else min(self.held_out_best, held_out_loss)


class Stopwatch:
    """Counts laps without the pauses in them."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last lap, or since the start."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not counted."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._since += time.monotonic() - began
