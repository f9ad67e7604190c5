"""Layouts: which columns of a file mean what, and what one row says.

`detect_layout` looks at the first rows once, at upload; its answer is recorded, and `to_conversation` reads every row
by it, the same way in preview, analysis, training and evaluation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slmforge.contract.spec import Layout
from slmforge.data.conversations import Conversation, Defect, Message, Row
from slmforge.data.formats import UnreadableFile
from slmforge.data.turns import PREFERENCE_PAIR, Unusable, is_turn, read_turns


@dataclass(frozen=True, slots=True)
class LayoutGuess:
    """A layout and the file's column for each of its fields that the file has."""

    layout: Layout
    columns: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Shape:
    """The fields of a layout with the column names they go by, the most telling first."""

    layout: Layout
    required: Mapping[str, tuple[str, ...]]
    optional: Mapping[str, tuple[str, ...]]


_SYSTEM = {"system": ("system", "system_prompt")}
_CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
_SHAPES = (  # in the order they are tried
    _Shape("messages", {"messages": _CHATS}, _SYSTEM),
    _Shape("sharegpt", {"conversations": _CHATS}, _SYSTEM),
    _Shape(
        "alpaca",
        {"instruction": ("instruction",), "output": ("output", "response", "completion", "answer")},
        {"input": ("input", "context"), "history": ("history",), **_SYSTEM},
    ),
    _Shape(
        "prompt_completion",
        {
            "prompt": ("prompt", "input", "source", "query"),
            "completion": ("completion", "response", "output", "target", "answer"),
        },
        _SYSTEM,
    ),
    _Shape(
        "question_answer",
        {"question": ("question", "problem"), "answer": ("answer", "solution", "response")},
        _SYSTEM,
    ),
    _Shape(
        "classification",
        {
            "text": ("text", "sentence", "query", "utterance", "message", "question", "content", "review", "input"),
            "label": ("label_text", "label", "category", "intent", "class", "topic", "sentiment", "target"),
        },
        {},
    ),
    _Shape("text", {"text": ("text", "content")}, {}),
)
_TURN_KEYS = {"messages": ("role", "content"), "sharegpt": ("from", "value")}
_FIELDS = {field for shape in _SHAPES for field in (*shape.required, *shape.optional)}


def detect_layout(rows: Sequence[Mapping[str, Any]], mapping: Mapping[str, str] | None = None) -> LayoutGuess:
    """The layout of the first rows' values, by what columns are called and, for chats, by what they hold.

    `mapping` (our field -> the file's column) wins over the names. Raises `UnreadableFile` when no layout fits, or
    when the mapping names a field that no layout has or a column that the file has not.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    mapping = mapping or {}
    _check_mapping(mapping, columns)
    if not mapping and {"chosen", "rejected"} <= set(columns):
        code, reason, remedy = PREFERENCE_PAIR
        raise UnreadableFile(code, f"{reason} {remedy}")
    shapes = [shape for shape in _SHAPES if mapping.keys() <= {*shape.required, *shape.optional}]
    # A mapping that says all that a layout needs means that layout, even if the file's names would add up to more.
    shapes.sort(key=lambda shape: not (mapping and shape.required.keys() <= mapping.keys()))
    for shape in shapes:
        found = _match(shape, rows, columns, mapping)
        if found is not None:
            return LayoutGuess(shape.layout, found)
    raise UnreadableFile("unknown_layout", _no_layout(columns))


def to_conversation(row: Row, layout: Layout, columns: Mapping[str, str]) -> Conversation | Defect:
    """What the row says, read by its layout; a row that cannot be used is a `Defect` with the row's place."""
    try:
        return _read(row, layout, columns)
    except Unusable as error:
        return Defect(row.number, row.line, row.pointer, error.code, error.reason, error.remedy)


def _check_mapping(mapping: Mapping[str, str], columns: list[str]) -> None:
    for field, column in mapping.items():
        if field not in _FIELDS:
            message = f"The mapping names the field {field!r}, which is none of {_listed(sorted(_FIELDS))}."
            raise UnreadableFile("invalid_mapping", message)
        if column not in columns:
            message = f"The mapping names the column {column!r}, but the file has {_listed(columns)}."
            raise UnreadableFile("invalid_mapping", message)


def _match(
    shape: _Shape, rows: Sequence[Mapping[str, Any]], columns: list[str], mapping: Mapping[str, str]
) -> dict[str, str] | None:
    by_name = {column.strip().casefold(): column for column in reversed(columns)}
    found: dict[str, str] = {}
    for field, names in {**shape.required, **shape.optional}.items():
        candidates = [mapping[field]] if field in mapping else [by_name[name] for name in names if name in by_name]
        if field in shape.required and shape.layout in _TURN_KEYS:
            candidates = _chat_columns(shape.layout, rows, candidates if field in mapping else candidates + columns)
        if candidates:
            found[field] = candidates[0]
        elif field in shape.required:
            return None
    return found


def _chat_columns(layout: Layout, rows: Sequence[Mapping[str, Any]], candidates: list[str]) -> list[str]:
    role, content = _TURN_KEYS[layout]
    return [column for column in candidates if any(is_turn(row.get(column), role, content) for row in rows)]


def _no_layout(columns: list[str]) -> str:
    return (
        f"No known layout fits the columns {_listed(columns)}; rename them (for example to text and label, or prompt "
        'and completion), or say what they are with a mapping such as {"text": "…", "label": "…"}.'
    )


def _listed(names: Sequence[str], most: int = 20) -> str:
    shown = ", ".join(repr(name[:80]) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _read(row: Row, layout: Layout, columns: Mapping[str, str]) -> Conversation:
    if layout == "text":
        text = _text(row, columns["text"], "empty_text")
        return Conversation(row.number, row.line, messages=(), text=text)
    if layout == "classification":
        prompt = Message("user", _text(row, columns["text"], "empty_prompt"))
        label = _answer(row, columns["label"]).strip()
        return Conversation(row.number, row.line, (prompt, Message("assistant", label)), label=label)
    if layout in _TURN_KEYS:
        turns = read_turns(row.value, columns["messages" if layout == "messages" else "conversations"])
        system = () if turns[0].role == "system" else _system(row, columns)
        return Conversation(row.number, row.line, (*system, *turns))
    if layout == "alpaca":
        return Conversation(row.number, row.line, (*_system(row, columns), *_alpaca(row, columns)))
    asked, answered = ("prompt", "completion") if layout == "prompt_completion" else ("question", "answer")
    prompt = Message("user", _text(row, columns[asked], "empty_prompt"))
    answer = Message("assistant", _answer(row, columns[answered]))
    return Conversation(row.number, row.line, (*_system(row, columns), prompt, answer))


def _alpaca(row: Row, columns: Mapping[str, str]) -> tuple[Message, ...]:
    prompt = _text(row, columns["instruction"], "empty_prompt")
    extra = _optional_text(row, columns.get("input"))
    prompt = f"{prompt}\n{extra}" if extra else prompt
    answer = Message("assistant", _answer(row, columns["output"]))
    return (*_history(row, columns), Message("user", prompt), answer)


def _history(row: Row, columns: Mapping[str, str]) -> list[Message]:
    history = row.value.get(columns.get("history", "")) or []
    messages: list[Message] = []
    for exchange in history if isinstance(history, list) else [history]:
        match exchange:
            case [str(asked), str(answered)] if asked.strip() and answered.strip():
                messages += [Message("user", asked), Message("assistant", answered)]
            case _:
                reason = f"Column {columns['history']!r} is not a list of [question, answer] pairs."
                raise Unusable("wrong_type", reason, "Write earlier exchanges as pairs of texts.")
    return messages


def _system(row: Row, columns: Mapping[str, str]) -> tuple[Message, ...]:
    content = _optional_text(row, columns.get("system"))
    return (Message("system", content),) if content else ()


def _optional_text(row: Row, column: str | None) -> str:
    value = "" if column is None else row.value.get(column)
    if value is None or isinstance(value, str):
        return value if value and value.strip() else ""
    raise _wrong_type(column or "")


def _text(row: Row, column: str, code_if_empty: str) -> str:
    content = _optional_text(row, column)
    if not content:
        raise Unusable(code_if_empty, f"Column {column!r} is empty.", "Fill it in or leave the row out.")
    return content


def _answer(row: Row, column: str) -> str:
    """What is to be learnt: text, or a number or truth value as its JSON text."""
    value = row.value.get(column)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    return _text(row, column, "empty_answer")


def _wrong_type(column: str) -> Unusable:
    return Unusable("wrong_type", f"Column {column!r} does not hold text.", "Write its values as strings.")
