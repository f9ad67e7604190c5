"""Ids: a row's key is a UUIDv7; the API shows it with a prefix and takes either form."""

import os
import time
import uuid
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from slmforge.control.errors import NotFound


def new_id(at_seconds: float | None = None) -> uuid.UUID:
    """A UUIDv7 (RFC 9562, 5.7): ids made later sort later, so they page in order of creation."""
    milliseconds = int((time.time() if at_seconds is None else at_seconds) * 1000)
    value = int.from_bytes(os.urandom(10)) | milliseconds << 80
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=value)


def parse(prefix: str, noun: str, value: Any) -> uuid.UUID:
    """Read `ds_<32 hex digits>` or a plain UUID. Raises `NotFound`: what cannot be an id names nothing."""
    if isinstance(value, uuid.UUID):
        return value
    try:
        return uuid.UUID(str(value).removeprefix(f"{prefix}_"))
    except ValueError:
        raise NotFound(f"There is no {noun} {str(value)[:80]!r}.") from None


def _public(prefix: str, noun: str) -> tuple[BeforeValidator, PlainSerializer, WithJsonSchema]:
    return (
        BeforeValidator(lambda value: parse(prefix, noun, value)),
        PlainSerializer(lambda value: f"{prefix}_{value.hex}", return_type=str),
        WithJsonSchema({"type": "string", "examples": [f"{prefix}_0198c5f0a1b27c3d8e4f5a6b7c8d9e0f"]}),
    )


DatasetId = Annotated[uuid.UUID, *_public("ds", "dataset")]
ExperimentId = Annotated[uuid.UUID, *_public("exp", "experiment")]
EvaluationId = Annotated[uuid.UUID, *_public("eval", "evaluation")]


def model_key(id_: uuid.UUID, slug: str | None) -> str:
    """A catalogue model is known by its slug, any other by `model_` and its id."""
    return slug or f"model_{id_.hex}"
