"""Models over HTTP."""

import uuid
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from slmforge.contract.spec import ArtifactRef
from slmforge.control.dependencies import PageAsked, Reading, Store, add_page_headers
from slmforge.control.downloads import blob_response
from slmforge.control.identity import Caller
from slmforge.control.ids import EvaluationId, ExperimentId
from slmforge.control.models import service as models
from slmforge.control.problems import responses
from slmforge.control.tables import Model
from slmforge.control.texts import Text

router = APIRouter(prefix="/models", tags=["models"])


class FileRead(BaseModel):
    """A file of a fine-tuned model; `path` completes `GET /models/{id}/files/{path}`."""

    path: str
    size: int
    sha256: str


class ModelRead(BaseModel):
    """A base model, or one that an experiment made."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model_id": "model_0198c5f0a1b27c3d8e4f5a6b7c8d9e0f",
                    "name": "tickets",
                    "version": "1",
                    "model_type": "fine_tuned",
                    "architecture": "LlamaForCausalLM",
                    "parameters_count": 1057920,
                    "license": None,
                    "context_window": 2048,
                    "is_gated": False,
                    "created_at": "2026-01-11T09:34:00Z",
                    "is_latest": True,
                    "base_model_id": "scratch-1m",
                    "experiment_id": "exp_0198c5f0a1b27c3d8e4f5a6b7c8d9e0f",
                    "evaluation_ids": ["eval_0198c5f0a1b27c3d8e4f5a6b7c8d9e0f"],
                    "files": [{"path": "model.safetensors", "size": 4231680, "sha256": "9f2c6d0e…"}],
                }
            ]
        }
    )

    model_id: str
    name: str
    version: str
    model_type: Literal["base", "fine_tuned"]
    architecture: str
    parameters_count: int | None
    license: str | None
    context_window: int | None
    is_gated: bool
    created_at: datetime
    is_latest: bool
    base_model_id: str | None
    experiment_id: ExperimentId | None
    evaluation_ids: list[EvaluationId]
    files: list[FileRead] = Field(description="Empty for a base model: those come from where they are published.")


@router.get("", responses=responses(400))
def list_models(
    request: Request,
    response: Response,
    session: Reading,
    caller: Caller,
    page: PageAsked,
    model_type: Annotated[Literal["base", "fine_tuned"] | None, Query()] = None,
) -> list[ModelRead]:
    """Base models and your fine-tuned ones, newest first."""
    listed = models.find(session, caller, page, model_type=model_type)
    add_page_headers(request, response, listed)
    found = models.evaluation_ids(session, [model.id for model in listed.rows])
    return [_read(model, found.get(model.id, [])) for model in listed.rows]


@router.get("/{model_id}", responses=responses(404))
def get_model(session: Reading, caller: Caller, model_id: Text) -> ModelRead:
    """One model, by its catalogue name or its id."""
    model = models.get(session, caller, model_id)
    return _read(model, models.evaluation_ids(session, [model.id]).get(model.id, []))


@router.get(
    "/{model_id}/files/{path:path}",
    response_class=Response,
    responses={
        200: {"description": "The file.", "content": {"application/octet-stream": {"example": "…"}}},
        206: {"description": "A part of the file."},
        **responses(404, 416),
    },
)
def download_model_file(
    request: Request, session: Reading, store: Store, caller: Caller, model_id: Text, path: str
) -> Response:
    """One file of a fine-tuned model: weights or adapter as safetensors, tokenizer, model card."""
    blob = models.file_of(models.get(session, caller, model_id), path)
    return blob_response(request, store, blob, path.rsplit("/", 1)[-1])


def _read(model: Model, evaluation_ids: list[uuid.UUID]) -> ModelRead:
    return ModelRead(
        model_id=models.public_id(model),
        name=model.name,
        version=model.version,
        model_type=model.model_type,
        architecture=model.architecture,
        parameters_count=model.parameters_count,
        license=model.license,
        context_window=model.context_window,
        is_gated=model.is_gated,
        created_at=model.created_at,
        is_latest=model.is_latest,
        base_model_id=models.public_id(model.base_model) if model.base_model else None,
        experiment_id=model.experiment_id,
        evaluation_ids=evaluation_ids,
        files=_files(model),
    )


def _files(model: Model) -> list[FileRead]:
    if model.model_type == "base":
        return []
    artifact = ArtifactRef.model_validate(model.source)
    return [
        FileRead(path=blob.key.removeprefix(f"{artifact.prefix}/"), size=blob.size_bytes, sha256=blob.sha256)
        for blob in artifact.files
    ]
