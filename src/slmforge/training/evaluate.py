"""Evaluation: base and tuned on the same held-out rows, with intervals, a verdict and samples side by side.

Everything is drawn from the spec's seed. Called by `__main__`; what is asked of each model stands in `answers.py`.
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from slmforge.blobs import BlobStore
from slmforge.contract.events import Emit, Finished, Noted
from slmforge.contract.run_folder import RunFolder, fetch_artifact
from slmforge.contract.spec import EvalSpec
from slmforge.data.conversations import Conversation
from slmforge.training.answers import Answers, Questions, answer
from slmforge.training.bootstrap import FEWEST_ROWS, compare
from slmforge.training.failures import RunFailure
from slmforge.training.model import load_base, load_tuned
from slmforge.training.rows import read_rows
from slmforge.training.scorers import Metric, exact_match, macro_f1, mean, perplexity, token_f1

CONFUSIONS = 10
LOWER_IS_BETTER = {"perplexity"}


def evaluate(spec: EvalSpec, store: BlobStore, folder: RunFolder, emit: Emit) -> Finished:
    """Carry out `spec`; every row's answers become the artefact `answers`. Raises `RunFailure`, `BlobMissing`."""
    began = time.monotonic()
    rows = read_rows(store, spec.data)
    questions = _questions(spec, rows.train, rows.held_out, emit)
    with tempfile.TemporaryDirectory() as temporary:
        tuned_folder = fetch_artifact(store, spec.tuned, Path(temporary) / "tuned")
        base = answer(questions, load_base(spec.base, tuned_folder), spec, "base", emit)
        tuned = answer(questions, load_tuned(spec.base, tuned_folder), spec, "tuned", emit)
        _write_answers(Path(temporary) / "answers" / "answers.jsonl", questions, base, tuned)
        artifact = folder.publish_folder("answers", Path(temporary) / "answers")
    base_metrics, tuned_metrics = _metrics(spec, questions, base), _metrics(spec, questions, tuned)
    if not tuned_metrics:
        message = "no token of the held-out answers is left within the length limit; raise max_seq_length"
        raise RunFailure("no_usable_rows", message)
    summary: dict[str, Any] = {
        "task": spec.task,
        "rows": len(questions.rows),
        "metrics": {
            name: _compared(spec, name, base_metrics[name], tuned_metrics[name], emit) for name in tuned_metrics
        },
        "samples": _samples(spec, questions, base, tuned),
    }
    if spec.task == "classification":
        summary |= _by_label(questions, base, tuned)
    return Finished(
        summary=summary | {"wall_seconds": round(time.monotonic() - began, 3)}, artifacts={"answers": artifact}
    )


def expected_answer(row: Conversation) -> str:
    """What the row's last answer says, or the second half of a plain text."""
    if row.text is not None:
        return row.text[len(row.text) // 2 :]
    return next((turn.content for turn in reversed(row.messages) if turn.role == "assistant"), "")


def _questions(spec: EvalSpec, train: Sequence[Conversation], rows: Sequence[Conversation], emit: Emit) -> Questions:
    if spec.task == "classification":
        labels = sorted({row.label for row in train if row.label is not None})
        if not labels:
            raise RunFailure("no_usable_rows", "no training row has a label to choose; train on text and label columns")
        _note_unseen_labels(labels, rows, emit)
        return Questions(rows, range(len(rows)), labels)
    wanted = spec.generate_rows if spec.task == "generation" else spec.sample_rows
    drawn = np.random.default_rng(spec.seed).permutation(len(rows))[:wanted]
    return Questions(rows, sorted(int(place) for place in drawn), [])


def _note_unseen_labels(labels: Sequence[str], rows: Sequence[Conversation], emit: Emit) -> None:
    unseen = Counter(row.label for row in rows if row.label not in set(labels))
    if unseen:
        named = ", ".join(f"{label!r}" for label, _ in unseen.most_common(5))
        message = (
            f"{unseen.total()} of {len(rows)} held-out rows have a label that no training row has ({named}"
            f"{', …' if len(unseen) > 5 else ''}); they count as wrong for both models"
        )
        emit(Noted(level="warning", message=message))


def _metrics(spec: EvalSpec, questions: Questions, answers: Answers) -> dict[str, Metric]:
    """The task's metrics of one model, those that have a row to stand on."""
    expected = [expected_answer(questions.rows[place]) for place in questions.asked]
    given = [answers.given[place] for place in questions.asked]
    metrics: dict[str, Metric] = {}
    if spec.task == "classification":
        metrics["accuracy"] = mean([float(a == b) for a, b in _labelled(questions, answers)])
        metrics["macro_f1"] = macro_f1(*zip(*_labelled(questions, answers), strict=True))
    elif spec.task == "generation" and given:
        metrics["exact_match"] = mean([exact_match(*pair) for pair in zip(expected, given, strict=True)])
        metrics["token_f1"] = mean([token_f1(*pair) for pair in zip(expected, given, strict=True)])
    scored_R = answers.tokens_R > 0
    if scored_R.any():
        metrics["perplexity"] = perplexity(answers.nll_R[scored_R], answers.tokens_R[scored_R])
    return metrics


def _labelled(questions: Questions, answers: Answers) -> list[tuple[str, str]]:
    """(expected, given) label of each row."""
    return [(str(questions.rows[place].label), answers.given[place]) for place in questions.asked]


def _compared(spec: EvalSpec, name: str, base: Metric, tuned: Metric, emit: Emit) -> dict[str, Any]:
    higher = name not in LOWER_IS_BETTER
    rows = len(tuned.terms_RC)
    if rows < FEWEST_ROWS:
        message = f"{name} rests on {rows} rows; it takes at least {FEWEST_ROWS} to tell two models apart"
        emit(Noted(level="warning", message=message))
    found = compare(base, tuned, higher_is_better=higher, samples=spec.bootstrap_samples, seed=spec.seed)
    return {**asdict(found), "higher_is_better": higher, "rows": rows}


def _samples(spec: EvalSpec, questions: Questions, base: Answers, tuned: Answers) -> list[dict[str, Any]]:
    drawn = np.random.default_rng((spec.seed, 1)).permutation(len(questions.asked))[: spec.sample_rows]
    places = sorted(questions.asked[int(index)] for index in drawn)
    return [_side_by_side(questions.rows[place], base.given[place], tuned.given[place]) for place in places]


def _side_by_side(row: Conversation, base: str | None, tuned: str | None) -> dict[str, Any]:
    return {
        "row": row.number,
        "prompt": _shown_prompt(row),
        "expected": expected_answer(row),
        "base": base,
        "tuned": tuned,
    }


def _shown_prompt(row: Conversation) -> str:
    if row.text is not None:
        return row.text[: len(row.text) // 2]
    last = max((number for number, turn in enumerate(row.messages) if turn.role == "assistant"), default=None)
    turns = row.messages[:last]
    return turns[0].content if len(turns) == 1 else "\n".join(f"{turn.role}: {turn.content}" for turn in turns)


def _by_label(questions: Questions, base: Answers, tuned: Answers) -> dict[str, Any]:
    """Each label's rows and how many of them each model got right, and what the tuned model confuses most."""
    pairs = _labelled(questions, tuned)
    rows = Counter(expected for expected, _ in pairs)
    right = {
        name: Counter(expected for expected, given in _labelled(questions, answers) if expected == given)
        for name, answers in (("base", base), ("tuned", tuned))
    }
    confused = Counter((expected, given) for expected, given in pairs if expected != given)
    return {
        "labels": [
            {"label": label, "rows": rows[label], **{name: right[name][label] for name in right}}
            for label in sorted({*questions.labels, *rows})
        ],
        "confusions": [
            {"expected": expected, "given": given, "rows": count}
            for (expected, given), count in sorted(confused.items(), key=lambda item: (-item[1], item[0]))[:CONFUSIONS]
        ],
    }


def _write_answers(path: Path, questions: Questions, base: Answers, tuned: Answers) -> None:
    """A line for each held-out row: what was expected, what each model answered, how likely it found what was right."""
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="utf-8") as file:
        for place, row in enumerate(questions.rows):
            line = _side_by_side(row, base.given.get(place), tuned.given.get(place)) | {
                "base_nll": float(base.nll_R[place]),
                "tuned_nll": float(tuned.nll_R[place]),
                "tokens": int(tuned.tokens_R[place]),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
