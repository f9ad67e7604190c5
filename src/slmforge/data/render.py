"""Rendering: the one place where a conversation becomes tokens and a loss mask.

Preview, analysis, training and evaluation all call it, so what a person is shown is what the model learns from.
The answers and the control token that ends each carry loss, and nothing else does; a plain text carries it throughout.
No torch, no transformers: the tokenizer's own files, `tokenizers` and `jinja2`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

from slmforge.data.conversations import Conversation, Message
from slmforge.data.encoding import TokenEncoder
from slmforge.data.shortening import shorten
from slmforge.data.templates import CHATML, ChatTemplate, TemplateRefused, TokenizerFolder

__all__ = ["Rendered", "Renderer", "TemplateRefused"]


@dataclass(frozen=True, slots=True)
class Rendered:
    """One training sequence: `supervised[i]` says that `ids[i]` is to be predicted. It ends with its last such token.

    `cut_tokens` counts what did not fit. A sequence with no supervised token teaches nothing.
    """

    ids: list[int]
    supervised: list[bool]
    cut_tokens: int


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    answer: bool = False
    ends: bool = False


class Renderer:
    """A model's tokenizer and chat template; ChatML where the model has none.

    Each prompt is encoded apart from its answer, so the model is trained behind exactly the tokens that it will be
    asked with. Where ChatML's markers are not tokens of the vocabulary they are plain text, and the tokenizer's
    end-of-sequence token closes a turn.
    """

    def __init__(self, encoder: TokenEncoder, folder: TokenizerFolder) -> None:
        self._encoder = encoder
        ends = list(folder.generation_end_ids)
        if (eos_id := encoder.id_of(folder.special.get("eos_token", ""))) is not None:
            ends.insert(0, eos_id)
        self._eos_id = ends[0] if ends else None
        variables = folder.special if folder.template else folder.special | self._chatml_names()
        self._template = ChatTemplate(folder.template or CHATML, variables)
        self.end_token_id = self.answer_ids("x")[-1]
        # A base model may close with another end of its own: generation stops at any of them.
        self.end_token_ids = frozenset((self.end_token_id, *ends))

    @classmethod
    def from_directory(cls, folder: Path) -> "Renderer":
        """Read `tokenizer.json`, its configuration and template. Raises `ValueError` when one cannot be used."""
        return cls(TokenEncoder.from_file(folder / "tokenizer.json"), TokenizerFolder.read(folder))

    def render(self, conversation: Conversation, max_length: int) -> list[Rendered]:
        """The sequences to train on, each of at most `max_length` tokens. Raises `TemplateRefused`.

        Usually one. A template that rewrites earlier turns (say, drops their reasoning) shows a later question
        another past than the one an earlier answer was given in: then there is one sequence per trained answer.
        A plain text gives consecutive windows, and nothing of it is cut.

        A conversation that is too long loses its oldest exchanges, then the middle of its longest question; its
        system turn stays, and the end of an answer goes only when the answer is longer than half the room.
        """
        if conversation.text is not None:
            return self._windows(conversation.text, max_length)
        turns = conversation.messages
        answers = [number for number, turn in enumerate(turns) if _trained(turn)]
        turns = turns[: answers[-1] + 1] if answers else turns
        try:
            return [self._fitted(turns, max_length)]
        except _RewrittenPast:
            return [self._fitted(_only_answer(turns, number), max_length) for number in answers]

    def prompt_ids(self, conversation: Conversation, max_length: int) -> list[int]:
        """The tokens up to the last answer, shortened as `render` does it: what the model is asked with."""
        turns = conversation.messages
        last = max((number for number, turn in enumerate(turns) if turn.role == "assistant"), default=len(turns))
        prompt = partial(self._prompt, reasons=_reasons(turns))
        return prompt(shorten(turns[:last], max_length, prompt, self._encoder.spans))[-max_length:]

    def answer_ids(self, text: str) -> list[int]:
        """The tokens of an answer and of its end, as they follow a prompt in `render`."""
        ids, supervised = self._sequence((Message("user", "?"), Message("assistant", text)))
        return ids[supervised.index(True) :]

    def decode(self, ids: list[int]) -> str:
        """The text of the tokens, control tokens left out."""
        return self._encoder.decode(ids)

    def _windows(self, text: str, max_length: int) -> list[Rendered]:
        end = [] if self._eos_id is None else [self._eos_id]
        ids = self._encoder.opening_ids() + self._encoder.encode(self._encoder.protect(text)) + end
        parts = (ids[start : start + max_length] for start in range(0, len(ids), max_length))
        return [Rendered(part, [True] * len(part), 0) for part in parts]

    def _fitted(self, turns: Sequence[Message], max_length: int) -> Rendered:
        ids, supervised = self._sequence(turns)
        whole_tokens = len(ids)
        if whole_tokens > max_length:
            prompt = partial(self._prompt, reasons=_reasons(turns))
            answer_tokens = whole_tokens - len(prompt(turns[:-1])) if _trained(turns[-1]) else 0
            room = max_length - min(answer_tokens, max_length // 2)
            ids, supervised = self._sequence((*shorten(turns[:-1], room, prompt, self._encoder.spans), turns[-1]))
        ids, supervised = ids[:max_length], supervised[:max_length]
        return Rendered(ids, supervised, whole_tokens - len(ids))

    def _prompt(self, turns: Sequence[Message], reasons: bool) -> list[int]:
        """The tokens that ask for the next turn, cut into pieces where `_sequence` cuts them."""
        asking = self._text(turns, answering=True, reasons=reasons)
        try:
            return self._tokens(self._pieces(turns, asking, reasons))[0]
        except _RewrittenPast:
            return self._encoder.encode(asking)

    def _sequence(self, turns: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Tokens and mask of all the turns; what follows the last trained answer's end is left out."""
        if not any(map(_trained, turns)):
            ids = self._encoder.encode(self._text(turns, answering=False, reasons=_reasons(turns)))
            return ids, [False] * len(ids)
        ids, supervised = self._tokens(self._pieces(turns, None, _reasons(turns)))
        end = len(ids) - supervised[::-1].index(True)
        return ids[:end], supervised[:end]

    def _tokens(self, pieces: Iterable[_Piece]) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        supervised: list[bool] = []
        for piece in pieces:
            tokens = self._encoder.encode(piece.text, continues=bool(ids))
            closing_tokens = 0
            if piece.answer and not piece.ends:
                tokens.append(self._end_of_text())
            elif piece.answer:
                closing_tokens = self._encoder.tokens_after_control(tokens)
            ids += tokens
            supervised += [piece.answer] * (len(tokens) - closing_tokens) + [False] * closing_tokens
        return ids, supervised

    def _pieces(self, turns: Sequence[Message], asking: str | None, reasons: bool) -> Iterator[_Piece]:
        """Prompts and trained answers in turn, then the rest of the text `asking`.

        Templates do not say where an answer is, so the conversation is rendered up to each answer and with it, and the
        difference taken. Raises `_RewrittenPast` where a later turn sees something else than an earlier one did.
        """
        answers = [number for number, turn in enumerate(turns) if _trained(turn)]
        seen = ""
        for number, following in zip_longest(answers, answers[1:]):
            prompt = self._text(turns[:number], answering=True, reasons=reasons)
            whole = self._text(turns[: number + 1], answering=False, reasons=reasons)
            if not whole.startswith(prompt):
                raise TemplateRefused(
                    "the model's chat template asks for an answer with other text than it then writes before it"
                )
            if following is not None:
                later = self._text(turns[:following], answering=True, reasons=reasons)
            else:
                later = whole if asking is None else asking
            answer, ends = self._answer(whole[len(prompt) :], later[len(prompt) :])
            if not (prompt.startswith(seen) and later.startswith(prompt + answer)):
                raise _RewrittenPast
            yield _Piece(prompt[len(seen) :])
            yield _Piece(answer, answer=True, ends=ends)
            seen = prompt + answer
        if asking is not None:
            if not asking.startswith(seen):
                raise _RewrittenPast
            yield _Piece(asking[len(seen) :])

    def _answer(self, written: str, later: str) -> tuple[str, bool]:
        """An answer with the control token that ends it, and whether there is one.

        A finished conversation may be closed by one control token more than a turn, so the first counts. The white
        space behind it may belong to the token, and is taken where a later turn has it too.
        """
        end = self._encoder.end_of_turn(written)
        if end is None:
            return written.rstrip(), False
        behind = later[end:]
        return written[:end] + behind[: len(behind) - len(behind.lstrip())], True

    def _text(self, turns: Sequence[Message], *, answering: bool, reasons: bool) -> str:
        protected = [replace(turn, content=self._encoder.protect(turn.content)) for turn in turns]
        return self._template.text(protected, answering=answering, reasons=reasons)

    def _chatml_names(self) -> dict[str, str]:
        opening = "".join(token for i in self._encoder.opening_ids() if (token := self._encoder.token_of(i)))
        end = "<|im_end|>" if self._encoder.is_control("<|im_end|>") else self._encoder.token_of(self._end_of_text())
        return {"opening": opening, "turn_end": end or ""}

    def _end_of_text(self) -> int:
        if self._eos_id is None:
            raise ValueError(
                "the model's tokenizer names no end-of-sequence token, so no answer could end: set eos_token in its "
                "tokenizer_config.json"
            )
        return self._eos_id


class _RewrittenPast(Exception):
    """A later turn is rendered behind another past than the one an earlier answer was given in."""


def _trained(turn: Message) -> bool:
    return turn.role == "assistant" and turn.train


def _only_answer(turns: Sequence[Message], number: int) -> tuple[Message, ...]:
    return (*(replace(turn, train=False) for turn in turns[:number]), turns[number])


def _reasons(turns: Sequence[Message]) -> bool:
    return any(turn.role == "assistant" and "</think>" in turn.content for turn in turns)
