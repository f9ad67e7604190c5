"""Text to token ids, piece by piece, with a fast tokenizer's own file and no transformers.

It keeps two promises that plain `encode` calls do not. What a person typed never becomes a control token, though it
reads like one. And a piece in the middle of a text gets no marker of a text's beginning.
"""

import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

# Unicode keeps these two code points out of interchange; between them stands the number of a typed control token.
_TYPED_START, _TYPED_END = "\ufdd0", "\ufdd1"
_TYPED = re.compile(f"{_TYPED_START}([0-9]+){_TYPED_END}")


class TokenEncoder:
    """A tokenizer that tells control tokens written by a template from the same characters typed by a person."""

    def __init__(self, definition: str) -> None:
        """Raises `ValueError` for what is not the text of a `tokenizer.json`."""
        self._whole = _tokenizer(definition)
        self._continuing = _continuing(definition) or self._whole
        added = self._whole.get_added_tokens_decoder()
        self._special = sorted((token.content for token in added.values() if token.special), key=len, reverse=True)
        self._special_ids = {i for i, token in added.items() if token.special}
        self._any_special = re.compile("|".join(map(re.escape, self._special)) or r"(?!)")

    @classmethod
    def from_file(cls, path: Path) -> "TokenEncoder":
        """Raises `ValueError` when there is no such file or it is not a tokenizer."""
        if not path.is_file():
            raise ValueError(f"the model has no {path.name}: save it with a fast tokenizer's `save_pretrained`")
        return cls(path.read_text(encoding="utf-8"))

    def protect(self, content: str) -> str:
        """The text as a template should get it: `encode` will spell the control tokens in it out as characters."""
        return self._any_special.sub(
            lambda found: f"{_TYPED_START}{self._special.index(found[0])}{_TYPED_END}", content
        )

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """The tokens of a piece, and nothing added to them; `continues` says that text stands before it."""
        ids: list[int] = []
        for piece, typed in self._split(text):
            if typed:
                ids += _ids(self._spelling, piece)
            else:
                ids += self._following(piece) if continues or ids else _ids(self._whole, piece)
        return ids

    def spans(self, text: str) -> list[tuple[int, int]]:
        """For each token of a person's text, the characters it covers."""
        return list(self._continuing.encode(text, add_special_tokens=False).offsets)

    def end_of_turn(self, text: str) -> int | None:
        """Where the first of the control tokens that close the text ends; None when none closes it."""
        found = self._any_special.search(text, self._body_length(text))
        return found.end() if found else None

    def tokens_after_control(self, ids: list[int]) -> int:
        """How many tokens follow the last control token."""
        return next(after for after, token_id in enumerate(reversed(ids)) if token_id in self._special_ids)

    def is_control(self, token: str) -> bool:
        return token in self._special

    def opening_ids(self) -> list[int]:
        """What the tokenizer itself puts before every text, e.g. its beginning-of-sequence token."""
        dressed: list[int] = self._whole.encode("a").ids
        return dressed[: dressed.index(_ids(self._whole, "a")[0])]

    def id_of(self, token: str) -> int | None:
        return self._whole.token_to_id(token)

    def token_of(self, token_id: int) -> str | None:
        return self._whole.id_to_token(token_id)

    def decode(self, ids: list[int]) -> str:
        """The text of the tokens, control tokens left out."""
        return str(self._whole.decode(ids, skip_special_tokens=True))

    def _split(self, text: str) -> Iterator[tuple[str, bool]]:
        for number, part in enumerate(_TYPED.split(text)):
            if number % 2 == 0 and part:
                yield part, False
            elif number % 2 and int(part) < len(self._special):
                yield self._special[int(part)], True

    def _following(self, text: str) -> list[int]:
        # What follows a control token begins anew, as it does where the whole text is encoded at once.
        control = self._any_special.search(text)
        cut = control.start() if control else len(text)
        return _ids(self._continuing, text[:cut]) + _ids(self._whole, text[cut:])

    @cached_property
    def _spelling(self) -> Tokenizer:
        copy = Tokenizer.from_str(self._continuing.to_str())
        copy.encode_special_tokens = True
        return copy

    def _body_length(self, text: str) -> int:
        """How much of the text comes before the control tokens and white space that close it."""
        end = len(text)
        while True:
            end = len(text[:end].rstrip())
            closing = next((token for token in self._special if text.endswith(token, 0, end)), None)
            if closing is None:
                return end
            end -= len(closing)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids) if text else []


def _tokenizer(definition: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(definition)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"the model's tokenizer.json cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _continuing(definition: str) -> Tokenizer | None:
    """The tokenizer without the step that marks the beginning of a text with a space; None when it has no such step."""
    whole = json.loads(definition)
    edited = {name: _unmarked(whole.get(name)) for name in ("normalizer", "pre_tokenizer")}
    if all(whole.get(name) == part for name, part in edited.items()):
        return None
    return _tokenizer(json.dumps(whole | edited))


def _unmarked(step: Any) -> Any:
    if not isinstance(step, dict):
        return step
    match step.get("type"):
        case "Sequence":
            return {
                name: [left for part in value if (left := _unmarked(part)) is not None]
                if isinstance(value, list)
                else value
                for name, value in step.items()
            }
        case "Prepend":
            return None
        case "Metaspace":
            kept = {name: value for name, value in step.items() if name != "add_prefix_space"}
            return kept | {"prepend_scheme": "never"}
        case "ByteLevel":
            return step | {"add_prefix_space": False}
    return step
