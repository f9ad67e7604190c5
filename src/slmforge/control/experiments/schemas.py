"""What the API says of an experiment, made from its rows."""

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from slmforge import __version__
from slmforge.control.experiments.configure import TrainingConfig
from slmforge.control.ids import DatasetId, EvaluationId, ExperimentId
from slmforge.control.models import service as models
from slmforge.control.tables import Evaluation, Experiment, Model, Run, RunEvent
from slmforge.control.texts import Text

EXAMPLE_ID = "0198c5f0a1b27c3d8e4f5a6b7c8d9e0f"


class ExperimentCreate(BaseModel):
    """What to train: a base model, data, and only those settings that should differ from the proposed ones."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "name": "tickets",
                    "description": "Sort support tickets by queue",
                    "goal": "At least 0.85 accuracy",
                    "base_model_id": "scratch-1m",
                    "training_dataset_id": f"ds_{EXAMPLE_ID}",
                    "eval_dataset_id": None,
                    "training_config": {"learning_rate": 0.004, "num_epochs": 8},
                    "compute": "local",
                }
            ]
        },
    )

    name: Text = Field(min_length=1, max_length=200)
    description: Text = Field("", max_length=10_000)
    goal: Text = Field("", max_length=10_000)
    base_model_id: Text = Field(
        min_length=1,
        max_length=1000,
        description="A name of the catalogue, a hub id `owner/name[@revision]`, or the absolute path of a folder.",
    )
    training_dataset_id: DatasetId
    eval_dataset_id: DatasetId | None = Field(None, description="Without one, a part of the training rows is held out.")
    training_config: TrainingConfig = Field(default_factory=TrainingConfig)
    compute: Literal["local"] = "local"


class StatusChange(BaseModel):
    """When a status was reached."""

    status: str
    at: datetime


class Progress(BaseModel):
    """How far the run is; `seconds_left` is projected from the pace of the current stage."""

    stage: str | None = None
    done: int | None = None
    total: int | None = None
    unit: str | None = None
    seconds_left: float | None = None
    step: int | None = None
    values: dict[str, float] = {}


class Failure(BaseModel):
    """Why it failed."""

    code: str
    message: str


class EvaluationLink(BaseModel):
    """An evaluation of what the experiment made."""

    evaluation_id: EvaluationId
    status: str


class ExperimentRead(BaseModel):
    """An experiment as it stands."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "experiment_id": f"exp_{EXAMPLE_ID}",
                    "name": "tickets",
                    "description": "Sort support tickets by queue",
                    "goal": "At least 0.85 accuracy",
                    "status": "running",
                    "status_timeline": [
                        {"status": "created", "at": "2026-01-11T09:31:00Z"},
                        {"status": "running", "at": "2026-01-11T09:31:08Z"},
                    ],
                    "created_at": "2026-01-11T09:31:00Z",
                    "cancel_requested": False,
                    "progress": {
                        "stage": "training",
                        "done": 120,
                        "total": 560,
                        "unit": "steps",
                        "seconds_left": 47.5,
                        "step": 120,
                        "values": {"loss": 1.31, "tokens_per_second": 15000.0},
                    },
                    "base_model_id": "scratch-1m",
                    "training_dataset_id": f"ds_{EXAMPLE_ID}",
                    "eval_dataset_id": None,
                    "compute": "local",
                    "training_config": {"method": "full", "learning_rate": 0.004, "num_epochs": 8},
                    "training_config_reasons": {"method": "random weights have nothing to adapt"},
                    "predicted": None,
                    "actual": None,
                    "lineage": {"seed": 0, "code_version": "0.1.0"},
                    "model_id": None,
                    "evaluations": [],
                    "artifacts": {},
                    "failure": None,
                    "resumed_from_id": None,
                    "event_count": 31,
                }
            ]
        }
    )

    experiment_id: ExperimentId
    name: str
    description: str
    goal: str
    status: Literal["created", "running", "completed", "failed", "cancelled"]
    status_timeline: list[StatusChange]
    created_at: datetime
    cancel_requested: bool
    progress: Progress | None
    base_model_id: str
    training_dataset_id: DatasetId
    eval_dataset_id: DatasetId | None
    compute: str
    training_config: dict[str, Any] = Field(description="Every setting in force.")
    training_config_reasons: dict[str, str] = Field(description="Why, for each setting that was not sent.")
    predicted: dict[str, float] | None
    actual: dict[str, float | None] | None
    lineage: dict[str, Any]
    model_id: str | None
    evaluations: list[EvaluationLink]
    artifacts: dict[str, str] = Field(description="Where in the storage each artefact lies.")
    failure: Failure | None
    resumed_from_id: ExperimentId | None
    event_count: int


class EventRead(BaseModel):
    """Something that happened. `number` counts without gaps; `attempt` is the process that said it."""

    number: int = Field(examples=[7])
    at: datetime
    attempt: int = Field(examples=[1])
    type: str = Field(examples=["measured"])
    payload: dict[str, Any] = Field(examples=[{"step": 20, "values": {"loss": 3.1}}])


class MetricRead(BaseModel):
    """A metric point."""

    number: int = Field(examples=[7])
    at: datetime
    step: int = Field(examples=[20])
    values: dict[str, float] = Field(examples=[{"loss": 3.1, "learning_rate": 0.004}])


def experiment_read(
    experiment: Experiment, evaluations: list[Evaluation], made: Model | None, store_url: str
) -> ExperimentRead:
    """The rows as the API shows them."""
    run = experiment.run
    return ExperimentRead(
        experiment_id=experiment.id,
        name=experiment.name,
        description=experiment.description,
        goal=experiment.goal,
        status=run.status,
        status_timeline=_timeline(run),
        created_at=experiment.created_at,
        cancel_requested=run.stop_reason == "cancel",
        progress=progress_read(run),
        base_model_id=models.public_id(experiment.base_model),
        training_dataset_id=experiment.training_dataset_id,
        eval_dataset_id=experiment.eval_dataset_id,
        compute=experiment.compute,
        training_config=experiment.config,
        training_config_reasons=experiment.reasons,
        predicted=None,
        actual=_actual(run),
        lineage=_lineage(experiment),
        model_id=models.public_id(made) if made else None,
        evaluations=[EvaluationLink(evaluation_id=e.id, status=e.run.status) for e in evaluations],
        artifacts={name: f"{store_url}/{artifact['prefix']}" for name, artifact in (run.artifacts or {}).items()},
        failure=failure_read(run),
        resumed_from_id=experiment.resumed_from_id,
        event_count=run.event_count,
    )


def progress_read(run: Run) -> Progress | None:
    """What a run said last of how far it is."""
    if run.progress is None:
        return None
    p = run.progress
    left = None
    if run.status == "running" and p.get("done", 0) > p.get("done_at_first", 0):
        pace = (datetime.now(UTC) - datetime.fromisoformat(p["since"])).total_seconds() / (
            p["done"] - p["done_at_first"]
        )
        left = round(pace * (p["total"] - p["done"]), 1)
    shown = {key: p.get(key) for key in ("stage", "done", "total", "unit", "step")}
    return Progress(**shown, seconds_left=left, values=p.get("values", {}))


def failure_read(run: Run) -> Failure | None:
    """Why a run failed, if it has."""
    if run.status != "failed":
        return None
    return Failure(code=run.failure_code or "internal_error", message=run.failure_message or "")


def event_read(event: RunEvent) -> EventRead:
    """A row as the API shows it."""
    return EventRead(number=event.number, at=event.at, attempt=event.attempt, type=event.type, payload=event.payload)


def log_line(event: RunEvent) -> str | None:
    """An event as a line for people; None for those that are only points of a curve."""
    match event.type, event.payload:
        case "noted", {"level": level, "message": message}:
            text = message if level == "info" else f"{level}: {message}"
        case "measured", {"step": step, "values": values}:
            text = f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        case "started", {"device": device}:
            text = f"started on {device}"
        case "lost", {"exit_code": code, "output": output}:
            text = f"the process is gone (exit code {code})" + (f"\n{output}" if output else "")
        case "failed", {"message": message}:
            text = f"failed: {message}"
        case "ended", {"status": status}:
            text = str(status)
        case "progressed", _:
            return None
        case type_, _:
            text = type_.replace("_", " ")
    return f"{event.at:%Y-%m-%d %H:%M:%S} {text}"


def _timeline(run: Run) -> list[StatusChange]:
    changes = [StatusChange(status="created", at=run.created_at)]
    if run.started_at is not None:
        changes.append(StatusChange(status="running", at=run.started_at))
    if run.finished_at is not None:
        changes.append(StatusChange(status=run.status, at=run.finished_at))
    return changes


def _actual(run: Run) -> dict[str, float | None] | None:
    if run.summary is None:
        return None
    return {name: run.summary.get(name) for name in ("wall_seconds", "peak_memory_bytes", "tokens_per_second")}


def _lineage(experiment: Experiment) -> dict[str, Any]:
    run, started = experiment.run, experiment.run.started or {}
    data = run.spec["data"]
    return {
        "training_dataset_sha256": data["train"]["blob"]["sha256"],
        "eval_dataset_sha256": data["eval"]["blob"]["sha256"] if data["eval"] else None,
        "held_out": data["held_out"],
        "base_model": (run.summary or {}).get("base", run.spec["base"]),
        "seed": run.spec["seed"],
        "code_version": started.get("versions", {}).get("slmforge", __version__),
        "package_versions": started.get("versions", {}),
        "device": started.get("device"),
        "choices": started.get("choices", {}),
        "attempts": run.attempt,
    }
