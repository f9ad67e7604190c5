import json
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from slmforge.contract.events import (
    Cancelled,
    Checkpointed,
    Choice,
    Failed,
    FailureCode,
    Finished,
    KnownEvent,
    Measured,
    Noted,
    Progressed,
    Record,
    Started,
    Unknown,
    decode,
    encode,
)
from slmforge.contract.spec import ArtifactRef

ARTIFACT = ArtifactRef(prefix="runs/a/1/artifacts/adapter", files=())
EVENTS: list[KnownEvent] = [
    Started(host="h", pid=1, device="cpu", choices={"precision": Choice(value="f32", reason="CPU")}, versions={}),
    Progressed(stage="training", done=1, total=2, unit="steps"),
    Measured(step=1, values={"loss": 0.1 + 0.2, "learning_rate": 1e-300}),
    Checkpointed(step=1, artifact=ARTIFACT),
    Noted(level="warning", message='two\nlines,\r a \u2028 separator, a \x85 and a quote " 🎫'),
    Finished(summary={"perplexity": 3.5, "nested": {"rows": [1, None]}}, artifacts={"adapter": ARTIFACT}),
    Failed(code="diverged", message="The loss is no number.", details="Traceback"),
    Cancelled(step=1),
]
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.type)
def test_an_event_comes_back_as_it_went_out_on_one_line(event: KnownEvent) -> None:
    line = encode(Record(seq=3, at=AT, event=event))
    assert len(line.splitlines()) == 1
    assert line.endswith(b"\n")
    assert decode(line) == Record(seq=3, at=AT, event=event)


def test_every_event_is_tried_here() -> None:
    assert {type(event) for event in EVENTS} == set(get_args(KnownEvent))


def line(**event: Any) -> bytes:
    return json.dumps({"seq": 1, "at": AT.isoformat(), "event": event}).encode()


def test_an_event_of_a_newer_writer_is_kept_whole() -> None:
    record = decode(line(type="praised", by="a friend", stars=[1, 2]))
    assert record.event == Unknown(type="praised", payload={"by": "a friend", "stars": [1, 2]})


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"seq": 1}',
        line(type="measured", step=1),
        line(type="measured", step=1, values={"loss": None}),
        line(type="measured", step=1, values={}, more=1),
        line(type="failed", code="bad_luck", message="x"),
        line(type="cancelled", step="many"),
        line(type="x" * 41),
        line(),
        b'{"seq": 1, "at": "2026-01-02T03:04:05Z", "event": {"type": "cancelled", "step": 1}, "more": 1}',
        b'{"seq": 1, "at": "yesterday", "event": {"type": "cancelled", "step": 1}}',
        "{\ud800}".encode("utf-8", "surrogatepass"),
    ],
)
def test_a_line_that_does_not_fit_is_an_error(broken: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(broken)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_measure_that_is_no_finite_number_is_refused_where_it_is_made(value: float) -> None:
    """JSON has no such number; one in the stream would make its segment unreadable for ever."""
    with pytest.raises(ValidationError, match="finite"):
        Measured(step=1, values={"loss": value})


def test_the_failure_codes_fit_the_column_they_are_kept_in() -> None:
    assert all(len(code) <= 40 for code in get_args(FailureCode))
