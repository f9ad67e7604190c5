"""Datasets over HTTP."""

import json
from datetime import date, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Query, Request, Response, UploadFile
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from slmforge.blobs import BlobRef
from slmforge.control import idempotency
from slmforge.control.datasets import service as datasets
from slmforge.control.dependencies import PageAsked, Reading, Store, TheDatabase, add_page_headers
from slmforge.control.downloads import blob_response
from slmforge.control.errors import Invalid
from slmforge.control.identity import Caller
from slmforge.control.ids import DatasetId
from slmforge.control.problems import responses
from slmforge.control.tables import Dataset
from slmforge.control.texts import Text

router = APIRouter(prefix="/datasets", tags=["datasets"])

SHOWN_DEFECTS = 100
_MAPPING: TypeAdapter[dict[str, str]] = TypeAdapter(dict[Text, Text])


class DefectRead(BaseModel):
    """A row that cannot be used: where it stands, what is wrong and what to do."""

    row: int
    line: int | None
    pointer: str | None
    code: str
    reason: str
    remedy: str


class DatasetRead(BaseModel):
    """A dataset. `profile` is null until its analysis has ended; `profile_status` says how that stands."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "dataset_id": "ds_0198c5f0a1b27c3d8e4f5a6b7c8d9e0f",
                    "name": "support_data_v1",
                    "description": "Tickets of the first half-year",
                    "dataset_type": "training",
                    "row_count": 2500,
                    "upload_date": "2026-01-11",
                    "session_id": "0198c5f0-a1b2-7c3d-8e4f-5a6b7c8d9e0f",
                    "filename": "tickets.csv",
                    "size": 184213,
                    "sha256": "9f2c6d0e8b7a4c5d3e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b6c5d4e3f2a1b0c9d",
                    "format": "csv",
                    "layout": "classification",
                    "mapping": {"text": "text", "label": "category"},
                    "split": None,
                    "invalid_rows": 1,
                    "issues": [
                        {
                            "row": 17,
                            "line": 19,
                            "pointer": None,
                            "code": "empty_answer",
                            "reason": "The label is empty.",
                            "remedy": "Give the row a label or remove it.",
                        }
                    ],
                    "created_at": "2026-01-11T09:30:00Z",
                    "profile_status": "completed",
                    "profile": {"rows": 2500},
                }
            ]
        }
    )

    dataset_id: DatasetId
    name: str
    description: str
    dataset_type: Literal["training", "evaluation"]
    row_count: int = Field(description="Rows that can be used.")
    upload_date: date
    session_id: str
    filename: str
    size: int = Field(description="Bytes of the file as uploaded.")
    sha256: str
    format: str
    layout: str
    mapping: dict[str, str] = Field(description="Our field names, and the file's columns that were taken for them.")
    split: str | None = Field(description="The split that was taken, of a JSON file with several.")
    invalid_rows: int
    issues: list[DefectRead] = Field(description=f"The first {SHOWN_DEFECTS} rows that cannot be used.")
    created_at: datetime
    profile_status: str
    profile: dict[str, Any] | None


@router.post("/upload", status_code=201, responses=responses(400, 409, 413, 415))
def upload(
    database: TheDatabase,
    store: Store,
    caller: Caller,
    file: Annotated[UploadFile, File(description="CSV, JSON or JSONL; what it is shows from its content.")],
    name: Annotated[Text, Form(max_length=200, examples=["support_data_v1"])] = "",
    description: Annotated[Text, Form(max_length=10_000, examples=["Tickets of the first half-year"])] = "",
    dataset_type: Annotated[Literal["training", "evaluation"], Form(examples=["training"])] = "training",
    mapping: Annotated[
        str | None, Form(description="JSON: which column is which.", examples=['{"text": "message", "label": "queue"}'])
    ] = None,
    key: idempotency.Key = None,
) -> DatasetRead:
    """Upload a training or evaluation dataset. Rows that cannot be used are counted and listed with their lines."""
    received = datasets.receive(
        store, file.file, filename=file.filename or "", dataset_type=dataset_type, mapping=_mapping(mapping)
    )
    request = json.dumps([received.blob.sha256, received.filename, name, description, dataset_type, mapping])
    try:
        with database.write() as session:
            answer = idempotency.once(
                session,
                caller,
                key,
                request,
                DatasetRead,
                lambda: read(datasets.create(session, caller, received, name=name, description=description)),
            )
    except BaseException:
        store.delete(received.blob.key)
        raise
    if answer.dataset_id != received.id:
        store.delete(received.blob.key)
    return answer


@router.get("", responses=responses(400))
def list_datasets(
    request: Request,
    response: Response,
    session: Reading,
    caller: Caller,
    page: PageAsked,
    dataset_type: Annotated[Literal["training", "evaluation"] | None, Query()] = None,
    q: Annotated[Text | None, Query(max_length=200, description="Looked for in names and descriptions.")] = None,
) -> list[DatasetRead]:
    """The datasets, newest first."""
    listed = datasets.find(session, caller, page, dataset_type=dataset_type, q=q)
    add_page_headers(request, response, listed)
    return [read(dataset) for dataset in listed.rows]


@router.get("/{dataset_id}", responses=responses(404))
def get_dataset(session: Reading, caller: Caller, dataset_id: DatasetId) -> DatasetRead:
    """One dataset, with what its analysis found."""
    return read(datasets.get(session, caller, dataset_id))


@router.get(
    "/{dataset_id}/download",
    response_class=Response,
    responses={
        200: {"description": "The file.", "content": {"application/octet-stream": {"example": "text,category\n…"}}},
        206: {"description": "A part of the file."},
        **responses(404, 416),
    },
)
def download(request: Request, session: Reading, store: Store, caller: Caller, dataset_id: DatasetId) -> Response:
    """The very bytes that were uploaded."""
    dataset = datasets.get(session, caller, dataset_id)
    return blob_response(request, store, BlobRef.model_validate(dataset.blob), dataset.filename)


@router.delete("/{dataset_id}", status_code=204, responses=responses(404, 409))
def delete_dataset(database: TheDatabase, store: Store, caller: Caller, dataset_id: DatasetId) -> None:
    """Delete a dataset that no experiment used."""
    with database.write() as session:
        dataset = datasets.delete(session, caller, dataset_id)
    store.delete(BlobRef.model_validate(dataset.blob).key)


def read(dataset: Dataset) -> DatasetRead:
    """A row as the API shows it."""
    blob = BlobRef.model_validate(dataset.blob)
    return DatasetRead(
        dataset_id=dataset.id,
        name=dataset.name,
        description=dataset.description,
        dataset_type=dataset.dataset_type,
        row_count=dataset.row_count,
        upload_date=dataset.created_at.date(),
        session_id=str(dataset.id),
        filename=dataset.filename,
        size=blob.size_bytes,
        sha256=blob.sha256,
        format=dataset.format,
        layout=dataset.layout,
        mapping=dataset.columns,
        split=dataset.split,
        invalid_rows=dataset.invalid_rows,
        issues=[
            DefectRead(row=d["number"], **{k: d[k] for k in d if k != "number"})
            for d in dataset.defects[:SHOWN_DEFECTS]
        ],
        created_at=dataset.created_at,
        profile_status=dataset.profile_run.status,
        profile=dataset.profile,
    )


def _mapping(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    try:
        return _MAPPING.validate_json(text)
    except ValidationError:
        raise Invalid('mapping: send a JSON object of column names, such as {"text": "message"}.') from None
