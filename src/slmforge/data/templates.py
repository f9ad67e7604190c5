"""Chat templates: the Jinja source that comes with a model, and how a tokenizer folder declares it.

Templates run in a sandbox, with the names that transformers gives them. Whoever wants tokens asks `render.py`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from slmforge.data.conversations import Message

# The same rows must make the same tokens tomorrow, so a template that asks for the day is always told the one that
# Llama 3.1's own template falls back to.
TEMPLATE_DAY = datetime(2024, 7, 26)

CHATML = """\
{%- if opening %}{{ opening }}{% endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + turn_end + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""


class TemplateRefused(ValueError):
    """The chat template cannot be read, or does not take these messages."""


@dataclass(frozen=True)
class TokenizerFolder:
    """What the JSON files beside `tokenizer.json` say. `special` maps `eos_token`, `bos_token` … to their text."""

    template: str | None
    special: dict[str, str]
    generation_end_ids: tuple[int, ...]

    @classmethod
    def read(cls, folder: Path) -> "TokenizerFolder":
        config = _json(folder / "tokenizer_config.json")
        declared = _json(folder / "special_tokens_map.json") | config
        special = {name: _content(token) for name, token in declared.items() if name.endswith("_token") and token}
        ends = _json(folder / "generation_config.json").get("eos_token_id") or []
        file = folder / "chat_template.jinja"
        return cls(
            template=file.read_text() if file.is_file() else _default_template(config.get("chat_template")),
            special={name: text for name, text in special.items() if text},
            generation_end_ids=tuple(ends if isinstance(ends, list) else [ends]),
        )


class ChatTemplate:
    """One template with the special tokens it may name. `text` raises `TemplateRefused`."""

    def __init__(self, source: str, variables: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = TEMPLATE_DAY.strftime
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise TemplateRefused(f"the model's chat template cannot be read: {error}") from error
        self._variables = variables
        self._takes_system = self._writes_system_turns()

    def text(self, messages: Sequence[Message], *, answering: bool, reasons: bool) -> str:
        """The conversation as one text; `answering` opens the assistant's next turn.

        Where the template has no system role, the system's text opens the first user's turn. `reasons` is for
        templates that can ask for an answer with reasoning or without.
        """
        turns = list(messages) if self._takes_system else _without_system(messages)
        try:
            return self._template.render(
                messages=[{"role": turn.role, "content": turn.content} for turn in turns],
                tools=None,
                documents=None,
                add_generation_prompt=answering,
                enable_thinking=reasons,
                **self._variables,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            roles = ", ".join(turn.role for turn in turns) or "none"
            raise TemplateRefused(f"the model's chat template does not take turns of {roles}: {error}") from error

    def _writes_system_turns(self) -> bool:
        self._takes_system = True
        probe = [Message("system", "SYSTEM-PROBE"), Message("user", "USER-PROBE")]
        try:
            return "SYSTEM-PROBE" in self.text(probe, answering=True, reasons=False)
        except TemplateRefused:
            return False


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks answers for other trainers; here its content passes through."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a plain class attribute

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _without_system(messages: Sequence[Message]) -> list[Message]:
    system = [turn.content for turn in messages if turn.role == "system"]
    turns = [turn for turn in messages if turn.role != "system"]
    first = next((number for number, turn in enumerate(turns) if turn.role == "user"), None)
    if system and first is not None:
        turns[first] = Message("user", "\n\n".join([*system, turns[first].content]))
    return turns


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter would escape HTML characters.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{path.name} of the model is not a JSON object: {error}") from error


def _content(token: object) -> str:
    """The text of a token, declared as a string or as a dictionary with `content`."""
    return str(token.get("content", "")) if isinstance(token, dict) else token if isinstance(token, str) else ""


def _default_template(declared: object) -> str | None:
    if isinstance(declared, list):  # several, by name
        named = {entry["name"]: entry["template"] for entry in declared}
        return named.get("default")
    return declared if isinstance(declared, str) else None
