"""What the service answers, as far as the clients read it. Fields that are not listed here are ignored."""

from typing import Any, Literal

from pydantic import BaseModel

Status = Literal["created", "running", "completed", "failed", "cancelled"]
ENDED = ("completed", "failed", "cancelled")


class Health(BaseModel):
    """Whether each part answers."""

    status: str
    database: str
    storage: str
    compute: str


class Issue(BaseModel):
    """A row that cannot be used."""

    row: int
    line: int | None
    reason: str
    remedy: str


class Finding(BaseModel):
    """Something the analysis says to a person."""

    severity: Literal["info", "warning", "error"]
    message: str
    remedy: str


class Lengths(BaseModel):
    """Characters per row: the median, and what 95 of 100 rows stay within."""

    p50: int
    p95: int


class Labels(BaseModel):
    """How often each label occurs."""

    number: int
    counts: dict[str, int]


class Profile(BaseModel):
    """What the analysis found."""

    prompt_characters: Lengths | None = None
    answer_characters: Lengths | None = None
    text_characters: Lengths | None = None
    labels: Labels | None = None
    findings: list[Finding] = []


class Dataset(BaseModel):
    """An uploaded file; `profile` is there once `profile_status` is completed."""

    dataset_id: str
    name: str
    filename: str
    row_count: int
    invalid_rows: int
    format: str
    layout: str
    mapping: dict[str, str]
    issues: list[Issue]
    profile_status: Status
    profile: Profile | None


class Model(BaseModel):
    """A base model, or one that an experiment made."""

    model_id: str
    name: str
    model_type: str
    parameters_count: int | None
    license: str | None


class Progress(BaseModel):
    """How far a run is."""

    stage: str | None = None
    done: int | None = None
    total: int | None = None
    unit: str | None = None
    seconds_left: float | None = None


class Failure(BaseModel):
    """Why a run failed."""

    code: str
    message: str


class EvaluationLink(BaseModel):
    """An evaluation of what an experiment made."""

    evaluation_id: str
    status: Status


class Experiment(BaseModel):
    """An experiment as it stands."""

    experiment_id: str
    name: str
    status: Status
    progress: Progress | None
    base_model_id: str
    eval_dataset_id: str | None
    training_config: dict[str, Any]
    actual: dict[str, float | None] | None
    model_id: str | None
    evaluations: list[EvaluationLink]
    artifacts: dict[str, str]
    failure: Failure | None


class Event(BaseModel):
    """Something that happened in a run; `number` counts without gaps."""

    number: int
    type: str
    payload: dict[str, Any]


class MetricPoint(BaseModel):
    """Metrics at a training step."""

    number: int
    step: int
    values: dict[str, float]


class Metric(BaseModel):
    """One measure of base and tuned on the same rows; `interval` is the 95% interval of the difference."""

    base: float | None
    tuned: float | None
    difference: float | None
    interval: tuple[float, float] | None
    verdict: str


class Sample(BaseModel):
    """A held-out row and what both models answer to it."""

    prompt: str | None = None
    expected: str | None = None
    base: str | None = None
    tuned: str | None = None


class Evaluation(BaseModel):
    """Base against tuned."""

    evaluation_id: str
    status: Status
    progress: Progress | None
    rows: int | None
    metrics: dict[str, Metric]
    sample_outputs: list[Sample] | None
    failure: Failure | None
