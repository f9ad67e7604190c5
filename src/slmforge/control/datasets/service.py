"""Datasets as rows and blobs. An upload is read and stored first; row and profile run come in one transaction."""

import re
import unicodedata
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import BinaryIO, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from slmforge.blobs import BlobRef, BlobStore
from slmforge.blobs.store import CHUNK_BYTES
from slmforge.contract.spec import DatasetRef, ProfileSpec
from slmforge.control.database import Listed, Page, paginate
from slmforge.control.errors import Conflict, Invalid, NotFound, UnsupportedFormat
from slmforge.control.ids import new_id
from slmforge.control.runs import service as runs
from slmforge.control.tables import Dataset, Evaluation, Experiment, Run
from slmforge.data.formats import UnreadableFile
from slmforge.data.reading import Scan, scan

Purpose = Literal["training", "evaluation"]


@dataclass(frozen=True)
class Received:
    """A file that has been read and stored, and is not yet anybody's dataset."""

    id: uuid.UUID
    filename: str
    dataset_type: Purpose
    blob: BlobRef
    scan: Scan


def receive(
    store: BlobStore, file: BinaryIO, *, filename: str, dataset_type: Purpose, mapping: dict[str, str] | None
) -> Received:
    """Read every row of an uploaded file, then store its bytes. No transaction may be open meanwhile.

    Raises `Invalid` for a file without a usable row and `UnsupportedFormat` for one of a kind that we do not read.
    """
    try:
        found = scan(file, purpose=dataset_type, mapping=mapping)
    except UnreadableFile as error:
        refuse = UnsupportedFormat if error.code == "unsupported_format" else Invalid
        raise refuse(str(error)) from None
    file.seek(0)
    id_ = new_id()
    return Received(
        id=id_,
        filename=display_name(filename),
        dataset_type=dataset_type,
        blob=store.put(f"datasets/{id_.hex}/data", _chunks(file)),
        scan=found,
    )


def create(session: Session, owner: str, received: Received, *, name: str, description: str) -> Dataset:
    """Make the received file a dataset and queue its analysis."""
    found = received.scan
    dataset = Dataset(
        id=received.id,
        owner_id=owner,
        name=name or received.filename,
        description=description,
        dataset_type=received.dataset_type,
        filename=received.filename,
        blob=received.blob.model_dump(),
        format=found.format,
        layout=found.layout,
        columns=found.columns,
        split=found.split,
        row_count=found.row_count,
        invalid_rows=found.invalid_count,
        defects=[asdict(defect) for defect in found.defects],
    )
    dataset.profile_run = runs.submit(session, ProfileSpec(dataset=reference(dataset)))
    session.add(dataset)
    session.flush()
    return dataset


def get(session: Session, owner: str, dataset_id: uuid.UUID) -> Dataset:
    """The owner's dataset. Raises `NotFound`."""
    dataset = session.get(Dataset, dataset_id)
    if dataset is None or dataset.owner_id != owner:
        raise NotFound(f"There is no dataset ds_{dataset_id.hex}.")
    return dataset


def find(session: Session, owner: str, page: Page, *, dataset_type: str | None, q: str | None) -> Listed:
    """The owner's datasets, newest first; `q` is looked for in name, description and file name."""
    query = sa.select(Dataset).where(Dataset.owner_id == owner)
    if dataset_type is not None:
        query = query.where(Dataset.dataset_type == dataset_type)
    if q:
        columns = (Dataset.name, Dataset.description, Dataset.filename)
        query = query.where(sa.or_(*(column.icontains(q, autoescape=True) for column in columns)))
    return paginate(session, query, Dataset.id, page)


def delete(session: Session, owner: str, dataset_id: uuid.UUID) -> Dataset:
    """Remove the row; the caller removes the blob once that is committed. Raises `NotFound`, `Conflict`."""
    dataset = get(session, owner, dataset_id)
    uses = sa.or_(Experiment.training_dataset_id == dataset_id, Experiment.eval_dataset_id == dataset_id)
    used = session.scalar(sa.select(sa.exists().where(uses)))
    scored = session.scalar(sa.select(sa.exists().where(Evaluation.dataset_id == dataset_id)))
    if used or scored:
        raise Conflict("An experiment or evaluation used this dataset, so its lineage needs it; it cannot be deleted.")
    if dataset.profile_run.status in runs.UNFINISHED:
        runs.cancel(session, dataset.profile_run_id)
    session.delete(dataset)
    return dataset


def reference(dataset: Dataset) -> DatasetRef:
    """The dataset as a spec names it."""
    return DatasetRef.model_validate(
        {
            "blob": dataset.blob,
            "format": dataset.format,
            "layout": dataset.layout,
            "columns": dataset.columns,
            "split": dataset.split,
        }
    )


def follow(session: Session, run: Run) -> None:
    """Keep the profile that a run has made."""
    dataset = session.scalars(sa.select(Dataset).where(Dataset.profile_run_id == run.id)).one_or_none()
    if dataset is not None and run.status == "completed":
        dataset.profile = run.summary


def display_name(filename: str) -> str:
    """A file name as something to show: no folders, no control characters. Never used as a path."""
    name = PureWindowsPath(PurePosixPath(filename).name).name
    printable = "".join(c for c in name if unicodedata.category(c)[0] != "C")
    return re.sub(r"\s+", " ", printable).strip()[:255] or "dataset"


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
