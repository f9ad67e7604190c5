"""The schema, on one page. Every change to it is a migration; every row has an owner.

An experiment or an evaluation has no state of its own that could fall out of step: its run has.
"""

import uuid
from datetime import UTC, datetime
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from slmforge.control.ids import new_id


class UtcDateTime(sa.TypeDecorator[datetime]):
    """Aware UTC in and out, also where the database keeps no zone (SQLite)."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value and (value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC))


def utc_now() -> datetime:
    """Now, aware."""
    return datetime.now(UTC)


class Table(DeclarativeBase):
    """Base of all tables; constraint names are fixed so that migrations can refer to them."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {
        datetime: UtcDateTime,
        dict[str, Any]: sa.JSON,
        list[dict[str, Any]]: sa.JSON,
    }


class Run(Table):
    """A piece of work for the training plane: what was asked, how it stands, and who is looking after it."""

    __tablename__ = "run"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_id)
    kind: Mapped[str] = mapped_column(sa.String(20))
    spec: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(sa.String(20), default="created")
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    # Where it runs. `handle` is None until the process of this attempt is known to have been started.
    attempt: Mapped[int] = mapped_column(default=1)
    losses: Mapped[int] = mapped_column(default=0)
    node: Mapped[str | None] = mapped_column(sa.String(255))
    handle: Mapped[str | None] = mapped_column(sa.String(255))
    stop_reason: Mapped[str | None] = mapped_column(sa.String(20))
    stop_requested_at: Mapped[datetime | None]
    lease_owner: Mapped[str | None] = mapped_column(sa.String(64))
    lease_expires_at: Mapped[datetime | None]

    # What it said. `cursor` is the last event segment folded, `event_count` the number of the last event.
    cursor: Mapped[int] = mapped_column(default=0)
    event_count: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column(default=0)
    progress: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    started: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    checkpoint: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    summary: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    artifacts: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    failure_code: Mapped[str | None] = mapped_column(sa.String(40))
    failure_message: Mapped[str | None] = mapped_column(sa.Text)

    __table_args__ = (
        sa.CheckConstraint("status IN ('created', 'running', 'completed', 'failed', 'cancelled')", name="status"),
        sa.Index("ix_run_unfinished", "status", "lease_expires_at"),
    )


class RunEvent(Table):
    """Append-only. `number` counts without gaps over a run; `seq` is the writer's own count within an attempt.

    `seq` is null for what the control plane itself did (created, launched, lost …).
    """

    __tablename__ = "run_event"

    run_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    seq: Mapped[int | None]
    at: Mapped[datetime]
    type: Mapped[str] = mapped_column(sa.String(40))
    payload: Mapped[dict[str, Any]]

    __table_args__ = (sa.UniqueConstraint("run_id", "attempt", "seq"),)


class Worker(Table):
    """A worker process that has been heard of; health asks whether one has been lately."""

    __tablename__ = "worker"

    id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    node: Mapped[str] = mapped_column(sa.String(255))
    seen_at: Mapped[datetime]


class Dataset(Table):
    """An uploaded file, bit for bit, and what was understood of it."""

    __tablename__ = "dataset"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_id)
    owner_id: Mapped[str] = mapped_column(sa.String(64), index=True)
    name: Mapped[str] = mapped_column(sa.String(200))
    description: Mapped[str] = mapped_column(sa.Text)
    dataset_type: Mapped[str] = mapped_column(sa.String(20))
    filename: Mapped[str] = mapped_column(sa.String(255))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    blob: Mapped[dict[str, Any]]
    format: Mapped[str] = mapped_column(sa.String(20))
    layout: Mapped[str] = mapped_column(sa.String(40))
    columns: Mapped[dict[str, Any]]
    split: Mapped[str | None] = mapped_column(sa.String(200))
    row_count: Mapped[int] = mapped_column(sa.BigInteger)
    invalid_rows: Mapped[int] = mapped_column(sa.BigInteger)
    defects: Mapped[list[dict[str, Any]]]
    profile_run_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("run.id"), index=True)
    profile: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))

    profile_run: Mapped[Run] = relationship(lazy="joined")


class Model(Table):
    """A base model (of the catalogue, a hub id or a folder: no owner) or one that an experiment made."""

    __tablename__ = "model"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_id)
    owner_id: Mapped[str | None] = mapped_column(sa.String(64), index=True)
    slug: Mapped[str | None] = mapped_column(sa.String(200), unique=True)
    name: Mapped[str] = mapped_column(sa.String(300))
    version: Mapped[str] = mapped_column(sa.String(64))
    model_type: Mapped[str] = mapped_column(sa.String(20))
    architecture: Mapped[str] = mapped_column(sa.String(100))
    parameters_count: Mapped[int | None] = mapped_column(sa.BigInteger)
    license: Mapped[str | None] = mapped_column(sa.String(100))
    context_window: Mapped[int | None]
    is_gated: Mapped[bool] = mapped_column(default=False)
    is_latest: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    source: Mapped[dict[str, Any]]
    base_model_id: Mapped[uuid.UUID | None] = mapped_column(sa.ForeignKey("model.id"))
    # No foreign key: the experiment refers to its base model, and a ring of tables cannot be created in order.
    experiment_id: Mapped[uuid.UUID | None] = mapped_column(unique=True)

    base_model: Mapped["Model | None"] = relationship(remote_side="Model.id", lazy="joined", join_depth=1)


class Experiment(Table):
    """What somebody wants to try: a base model, data, settings. How it stands is its run's affair."""

    __tablename__ = "experiment"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_id)
    owner_id: Mapped[str] = mapped_column(sa.String(64), index=True)
    name: Mapped[str] = mapped_column(sa.String(200))
    description: Mapped[str] = mapped_column(sa.Text)
    goal: Mapped[str] = mapped_column(sa.Text)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    base_model_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("model.id"))
    training_dataset_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("dataset.id"), index=True)
    eval_dataset_id: Mapped[uuid.UUID | None] = mapped_column(sa.ForeignKey("dataset.id"), index=True)
    compute: Mapped[str] = mapped_column(sa.String(20))
    config: Mapped[dict[str, Any]]
    reasons: Mapped[dict[str, Any]]
    run_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("run.id"), unique=True)
    resumed_from_id: Mapped[uuid.UUID | None] = mapped_column(sa.ForeignKey("experiment.id"))

    run: Mapped[Run] = relationship(lazy="joined", innerjoin=True)
    base_model: Mapped[Model] = relationship(foreign_keys=[base_model_id], lazy="joined", innerjoin=True)
    training_dataset: Mapped[Dataset] = relationship(foreign_keys=[training_dataset_id])
    eval_dataset: Mapped[Dataset | None] = relationship(foreign_keys=[eval_dataset_id])


class Evaluation(Table):
    """Base against tuned on the same held-out rows: a dataset's, or those the experiment kept back."""

    __tablename__ = "evaluation"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_id)
    owner_id: Mapped[str] = mapped_column(sa.String(64), index=True)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    experiment_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("experiment.id"), index=True)
    model_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("model.id"), index=True)
    dataset_id: Mapped[uuid.UUID | None] = mapped_column(sa.ForeignKey("dataset.id"), index=True)
    run_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("run.id"), unique=True)

    run: Mapped[Run] = relationship(lazy="joined", innerjoin=True)
    model: Mapped[Model] = relationship(lazy="joined", innerjoin=True)
    experiment: Mapped[Experiment] = relationship(lazy="joined", innerjoin=True)


class IdempotencyKey(Table):
    """The answer once given to a POST, written in the transaction that did its work."""

    __tablename__ = "idempotency_key"

    owner_id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    key: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(sa.String(64))
    answer: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
