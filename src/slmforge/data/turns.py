"""Turns: the list of messages inside a chat record, in OpenAI's words or ShareGPT's, as `Message`s.

Called by `layouts`. Preference pairs, tool calls and images cannot be represented and say so.
"""

from typing import Any

from slmforge.data.conversations import Message, Role

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
}
_ROLES_REMEDY = "Use the roles system, user, assistant and tool."
_CALLING_ROLES = {"function_call", "tool_call"}


class Unusable(Exception):
    """What is wrong with a record and what to do about it; becomes a `Defect` with the record's place."""

    def __init__(self, code: str, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.remedy = remedy


PREFERENCE_PAIR = (
    "preference_pair",
    "The record is a preference pair (chosen and rejected), which cannot be trained on here.",
    "Keep the chosen answer as the last assistant turn, or as the completion.",
)
_TOOL_CALL = (
    "tool_calls",
    "The record offers or calls tools, which cannot be represented here.",
    "Leave such records out, or write the call into the assistant's text.",
)


def read_turns(record: dict[str, Any], column: str) -> tuple[Message, ...]:
    """The messages in `column`, ending with an assistant's turn: whatever follows the last one carries no loss.

    Raises `Unusable`.
    """
    if record.get("chosen") and record.get("rejected"):
        raise Unusable(*PREFERENCE_PAIR)
    if record.get("tools") not in (None, "", "[]", []):
        raise Unusable(*_TOOL_CALL)
    turns = record.get(column)
    if not isinstance(turns, list) or not turns:
        reason = f"Column {column!r} holds no list of turns."
        raise Unusable("no_turns", reason, 'Write a list such as [{"role": "user", "content": "…"}, …].')
    messages = [message for place, turn in enumerate(turns, 1) if (message := _read_turn(turn, place))]
    return _checked(messages)


def is_turn(value: object, role_key: str, content_key: str) -> bool:
    """Whether `value` is a list that begins with a turn written in these keys."""
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and {role_key, content_key} <= value[0].keys()
    )


def _read_turn(turn: object, place: int) -> Message | None:
    if not isinstance(turn, dict):
        raise Unusable("wrong_type", f"Turn {place} is not an object.", 'Write turns as {"role": "…", "content": "…"}.')
    name = turn.get("role", turn.get("from"))
    if not isinstance(name, str):
        raise Unusable("unknown_role", f"Turn {place} names no role.", _ROLES_REMEDY)
    if turn.get("tool_calls") or turn.get("function_call") or name in _CALLING_ROLES:
        raise Unusable(*_TOOL_CALL)
    role = _ROLES.get(name.strip().lower())
    if role is None:
        raise Unusable("unknown_role", f"Turn {place} has the role {name[:80]!r}, which is not known.", _ROLES_REMEDY)
    content = _read_content(turn.get("content", turn.get("value")), place)
    if not content.strip():
        if role == "system":
            return None  # an empty system prompt is none
        code = "empty_answer" if role == "assistant" else "empty_prompt"
        raise Unusable(code, f"Turn {place} ({role}) is empty.", "Fill it in or leave the record out.")
    return Message(role=role, content=content, train=_has_loss(turn, place))


def _read_content(content: object, place: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Unusable("wrong_type", f"The content of turn {place} is not text.", "Write it as a string.")
    return "".join(_read_part(part, place) for part in content)


def _read_part(part: object, place: int) -> str:
    if isinstance(part, dict) and part.get("type") == "text":
        text = part.get("text", part.get("value"))
        if isinstance(text, str):
            return text
    reason = f"Turn {place} has a part that is not text."
    raise Unusable("unsupported_content", reason, 'Only parts such as {"type": "text", "text": "…"} can be used.')


def _has_loss(turn: dict[str, Any], place: int) -> bool:
    weight = turn.get("weight", turn.get("loss_weight"))
    if weight is None:
        return True
    if weight not in (0, 1):
        shown = weight if isinstance(weight, int | float) else "that is no number"
        reason = f"Turn {place} has a loss weight {shown}."
        raise Unusable("unsupported_weight", reason, "Use 1 for a turn to learn from and 0 for one to leave alone.")
    return bool(weight)


def _checked(messages: list[Message]) -> tuple[Message, ...]:
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise Unusable("no_answer", "No turn is the assistant's.", "Add the answer that is to be learnt.")
    if "user" not in roles[: roles.index("assistant")]:
        reason = "The assistant speaks before any user does."
        raise Unusable("no_prompt", reason, "Begin with the user's turn; a greeting can be left out.")
    last = len(roles) - roles[::-1].index("assistant")
    kept = tuple(messages[:last])
    if not any(message.train for message in kept if message.role == "assistant"):
        reason = "Every assistant turn has the loss weight 0, so there is nothing to learn."
        raise Unusable("nothing_to_learn", reason, "Give at least one assistant turn the weight 1.")
    return kept
