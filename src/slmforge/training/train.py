"""The training loop, on one page.

A step reads `batch_size` rows, in as many micro-batches as the token budget asks for; the loss of each is divided by
the label count of the whole step, so the gradient does not depend on how the rows were split. Model, adapters and
rendered rows come in ready from `job.py`; what is learnt stays in the model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from slmforge.contract.events import Emit, Measured, Progressed
from slmforge.contract.spec import TrainSpec
from slmforge.training.batches import Example, step_rows
from slmforge.training.checkpoint import Checkpoints, random_states, restore, set_random_states
from slmforge.training.failures import RunFailure
from slmforge.training.loss import LabelLoss
from slmforge.training.optimizer import learning_rate
from slmforge.training.progress import Progress, Stopwatch
from slmforge.training.stopping import Interrupted, StopRequest

LOG_LINES = 400  # at most so many over a run: each waits for the device once


@dataclass
class Loop:
    """What the loop works with. `progress` says where it stands; `run` takes it to the end."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: LabelLoss
    rows: Sequence[Example]
    held_out: Sequence[Example]
    spec: TrainSpec
    progress: Progress
    emit: Emit
    stop: StopRequest
    checkpoints: Checkpoints
    watch: Stopwatch = field(default_factory=Stopwatch)

    def run(self, resume_from: Path | None = None) -> None:
        """Train. Raises `RunFailure` (`diverged`), and `Interrupted` after a checkpoint when asked to stop."""
        torch.manual_seed(self.spec.seed)
        if resume_from is not None:
            self.progress = restore(resume_from, self.model, self.optimizer, self.progress)
        progress = self.progress
        log_every_steps = math.ceil(progress.total_steps / LOG_LINES)
        unlogged = [torch.tensor(loss) for loss in progress.unlogged_losses]
        logged_tokens = progress.tokens
        self.watch.lap()
        with self.stop.deferred():
            try:
                while not progress.finished:
                    if progress.step % self.spec.eval_every_steps == 0:
                        self._measure_held_out()
                    step_loss, gradient_norm = self._step()
                    unlogged.append(step_loss)
                    if progress.step % log_every_steps == 0 or progress.finished:
                        self._log(unlogged, gradient_norm, progress.tokens - logged_tokens)
                        unlogged, logged_tokens = [], progress.tokens
                    if self.checkpoints.due and not progress.finished:
                        self._save(unlogged)
                self._measure_held_out()
            except Interrupted:
                self._save(unlogged)
                raise Interrupted(progress.step) from None

    def _step(self) -> tuple[Tensor, Tensor]:
        """One optimizer step: its loss, and the norm of its gradient before clipping. No trace if interrupted."""
        progress, settings = self.progress, self.spec.optimization
        rows = [self.rows[i] for i in step_rows(len(self.rows), settings.batch_size, self.spec.seed, progress.step)]
        labels = sum(row.labels for row in rows)
        random_before = random_states()
        losses = []
        self.model.train()
        try:
            for summed_loss in self.loss.of(rows):
                loss = summed_loss / labels
                torch.autograd.backward(loss)
                losses.append(loss.detach())
                self.stop.check()
        except Interrupted:
            self.optimizer.zero_grad()
            set_random_states(random_before)
            raise
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, progress.step, progress.total_steps)
        self.optimizer.step()
        self.optimizer.zero_grad()
        progress.step += 1
        progress.tokens += sum(len(row.ids) for row in rows)
        progress.label_tokens += labels
        return torch.stack(losses).sum(), norm

    def _measure_held_out(self) -> None:
        """The mean loss per label over the held-out rows, unless it is known for this step."""
        if not self.held_out or self.progress.evaluated_at == self.progress.step:
            return
        losses = []
        self.model.eval()
        with self.watch.paused(), torch.no_grad():
            for summed_loss in self.loss.of(self.held_out):
                losses.append(summed_loss)
                self.stop.check()
            mean = self._finite(torch.stack(losses).sum().item()) / sum(row.labels for row in self.held_out)
        self.progress.measured(mean)
        self.emit(Measured(step=self.progress.step, values={"held_out_loss": mean}))

    def _log(self, unlogged: list[Tensor], gradient_norm: Tensor, tokens: int) -> None:
        progress, settings = self.progress, self.spec.optimization
        loss = self._finite(torch.stack(unlogged).mean().item())
        seconds = self.watch.lap()
        progress.seconds += seconds
        values = {
            "loss": loss,
            "learning_rate": learning_rate(settings, progress.step - 1, progress.total_steps),
            "grad_norm": self._finite(gradient_norm.item()),
            "tokens_per_second": tokens / seconds,
            "epoch": progress.step / math.ceil(progress.rows / settings.batch_size),
        }
        self.emit(Measured(step=progress.step, values=values))
        self.emit(Progressed(stage="training", done=progress.step, total=progress.total_steps, unit="steps"))

    def _save(self, unlogged: list[Tensor]) -> None:
        self.progress.unlogged_losses = [self._finite(loss.item()) for loss in unlogged]
        with self.watch.paused():
            self.checkpoints.save(self.model, self.optimizer, self.progress)

    def _finite(self, loss_or_norm: float) -> float:
        if math.isfinite(loss_or_norm):
            return loss_or_norm
        rate, progress = self.spec.optimization.learning_rate, self.progress
        message = (
            f"the loss or its gradient was no longer finite by step {progress.step} of {progress.total_steps}; "
            f"the learning rate of {rate:g} is the likely reason: train again with a tenth of it"
        )
        raise RunFailure("diverged", message)
