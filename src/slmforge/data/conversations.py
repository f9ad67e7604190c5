"""Conversations: the one meaning that rows of every layout share."""

from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file. `number` counts from 0 over the records; `line` is where it begins in the file, from 1.

    `line` is None in a JSON document, where `pointer` (RFC 6901) says where the record stands.
    """

    number: int
    line: int | None
    pointer: str | None
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Defect:
    """A record that cannot be used: where it stands, what is wrong, and what to do about it."""

    number: int
    line: int | None
    pointer: str | None
    code: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Only an assistant's turn with `train` set carries loss."""

    role: Role
    content: str
    train: bool = True


@dataclass(frozen=True, slots=True)
class Conversation:
    """A usable record. `label` is set for classification; plain text has `text` and no messages."""

    number: int
    line: int | None
    messages: tuple[Message, ...]
    label: str | None = None
    text: str | None = None
