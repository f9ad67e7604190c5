"""Every error as an RFC 9457 problem document, with `detail` one sentence that a person can act on."""

from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import InterfaceError, OperationalError
from starlette.exceptions import HTTPException

from slmforge.control.errors import AppError, Unavailable
from slmforge.control.ids import new_id

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 5

log = structlog.get_logger()


class FieldError(BaseModel):
    """Where in the request, and what is wrong there."""

    loc: list[str | int]
    msg: str


class Problem(BaseModel):
    """The body of every answer from 400 up."""

    type: str = Field(examples=["about:blank"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["There is no dataset ds_0198c5f0a1b27c3d8e4f5a6b7c8d9e0f."])
    instance: str = Field(examples=["urn:uuid:0198c5f0-a1b2-7c3d-8e4f-5a6b7c8d9e0f"])
    errors: list[FieldError] | None = None


# Invalid input is a 400 here: a "4XX" of ours keeps FastAPI from documenting its 422.
ALWAYS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Problem, "description": "A problem document."}}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What an operation documents for its errors."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "example": _body(status, _EXAMPLES[status], "urn:uuid:0198c5f0-a1b2-7c3d-8e4f-5a6b7c8d9e0f"),
                }
            },
        }
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Let the app answer every error as a problem document."""
    app.add_exception_handler(AppError, _app_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OperationalError, _database_away)
    app.add_exception_handler(InterfaceError, _database_away)
    app.add_exception_handler(Exception, _bug)


_EXAMPLES = {
    400: "training_config.num_epochs: input should be greater than 0.",
    404: "There is no dataset ds_0198c5f0a1b27c3d8e4f5a6b7c8d9e0f.",
    409: "It is completed already; only something created or running can be cancelled.",
    413: "The file is larger than the 2147483648 bytes accepted here; split it or raise SLMFORGE_MAX_UPLOAD_BYTES.",
    415: "This is a PDF document; upload CSV, JSON or JSONL.",
    416: "The file ends before that range.",
    503: "The database does not answer; try again in a few seconds.",
}


async def _app_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AppError)
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if isinstance(error, Unavailable) else None
    return _answer(request, error.status, error.message, headers=headers)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    fields = [_field_error(found) for found in error.errors()]
    detail = "; ".join(f"{_name(field.loc)}: {field.msg}" for field in fields[:5]) + "."
    return _answer(request, 400, detail, errors=fields)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = "There is nothing at this address; /docs lists what there is."
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.method} is not possible here; /docs lists what is."
    elif error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        limit = request.app.state.settings.max_upload_bytes
        detail = f"The request is larger than the {limit} bytes accepted here; split the file or raise the limit."
    return _answer(request, error.status_code, detail, headers=dict(error.headers or {}))


async def _database_away(request: Request, error: Exception) -> JSONResponse:
    log.error("the database failed", error=str(error), path=request.url.path)
    unavailable = Unavailable("The database does not answer; try again in a few seconds.")
    return await _app_error(request, unavailable)


async def _bug(request: Request, error: Exception) -> JSONResponse:
    answer = _answer(request, 500, "Something went wrong here. Report the instance id; the log says more under it.")
    log.error("a bug", instance=answer.headers["X-Instance"], path=request.url.path, exc_info=error)
    return answer


def _answer(
    request: Request,
    status: int,
    detail: str,
    *,
    errors: list[FieldError] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    instance = new_id().urn
    body = _body(status, detail, instance)
    if errors:
        body["errors"] = [field.model_dump() for field in errors]
    return JSONResponse(
        body, status_code=status, media_type=MEDIA_TYPE, headers={"X-Instance": instance, **(headers or {})}
    )


def _body(status: int, detail: str, instance: str) -> dict[str, Any]:
    title = HTTPStatus(status).phrase
    return {"type": "about:blank", "title": title, "status": status, "detail": detail, "instance": instance}


def _field_error(found: dict[str, Any]) -> FieldError:
    loc = list(found["loc"])
    if found["type"] == "extra_forbidden":
        return FieldError(loc=loc, msg="there is no such setting; /docs lists those there are")
    if found["type"] == "missing":
        return FieldError(loc=loc, msg="it is required")
    if found["type"] == "json_invalid":
        return FieldError(loc=["body"], msg=f"it is not valid JSON ({found['ctx']['error']} at character {loc[-1]})")
    if found["type"] == "model_attributes_type":
        return FieldError(loc=loc, msg="a JSON object is expected")
    message = str(found["msg"]).rstrip(".")
    return FieldError(loc=loc, msg=message[0].lower() + message[1:])


def _name(loc: list[str | int]) -> str:
    """`training_config.num_epochs` of ("body", "training_config", "num_epochs")."""
    where = loc[1:] if loc and loc[0] in {"body", "query", "path", "header"} else loc
    return ".".join(str(part)[:80] for part in where) or "the request body"
