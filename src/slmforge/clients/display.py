"""What a person sees of a job: lines, a live bar in a terminal (plain lines elsewhere), and the tables at the end.

Texts from data and from the service are shown as text: no markup of theirs is obeyed, no control character passes.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO
from urllib.parse import unquote

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from slmforge.clients.answers import Dataset, Evaluation, Experiment, Lengths, Metric, Profile, Sample

PLAIN_WIDTH = 120
LABELS_SHOWN = 6
ISSUES_SHOWN = 3
SAMPLES_SHOWN = 5
SAMPLE_CHARACTERS = 160
SETTINGS_SHOWN = ("method", "num_epochs", "batch_size", "learning_rate", "lora_rank", "max_seq_length")
_STYLE_OF_LEVEL = {"info": "dim", "warning": "yellow", "error": "red"}
_MARK_OF_LEVEL = {"warning": "!", "error": "✗"}
_STYLE_OF_VERDICT = {"better": "bold green", "worse": "bold red"}


class Bar(Protocol):
    """How far something is. Without a total nobody knows how much is to come."""

    def update(self, stage: str, done: float, total: float | None, count: str = "", detail: str = "") -> None: ...


class Display:
    """Writes to `file`, which may be a terminal or not."""

    def __init__(self, file: TextIO) -> None:
        width = None if file.isatty() else PLAIN_WIDTH
        self._console = Console(file=file, width=width, highlight=False, markup=False, emoji=False)

    def say(self, text: str, style: str = "") -> None:
        self._console.print(_clean(text), style=style, soft_wrap=True)

    def note(self, level: str, message: str) -> None:
        """A line that stands out by how serious it is."""
        self.say(f"  {_MARK_OF_LEVEL.get(level, '•')} {message}", style=_STYLE_OF_LEVEL.get(level, ""))

    @contextmanager
    def bar(self, *, stays: bool = True) -> Iterator[Bar]:
        """A bar that stays on the screen when it is done, or goes."""
        if not self._console.is_terminal:
            yield _PlainBar(self)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=32),
            TextColumn("{task.fields[count]}", markup=False),
        )
        with _TwoLines(*columns, console=self._console, transient=not stays) as progress:
            yield _LiveBar(progress)

    def dataset(self, dataset: Dataset) -> None:
        """What the upload and its analysis found."""
        columns = ", ".join(f"{column} is the {field}" for field, column in dataset.mapping.items() if column != field)
        self.say(
            f"{dataset.filename}: {dataset.row_count:,} rows of {dataset.layout.replace('_', ' ')} "
            f"({dataset.format.upper()}{'; ' if columns else ''}{columns})",
            style="bold",
        )
        if dataset.profile is not None:
            for line in _found(dataset.profile):
                self.say(f"  {line}")
            for finding in dataset.profile.findings:
                self.note(finding.severity, f"{finding.message} {finding.remedy}")
        for issue in dataset.issues[:ISSUES_SHOWN]:
            where = f"row {issue.row}" if issue.line is None else f"line {issue.line}"
            self.note("warning", f"{where}: {issue.reason} {issue.remedy}")
        if dataset.invalid_rows > ISSUES_SHOWN:
            self.note("warning", f"{dataset.invalid_rows:,} rows in all cannot be used and are left out.")

    def experiment(self, experiment: Experiment) -> None:
        """What is going to be trained, on what terms."""
        config = experiment.training_config
        settings = " ".join(f"{name}={_setting(config[name])}" for name in SETTINGS_SHOWN if name in config)
        self.say(f"{experiment.experiment_id} on {experiment.base_model_id}", style="bold")
        self.say(f"  {settings}")
        if experiment.eval_dataset_id is None and (fraction := config.get("held_out_fraction")):
            self.say(f"  {fraction:.0%} of the training rows are kept out of training, to compare on")

    def comparison(self, evaluation: Evaluation) -> None:
        """Base against tuned, and a few rows answered by both."""
        rows = f"{evaluation.rows:,} held-out rows" if evaluation.rows is not None else "held-out rows"
        self._console.print("", _metrics_table(evaluation.metrics, f"Base against tuned on {rows}"), "", sep="\n")
        if evaluation.sample_outputs:
            self._console.print(_samples_table(evaluation.sample_outputs[:SAMPLES_SHOWN]), "", sep="\n")

    def artifacts(self, experiment: Experiment) -> None:
        """Where what was made lies."""
        for name, url in experiment.artifacts.items():
            local = url.startswith("file://")
            self.say(f"{name}: {unquote(url.removeprefix('file://')) if local else url}")


class _TwoLines(Progress):
    """A bar, and a line of details below it."""

    detail = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.detail:
            yield Text(f"  {self.detail}", style="dim")


class _LiveBar:
    """A bar that moves."""

    def __init__(self, progress: _TwoLines) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, count="")

    def update(self, stage: str, done: float, total: float | None, count: str = "", detail: str = "") -> None:
        self._progress.detail = detail
        self._progress.update(self._task, description=_clean(stage), completed=done, total=total, count=count)


class _PlainBar:
    """A line for each new stage and each tenth of it."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._last = ("", -1)

    def update(self, stage: str, done: float, total: float | None, count: str = "", detail: str = "") -> None:
        tenth = int(10 * done / total) if total else 0
        if (stage, tenth) != self._last:
            self._last = (stage, tenth)
            self._display.say("  ".join(part for part in (stage, count, detail) if part))


def _found(profile: Profile) -> Iterator[str]:
    if labels := profile.labels:
        shown = ", ".join(f"{label} {count:,}" for label, count in list(labels.counts.items())[:LABELS_SHOWN])
        yield f"{labels.number:,} labels: {shown}{', …' if labels.number > LABELS_SHOWN else ''}"
    lengths: dict[str, Lengths | None] = {"prompts": profile.prompt_characters}
    if labels is None:
        lengths |= {"answers": profile.answer_characters, "texts": profile.text_characters}
    for name, length in lengths.items():
        if length is not None:
            yield f"{name}: half have up to {length.p50:,} characters, 95 of 100 up to {length.p95:,}"


def _metrics_table(metrics: dict[str, Metric], title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("metric")
    for name in ("base", "tuned", "difference", "95% interval"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for name, metric in metrics.items():
        interval = "–" if metric.interval is None else " … ".join(_number(end, sign="+") for end in metric.interval)
        table.add_row(
            _clean(name.replace("_", " ")),
            _number(metric.base),
            _number(metric.tuned),
            _number(metric.difference, sign="+"),
            interval,
            Text(_clean(metric.verdict), style=_STYLE_OF_VERDICT.get(metric.verdict, "yellow")),
        )
    return table


def _samples_table(samples: list[Sample]) -> Table:
    table = Table(title="The same rows answered by both", title_justify="left", title_style="bold", show_lines=True)
    for name in ("prompt", "expected", "base", "tuned"):
        table.add_column(name, ratio=2 if name == "prompt" else 1, overflow="fold")
    for sample in samples:
        right = sample.tuned is not None and sample.tuned == sample.expected
        table.add_row(
            _excerpt(sample.prompt),
            _excerpt(sample.expected),
            _excerpt(sample.base),
            Text(_excerpt(sample.tuned), style="green" if right else ""),
        )
    return table


def _setting(value: object) -> str:
    """As `--set` takes it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float | None, sign: str = "") -> str:
    if value is None:
        return "–"
    digits = 3 if abs(value) < 10 else 1
    return f"{value:{sign},.{digits}f}"


def _excerpt(text: str | None) -> str:
    if text is None:
        return "–"
    line = _clean(" ".join(text.split()))
    return line if len(line) <= SAMPLE_CHARACTERS else f"{line[: SAMPLE_CHARACTERS - 1]}…"


def _clean(text: str) -> str:
    """No control character of somebody's data reaches the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
