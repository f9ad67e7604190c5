"""Experiments as rows: create one with its training run, find it again, cancel it, go on from where it stopped."""

import uuid
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from slmforge.contract.events import Checkpointed
from slmforge.contract.spec import Base, EvalData, TrainSpec
from slmforge.control.database import Listed, Page, paginate
from slmforge.control.datasets import service as datasets
from slmforge.control.errors import Conflict, Invalid, NotFound
from slmforge.control.experiments.configure import TrainingConfig, resolve
from slmforge.control.models import service as models
from slmforge.control.runs import service as runs
from slmforge.control.tables import Dataset, Evaluation, Experiment, Run
from slmforge.data.reading import task_of


@dataclass(frozen=True)
class Wanted:
    """What somebody asks of a new experiment. `located` is the base that `models.locate` found, if it did."""

    name: str
    description: str
    goal: str
    base_model_id: str
    located: Base | None
    training_dataset_id: uuid.UUID
    eval_dataset_id: uuid.UUID | None
    training_config: TrainingConfig
    compute: str


def create(session: Session, owner: str, wanted: Wanted) -> Experiment:
    """Resolve everything into a spec, and queue the training in the same transaction.

    Raises `NotFound` for a dataset or model that is not there and `Invalid` for settings that contradict the data.
    """
    train = _dataset(session, owner, wanted.training_dataset_id, "training")
    held_out = _dataset(session, owner, wanted.eval_dataset_id, "evaluation") if wanted.eval_dataset_id else None
    train_ref, held_out_ref = datasets.reference(train), datasets.reference(held_out) if held_out else None
    task = task_of(train_ref.layout)
    if held_out_ref is not None and task_of(held_out_ref.layout) != task:
        raise Invalid(
            f"eval_dataset_id: its rows are read as {held_out_ref.layout}, those of the training dataset as "
            f"{train_ref.layout}; upload one of them again with a mapping that makes them alike."
        )
    seed = wanted.training_config.seed or 0
    base_model, base = models.resolve_base(session, owner, wanted.base_model_id, wanted.located, seed)
    resolved = resolve(wanted.training_config, base, task, train.row_count, train_ref.blob.size_bytes)
    spec = TrainSpec(
        name=wanted.name,
        base=base,
        data=EvalData(
            train=train_ref,
            eval=held_out_ref,
            held_out=None if held_out_ref else resolved.held_out(),
        ),
        task=task,
        method=resolved.values["method"],
        lora=resolved.lora(),
        optimization=resolved.optimization(),
        max_seq_length=resolved.values["max_seq_length"],
        micro_batch_tokens=resolved.values["micro_batch_tokens"],
        seed=seed,
        eval_every_steps=resolved.values["eval_every_steps"],
        checkpoint_every_seconds=resolved.values["checkpoint_every_seconds"],
        resume_from=None,
    )
    experiment = Experiment(
        owner_id=owner,
        name=wanted.name,
        description=wanted.description,
        goal=wanted.goal,
        base_model=base_model,
        training_dataset=train,
        eval_dataset=held_out,
        compute=wanted.compute,
        config=resolved.values,
        reasons=resolved.reasons,
        run=runs.submit(session, spec),
    )
    session.add(experiment)
    session.flush()
    return experiment


def get(session: Session, owner: str, experiment_id: uuid.UUID) -> Experiment:
    """The owner's experiment. Raises `NotFound`."""
    experiment = session.get(Experiment, experiment_id)
    if experiment is None or experiment.owner_id != owner:
        raise NotFound(f"There is no experiment exp_{experiment_id.hex}.")
    return experiment


def find(session: Session, owner: str, page: Page, *, status: str | None) -> Listed:
    """The owner's experiments, newest first."""
    query = sa.select(Experiment).where(Experiment.owner_id == owner)
    if status is not None:
        query = query.join(Experiment.run).where(Run.status == status)
    return paginate(session, query, Experiment.id, page)


def evaluations_of(session: Session, experiment_ids: list[uuid.UUID]) -> dict[uuid.UUID, list[Evaluation]]:
    """The evaluations of each experiment, oldest first."""
    query = sa.select(Evaluation).where(Evaluation.experiment_id.in_(experiment_ids)).order_by(Evaluation.id)
    found: dict[uuid.UUID, list[Evaluation]] = {}
    for evaluation in session.scalars(query):
        found.setdefault(evaluation.experiment_id, []).append(evaluation)
    return found


def cancel(session: Session, owner: str, experiment_id: uuid.UUID) -> Experiment:
    """Ask for the end of its training. Raises `NotFound`, and `Conflict` when it has ended."""
    experiment = get(session, owner, experiment_id)
    runs.cancel(session, experiment.run_id)
    return experiment


def resume(session: Session, owner: str, experiment_id: uuid.UUID) -> Experiment:
    """A new experiment that goes on from the last checkpoint of one that was cancelled or failed.

    A new one, because a terminal state never changes. Raises `NotFound`, `Conflict`.
    """
    stopped = get(session, owner, experiment_id)
    if stopped.run.status not in ("cancelled", "failed"):
        raise Conflict(f"It is {stopped.run.status}; only a cancelled or failed experiment can be resumed.")
    if stopped.run.checkpoint is None:
        raise Conflict("It stopped before its first checkpoint, so there is nothing to go on from; create it anew.")
    checkpoint = Checkpointed.model_validate(stopped.run.checkpoint)
    spec = TrainSpec.model_validate(stopped.run.spec).model_copy(update={"resume_from": checkpoint.artifact})
    experiment = Experiment(
        owner_id=owner,
        name=stopped.name,
        description=stopped.description,
        goal=stopped.goal,
        base_model=stopped.base_model,
        training_dataset=stopped.training_dataset,
        eval_dataset=stopped.eval_dataset,
        compute=stopped.compute,
        config=stopped.config,
        reasons=stopped.reasons,
        run=runs.submit(session, spec),
        resumed_from_id=stopped.id,
    )
    session.add(experiment)
    session.flush()
    return experiment


def follow(session: Session, run: Run) -> None:
    """Record the model that a completed training has made."""
    if run.status == "completed":
        models.record_fine_tuned(session, of_run(session, run.id), run)


def of_run(session: Session, run_id: uuid.UUID) -> Experiment:
    """The experiment whose training this run is."""
    return session.scalars(sa.select(Experiment).where(Experiment.run_id == run_id)).one()


def _dataset(session: Session, owner: str, dataset_id: uuid.UUID, purpose: str) -> Dataset:
    dataset = datasets.get(session, owner, dataset_id)
    if dataset.dataset_type != purpose:
        raise Invalid(
            f"{'training' if purpose == 'training' else 'eval'}_dataset_id: ds_{dataset_id.hex} was uploaded as "
            f"{dataset.dataset_type} data; name one uploaded with dataset_type={purpose}."
        )
    return dataset
