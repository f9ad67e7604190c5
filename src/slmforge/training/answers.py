"""What one model makes of the held-out rows: the likelihood of each right answer, and an answer of its own.

Base and tuned are asked alike, each through its own renderer; `evaluate.py` compares what comes back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from slmforge.contract.events import Emit, Progressed
from slmforge.contract.spec import EvalSpec
from slmforge.data.conversations import Conversation
from slmforge.data.render import Rendered, TemplateRefused
from slmforge.training.failures import RunFailure
from slmforge.training.generation import generate
from slmforge.training.likelihood import most_likely_labels, sequence_nll
from slmforge.training.model import Loaded
from slmforge.training.scorers import Floats

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Answers:
    """One model's part: for each of R rows the answer's likelihood, and answers to the rows that were asked.

    `nll_R` is in nats over `tokens_R` predicted tokens. `given` maps a row's place to what the model answered.
    """

    nll_R: Floats
    tokens_R: Floats
    given: dict[int, str]


@dataclass(frozen=True, slots=True)
class Questions:
    """The held-out rows, the places of those to be answered, and the labels to choose from in a classification."""

    rows: Sequence[Conversation]
    asked: Sequence[int]
    labels: Sequence[str]


def answer(questions: Questions, loaded: Loaded, spec: EvalSpec, name: str, emit: Emit) -> Answers:
    """Ask one model, called `name` in the progress that is told. Raises `RunFailure`."""
    sequences = [_render(loaded, row, spec.max_seq_length) for row in questions.rows]
    flat = [sequence for of_row in sequences for sequence in of_row]
    heard = _reporter(emit, f"scoring answers under the {name} model", len(flat))
    nll, tokens = sequence_nll(loaded.model, flat, heard)
    starts = np.cumsum([0, *(len(of_row) for of_row in sequences[:-1])])
    if not np.isfinite(nll).all():
        message = f"the {name} model gives answers a likelihood that is no finite number; train again with a lower rate"
        raise RunFailure("diverged", message)
    given = (
        _choose(questions, loaded, spec, name, emit)
        if questions.labels
        else _write(questions, loaded, spec, name, emit)
    )
    return Answers(np.add.reduceat(nll, starts), np.add.reduceat(tokens, starts), given)


def _choose(questions: Questions, loaded: Loaded, spec: EvalSpec, name: str, emit: Emit) -> dict[int, str]:
    """Of all the labels the one that the model finds most probable."""
    labels = [loaded.renderer.answer_ids(label) for label in questions.labels]
    room = spec.max_seq_length - max(map(len, labels))
    if room < 1:
        message = f"a label takes {max(map(len, labels))} tokens; raise max_seq_length above {spec.max_seq_length}"
        raise RunFailure("invalid_spec", message)
    prompts = [loaded.renderer.prompt_ids(questions.rows[place], room) for place in questions.asked]
    heard = _reporter(emit, f"choosing labels with the {name} model", len(prompts))
    chosen = most_likely_labels(loaded.model, prompts, labels, heard)
    return {place: questions.labels[label] for place, label in zip(questions.asked, chosen, strict=True)}


def _write(questions: Questions, loaded: Loaded, spec: EvalSpec, name: str, emit: Emit) -> dict[int, str]:
    """What the model writes, the most probable token each time."""
    renderer = loaded.renderer
    room = _room(loaded.model, spec)
    prompts = [_prompt(questions.rows[place], loaded, room) for place in questions.asked]
    written = generate(
        loaded.model,
        prompts,
        end_ids=renderer.end_token_ids,
        max_new_tokens=spec.max_new_tokens,
        advance=_reporter(emit, f"answering with the {name} model", len(prompts)),
    )
    return {place: renderer.decode(ids).strip() for place, ids in zip(questions.asked, written, strict=True)}


def _prompt(row: Conversation, loaded: Loaded, max_tokens: int) -> list[int]:
    """What is put to the model; a plain text is to be continued from its middle."""
    if row.text is None:
        return loaded.renderer.prompt_ids(row, max_tokens)
    half = replace(row, text=row.text[: len(row.text) // 2])
    ids = [token_id for part in loaded.renderer.render(half, max_tokens) for token_id in part.ids]
    return ids[:-1][-max_tokens:] if ids[-1] in loaded.renderer.end_token_ids else ids[-max_tokens:]


def _room(model: "PreTrainedModel", spec: EvalSpec) -> int:
    """How long a prompt may be for the answer still to fit the model's context."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return spec.max_seq_length if context is None else max(1, min(spec.max_seq_length, context - spec.max_new_tokens))


def _render(loaded: Loaded, row: Conversation, max_length: int) -> list[Rendered]:
    try:
        return loaded.renderer.render(row, max_length)
    except TemplateRefused as error:
        place = f"line {row.line}" if row.line is not None else f"row {row.number}"
        raise RunFailure("model_rejected", f"{place} of the held-out rows does not fit this model: {error}") from error


def _reporter(emit: Emit, stage: str, total: int) -> Callable[[int], None]:
    """Takes how many more are done."""
    done = 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        emit(Progressed(stage=stage, done=done, total=total, unit="rows"))

    advance(0)
    return advance
