"""Events: the closed set of things a run can say, in the order it says them.

A run emits them through `emit: Callable[[Event], None]` (in a unit test, `list.append`). The writer numbers them;
the control plane folds them into rows. Exactly one of `Finished`, `Failed`, `Cancelled` ends an attempt.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from slmforge.contract.spec import ArtifactRef, Frozen

FailureCode = Literal[
    "invalid_spec",  # the spec cannot be read or contradicts itself
    "no_usable_rows",  # nothing is left to train or to score on
    "nothing_to_learn",  # no token carries a label, e.g. every answer was cut off
    "integrity_error",  # stored bytes do not match their digest
    "model_unavailable",  # the base model cannot be found or fetched
    "model_rejected",  # the base model needs something we refuse: pickled weights, its own code
    "out_of_memory",
    "diverged",  # the loss is no longer a finite number
    "storage_unavailable",
    "process_lost",  # set by the control plane: the process vanished without a last word
    "launch_failed",  # set by the control plane: the process could not be started
    "internal_error",  # a bug of ours
]


class Choice(Frozen):
    """A decision taken at run time and why, e.g. the precision on this device."""

    value: str
    reason: str


class Started(Frozen):
    """The process is alive, holds the claim on this attempt and has read its spec."""

    type: Literal["started"] = "started"
    host: str
    pid: int
    device: str
    choices: dict[str, Choice]
    versions: dict[str, str]


class Progressed(Frozen):
    """`done` of `total` units; `stage` says what is being done ("training", "scoring the base model")."""

    type: Literal["progressed"] = "progressed"
    stage: str
    done: int
    total: int
    unit: str


class Measured(Frozen):
    """Metric points at an optimizer step, e.g. {"loss": 2.1, "learning_rate": 0.001, "tokens_per_second": 9000}."""

    type: Literal["measured"] = "measured"
    step: int
    values: dict[str, float]


class Checkpointed(Frozen):
    """Training can go on from here."""

    type: Literal["checkpointed"] = "checkpointed"
    step: int
    artifact: ArtifactRef


class Noted(Frozen):
    """A line that a person should see."""

    type: Literal["noted"] = "noted"
    level: Literal["info", "warning", "error"]
    message: str


class Finished(Frozen):
    """The run did what its spec asked. `summary` is plain JSON; its shape belongs to the run's kind."""

    type: Literal["finished"] = "finished"
    summary: dict[str, Any]
    artifacts: dict[str, ArtifactRef]


class Failed(Frozen):
    """The run could not; `message` is a sentence for a person, `details` the traceback for an engineer."""

    type: Literal["failed"] = "failed"
    code: FailureCode
    message: str
    details: str | None = None


class Cancelled(Frozen):
    """The run was asked to stop and did, after `step` steps."""

    type: Literal["cancelled"] = "cancelled"
    step: int


class Unknown(Frozen):
    """An event of a newer writer: kept in the record, without effect."""

    type: str = Field(min_length=1, max_length=40)
    payload: dict[str, Any]


KnownEvent = Started | Progressed | Measured | Checkpointed | Noted | Finished | Failed | Cancelled
Event = KnownEvent | Unknown
TerminalEvent = Finished | Failed | Cancelled
Emit = Callable[[KnownEvent], None]

_KNOWN: TypeAdapter[KnownEvent] = TypeAdapter(Annotated[KnownEvent, Field(discriminator="type")])
_TYPES = {"started", "progressed", "measured", "checkpointed", "noted", "finished", "failed", "cancelled"}


class Record(Frozen):
    """An event as it stands in the stream: `seq` counts 1, 2, 3 … within one attempt."""

    seq: int
    at: datetime
    event: Event


class _Envelope(Frozen):
    seq: int
    at: datetime
    event: dict[str, Any]


def encode(record: Record) -> bytes:
    """One line of the stream."""
    return record.model_dump_json().encode() + b"\n"


def decode(line: bytes) -> Record:
    """Read one line. An unknown `type` becomes `Unknown`; anything else that does not fit raises `ValueError`."""
    envelope = _Envelope.model_validate_json(line)
    kind = str(envelope.event.get("type", ""))
    event = (
        _KNOWN.validate_python(envelope.event)
        if kind in _TYPES
        else Unknown(type=kind, payload={k: v for k, v in envelope.event.items() if k != "type"})
    )
    return Record(seq=envelope.seq, at=envelope.at, event=event)
