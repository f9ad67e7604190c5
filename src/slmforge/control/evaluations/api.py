"""Evaluations over HTTP."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from slmforge.control import idempotency
from slmforge.control.dependencies import PageAsked, Reading, Writing, add_page_headers
from slmforge.control.evaluations import service as evaluations
from slmforge.control.experiments.schemas import EXAMPLE_ID, Failure, Progress, failure_read, progress_read
from slmforge.control.identity import Caller
from slmforge.control.ids import DatasetId, EvaluationId, ExperimentId
from slmforge.control.models import service as models
from slmforge.control.problems import responses
from slmforge.control.tables import Evaluation
from slmforge.control.texts import Text

router = APIRouter(prefix="/evaluations", tags=["evaluations"])


class EvaluationCreate(BaseModel):
    """Compare a fine-tuned model with its base once more."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"model_id": f"model_{EXAMPLE_ID}", "dataset_id": f"ds_{EXAMPLE_ID}"}]},
    )

    model_id: Text = Field(max_length=200)
    dataset_id: DatasetId | None = Field(None, description="Without one, the rows that the experiment held out.")


class Metric(BaseModel):
    """One measure of base and tuned on the same rows; `interval` is the 95% interval of the difference."""

    model_config = ConfigDict(extra="allow")

    base: float | None
    tuned: float | None
    difference: float | None
    interval: tuple[float, float] | None
    verdict: str


class EvaluationRead(BaseModel):
    """Base against tuned. `metrics` is empty until it has ended; the long parts stand in the single answer only."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "evaluation_id": f"eval_{EXAMPLE_ID}",
                    "experiment_id": f"exp_{EXAMPLE_ID}",
                    "model_id": f"model_{EXAMPLE_ID}",
                    "base_model_id": "scratch-1m",
                    "dataset_id": f"ds_{EXAMPLE_ID}",
                    "status": "completed",
                    "created_at": "2026-01-11T09:34:00Z",
                    "completed_at": "2026-01-11T09:34:40Z",
                    "progress": None,
                    "task": "classification",
                    "rows": 500,
                    "metrics": {
                        "accuracy": {
                            "base": 0.07,
                            "tuned": 0.88,
                            "difference": 0.81,
                            "interval": [0.77, 0.85],
                            "verdict": "better",
                        }
                    },
                    "training_statistics": {"steps": 560, "wall_seconds": 61.2},
                    "loss_curve": [{"step": 20, "loss": 3.1}],
                    "sample_outputs": [
                        {
                            "row": 3,
                            "prompt": "Where is my parcel?",
                            "expected": "delivery",
                            "base": "refund",
                            "tuned": "delivery",
                        }
                    ],
                    "details": {"labels": ["delivery", "refund"]},
                    "failure": None,
                }
            ]
        }
    )

    evaluation_id: EvaluationId
    experiment_id: ExperimentId
    model_id: str
    base_model_id: str
    dataset_id: DatasetId | None = Field(description="Null when part of the training dataset was held out.")
    status: str
    created_at: datetime
    completed_at: datetime | None
    progress: Progress | None
    task: str
    rows: int | None
    metrics: dict[str, Metric]
    training_statistics: dict[str, Any]
    loss_curve: list[dict[str, Any]] | None
    sample_outputs: list[dict[str, Any]] | None
    details: dict[str, Any] | None
    failure: Failure | None


@router.post("", status_code=201, responses=responses(400, 404, 409))
def create(body: EvaluationCreate, session: Writing, caller: Caller, key: idempotency.Key = None) -> EvaluationRead:
    """Compare a fine-tuned model with its base again, on other rows if you like. It is answered at once."""
    return idempotency.once(
        session,
        caller,
        key,
        body.model_dump_json(),
        EvaluationRead,
        lambda: _read(evaluations.create(session, caller, body.model_id, body.dataset_id)),
    )


@router.get("", responses=responses(400, 404))
def list_evaluations(
    request: Request,
    response: Response,
    session: Reading,
    caller: Caller,
    page: PageAsked,
    experiment_id: Annotated[ExperimentId | None, Query()] = None,
) -> list[EvaluationRead]:
    """The evaluations, newest first."""
    listed = evaluations.find(session, caller, page, experiment_id=experiment_id)
    add_page_headers(request, response, listed)
    return [_read(evaluation) for evaluation in listed.rows]


@router.get("/{evaluation_id}", responses=responses(404))
def get_evaluation(session: Reading, caller: Caller, evaluation_id: EvaluationId) -> EvaluationRead:
    """One evaluation with its loss curve, sample outputs and details."""
    evaluation = evaluations.get(session, caller, evaluation_id)
    return _with_details(session, evaluation)


def _with_details(session: Session, evaluation: Evaluation) -> EvaluationRead:
    summary = evaluation.run.summary or {}
    shown_elsewhere = {"metrics", "samples", "task", "rows"}
    return _read(evaluation).model_copy(
        update={
            "loss_curve": evaluations.loss_curve(session, evaluation),
            "sample_outputs": summary.get("samples", []),
            "details": {name: value for name, value in summary.items() if name not in shown_elsewhere},
        }
    )


def _read(evaluation: Evaluation) -> EvaluationRead:
    run = evaluation.run
    summary = run.summary or {}
    return EvaluationRead(
        evaluation_id=evaluation.id,
        experiment_id=evaluation.experiment_id,
        model_id=models.public_id(evaluation.model),
        base_model_id=models.public_id(evaluation.experiment.base_model),
        dataset_id=evaluation.dataset_id,
        status=run.status,
        created_at=evaluation.created_at,
        completed_at=run.finished_at if run.status == "completed" else None,
        progress=progress_read(run),
        task=run.spec["task"],
        rows=summary.get("rows"),
        metrics={name: Metric(**metric) for name, metric in summary.get("metrics", {}).items()},
        training_statistics=evaluation.experiment.run.summary or {},
        loss_curve=None,
        sample_outputs=None,
        details=None,
        failure=failure_read(run),
    )
