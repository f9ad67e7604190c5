"""Evaluations as rows: one follows each completed training, others are made on request."""

import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from slmforge.contract.spec import ArtifactRef, EvalData, EvalSpec, TrainSpec
from slmforge.control.database import Listed, Page, paginate
from slmforge.control.datasets import service as datasets
from slmforge.control.errors import Invalid, NotFound
from slmforge.control.experiments import service as experiments
from slmforge.control.models import service as models
from slmforge.control.runs import service as runs
from slmforge.control.tables import Dataset, Evaluation, Experiment, Model, Run, RunEvent
from slmforge.data.reading import task_of

BOOTSTRAP_SAMPLES = 2000
SAMPLE_ROWS = 20


def start_after_training(session: Session, run: Run) -> None:
    """Queue the comparison of base and tuned on the rows that the training held out."""
    if run.status == "completed":
        experiment = experiments.of_run(session, run.id)
        model = models.of_experiments(session, [experiment.id])[experiment.id]  # experiments.follow came first
        _submit(session, experiment, model, experiment.eval_dataset)


def create(session: Session, owner: str, model_id: str, dataset_id: uuid.UUID | None) -> Evaluation:
    """Queue another comparison of a fine-tuned model with its base: on a dataset, or on its own held-out rows.

    Raises `NotFound`, and `Invalid` for a base model or for rows of another kind.
    """
    model = models.get(session, owner, model_id)
    if model.experiment_id is None:
        raise Invalid(f"model_id: {model_id!r} is a base model; name a fine-tuned one, it is compared with its base.")
    experiment = experiments.get(session, owner, model.experiment_id)
    dataset = datasets.get(session, owner, dataset_id) if dataset_id else experiment.eval_dataset
    return _submit(session, experiment, model, dataset)


def get(session: Session, owner: str, evaluation_id: uuid.UUID) -> Evaluation:
    """The owner's evaluation. Raises `NotFound`."""
    evaluation = session.get(Evaluation, evaluation_id)
    if evaluation is None or evaluation.owner_id != owner:
        raise NotFound(f"There is no evaluation eval_{evaluation_id.hex}.")
    return evaluation


def find(session: Session, owner: str, page: Page, *, experiment_id: uuid.UUID | None) -> Listed:
    """The owner's evaluations, newest first."""
    query = sa.select(Evaluation).where(Evaluation.owner_id == owner)
    if experiment_id is not None:
        query = query.where(Evaluation.experiment_id == experiment_id)
    return paginate(session, query, Evaluation.id, page)


def loss_curve(session: Session, evaluation: Evaluation) -> list[dict[str, Any]]:
    """The training's metric points, in order of step."""
    training = sa.select(Experiment.run_id).where(Experiment.id == evaluation.experiment_id).scalar_subquery()
    query = sa.select(RunEvent).where(RunEvent.run_id == training, RunEvent.type == "measured")
    return [
        {"step": event.payload["step"], **event.payload["values"]}
        for event in session.scalars(query.order_by(RunEvent.number))
    ]


def _submit(session: Session, experiment: Experiment, model: Model, dataset: Dataset | None) -> Evaluation:
    trained = TrainSpec.model_validate(experiment.run.spec)
    data = trained.data
    if dataset is not None:
        rows = datasets.reference(dataset)
        if task_of(rows.layout) != trained.task:
            raise Invalid(f"dataset_id: its rows are read as {rows.layout}, which this model was not trained for.")
        data = EvalData(train=data.train, eval=rows, held_out=None)
    spec = EvalSpec(
        base=models.BASE.validate_python((experiment.run.summary or {}).get("base", trained.base)),
        tuned=ArtifactRef.model_validate(model.source),
        data=data,
        task=trained.task,
        max_seq_length=trained.max_seq_length,
        max_new_tokens=experiment.config["max_new_tokens"],
        generate_rows=experiment.config["generate_rows"],
        bootstrap_samples=BOOTSTRAP_SAMPLES,
        sample_rows=SAMPLE_ROWS,
        seed=trained.seed,
    )
    evaluation = Evaluation(
        owner_id=experiment.owner_id,
        experiment=experiment,
        model=model,
        dataset_id=dataset.id if dataset else None,
        run=runs.submit(session, spec),
    )
    session.add(evaluation)
    session.flush()
    return evaluation
