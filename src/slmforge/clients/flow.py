"""The main job, over HTTP: upload, wait for the analysis, create an experiment, follow it, compare base and tuned.

Shared by `slmforge run` and `slmforge demo`. An interrupt while it trains cancels the experiment before it goes on.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from slmforge.clients.answers import ENDED, Dataset, Evaluation, Experiment, Progress, Status
from slmforge.clients.display import Bar, Display
from slmforge.clients.errors import BadUsage, ClientError
from slmforge.clients.http import Client

POLL_SECONDS = 0.5
CANCEL_POLL_SECONDS = 0.2
CANCEL_POLLS = 50

Pause = Callable[[float], None]


@dataclass(frozen=True)
class Job:
    """What to train on what. Without `eval` a part of the training rows is held out."""

    train: Path
    eval: Path | None
    base: str
    settings: dict[str, Any]
    mapping: dict[str, str]
    name: str


@dataclass(frozen=True)
class Outcome:
    """How a job ended. There is no evaluation when nothing was made that could be evaluated."""

    experiment: Experiment
    evaluation: Evaluation | None

    @property
    def problem(self) -> str | None:
        """Why the job did not reach its end, as a sentence; None if it did."""
        if self.experiment.failure is not None:
            return self.experiment.failure.message
        if self.experiment.status != "completed":
            return f"The experiment was {self.experiment.status}."
        if self.evaluation is None:
            return "The model was trained, but no evaluation of it was begun."
        if self.evaluation.failure is not None:
            return f"The model was trained, but not evaluated: {self.evaluation.failure.message}"
        return None if self.evaluation.status == "completed" else f"The evaluation was {self.evaluation.status}."

    def as_json(self) -> dict[str, Any]:
        """The object that `slmforge run --json` promises."""
        metrics = self.evaluation.metrics if self.evaluation else {}
        return {
            "experiment_id": self.experiment.experiment_id,
            "status": self.experiment.status,
            "metrics": {name: metric.model_dump(mode="json") for name, metric in metrics.items()},
            "artifacts": self.experiment.artifacts,
        }


def run_job(client: Client, job: Job, display: Display, *, pause: Pause = time.sleep) -> Outcome:
    """Take the job to its end. Raises `ClientError` when the service refuses or is away, and `KeyboardInterrupt`."""
    train = _dataset(client, job.train, "training", job.mapping, display, pause)
    held_out = _dataset(client, job.eval, "evaluation", job.mapping, display, pause) if job.eval else None
    if client.health().compute != "ok":
        display.note("warning", "No worker is there at the moment; the training waits until one is.")
    experiment: Experiment | None = None
    try:
        with _uninterrupted():  # an interrupt in here would leave an experiment behind that we do not know of
            experiment = client.create_experiment(
                name=job.name,
                base_model_id=job.base,
                training_dataset_id=train.dataset_id,
                eval_dataset_id=held_out.dataset_id if held_out else None,
                training_config=job.settings,
            )
        display.experiment(experiment)
        experiment = _follow_training(client, experiment.experiment_id, display, pause)
    except KeyboardInterrupt:
        if experiment is not None:
            cancel(client, experiment.experiment_id, display, pause)
        raise
    if experiment.status != "completed" or not experiment.evaluations:
        return Outcome(experiment, None)
    evaluation_id = experiment.evaluations[0].evaluation_id
    return Outcome(experiment, _follow_evaluation(client, evaluation_id, display, pause))


def cancel(client: Client, experiment_id: str, display: Display, pause: Pause = time.sleep) -> None:
    """Cancel the experiment and wait until its process is gone. One that has ended, or cannot be asked, is let be."""
    display.say(f"Cancelling {experiment_id} …")
    try:
        client.cancel_experiment(experiment_id)
        for _ in range(CANCEL_POLLS):
            if client.get_experiment(experiment_id).status in ENDED:
                return
            pause(CANCEL_POLL_SECONDS)
    except ClientError as error:
        display.say(str(error))


def _dataset(
    client: Client,
    path: Path,
    kind: Literal["training", "evaluation"],
    mapping: dict[str, str],
    display: Display,
    pause: Pause,
) -> Dataset:
    try:
        size = path.stat().st_size
        with display.bar(stays=False) as bar:

            def uploaded(sent: int) -> None:
                bar.update(f"uploading {path.name}", sent, size, f"{sent / 1e6:,.1f}/{size / 1e6:,.1f} MB")

            dataset = client.upload_dataset(path, dataset_type=kind, mapping=mapping, on_progress=uploaded)
    except OSError as error:
        raise BadUsage(f"{path} cannot be read: {error.strerror}.") from None
    with display.bar(stays=False) as bar:
        while dataset.profile_status not in ENDED:
            bar.update(f"analysing {path.name}", 0, None)
            pause(POLL_SECONDS)
            dataset = client.get_dataset(dataset.dataset_id)
    display.dataset(dataset)
    if dataset.profile_status != "completed":
        display.note("warning", f"The analysis of {path.name} has {dataset.profile_status}; the training does without.")
    return dataset


def _follow_training(client: Client, experiment_id: str, display: Display, pause: Pause) -> Experiment:
    course = _Course()
    with display.bar() as bar:
        while True:
            # The state first: when it says that all is over, the events after it are complete.
            experiment = client.get_experiment(experiment_id)
            course.read(client, experiment_id, display)
            if experiment.status in ENDED:
                _end(bar, "trained", experiment.status, _took(experiment), course.line())
                return experiment
            _show(bar, experiment.progress, waiting="waiting for a free worker", detail=course.line())
            pause(POLL_SECONDS)


def _follow_evaluation(client: Client, evaluation_id: str, display: Display, pause: Pause) -> Evaluation:
    with display.bar() as bar:
        while True:
            evaluation = client.get_evaluation(evaluation_id)
            if evaluation.status in ENDED:
                _end(bar, "evaluated", evaluation.status)
                return evaluation
            _show(bar, evaluation.progress, waiting="waiting for the evaluation")
            pause(POLL_SECONDS)


@dataclass
class _Course:
    """What the events of a training have said so far."""

    after: int = 0
    values: dict[str, float] = field(default_factory=dict)

    def read(self, client: Client, experiment_id: str, display: Display) -> None:
        while events := client.events(experiment_id, after=self.after):
            for event in events:
                match event.type, event.payload:
                    case "measured", {"values": dict(values)}:
                        self.values |= values
                    case "noted", {"level": str(level), "message": str(message)}:
                        display.note(level, message)
                    case "lost", _:
                        display.note("warning", "The training process is gone without a word.")
                    case _:
                        pass
            self.after = events[-1].number

    def line(self) -> str:
        parts = {
            "loss": "loss {:.3f}",
            "held_out_loss": "held-out loss {:.3f}",
            "tokens_per_second": "{:,.0f} tokens/s",
        }
        return " · ".join(text.format(self.values[name]) for name, text in parts.items() if name in self.values)


def _show(bar: Bar, progress: Progress | None, *, waiting: str, detail: str = "") -> None:
    if progress is None or progress.stage is None:
        bar.update(waiting, 0, None)
        return
    count = f"{progress.done or 0:,}/{progress.total or 0:,} {progress.unit or ''}"
    if progress.seconds_left is not None:
        count += f"  {_clock(progress.seconds_left)} left"
    bar.update(progress.stage, progress.done or 0, progress.total, count, detail)


def _end(bar: Bar, done: str, status: Status, count: str = "", detail: str = "") -> None:
    if status == "completed":
        bar.update(done, 1, 1, count, detail)
    else:
        bar.update(f"not {done}: {status}", 0, 1, count, detail)


def _took(experiment: Experiment) -> str:
    seconds = (experiment.actual or {}).get("wall_seconds")
    return "" if seconds is None else f"in {_clock(seconds)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Interrupts wait until the block is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
