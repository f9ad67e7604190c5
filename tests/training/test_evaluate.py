import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slmforge.blobs import LocalBlobStore
from slmforge.contract.events import Finished, KnownEvent, Noted, Progressed
from slmforge.contract.run_folder import RunFolder
from slmforge.contract.spec import DatasetRef, EvalData, EvalSpec, TrainSpec
from slmforge.training.evaluate import evaluate
from slmforge.training.failures import RunFailure
from slmforge.training.job import train
from slmforge.training.stopping import StopRequest


def _put(store: LocalBlobStore, name: str, rows: list[dict[str, str]], layout: str, columns: list[str]) -> DatasetRef:
    blob = store.put(f"datasets/{name}", [json.dumps(row).encode() + b"\n" for row in rows])
    return DatasetRef.model_validate(
        {"blob": blob, "format": "jsonl", "layout": layout, "columns": {c: c for c in columns}, "split": None}
    )


@pytest.fixture
def trained(store: LocalBlobStore) -> Callable[..., EvalSpec]:
    """Carry out a training; the spec that compares what came of it with its base."""

    def make(spec: TrainSpec, **changes: Any) -> EvalSpec:
        finished = train(spec, RunFolder(store, "t", 1), lambda _: None, StopRequest())
        return EvalSpec.model_validate(
            {
                "base": spec.base,
                "tuned": finished.artifacts["model"],
                "data": spec.data,
                "task": spec.task,
                "max_seq_length": spec.max_seq_length,
                "max_new_tokens": 8,
                "generate_rows": 10,
                "bootstrap_samples": 200,
                "sample_rows": 4,
                "seed": 7,
            }
            | changes
        )

    return make


def _evaluate(spec: EvalSpec, store: LocalBlobStore, run: str = "e") -> tuple[Finished, list[KnownEvent]]:
    events: list[KnownEvent] = []
    return evaluate(spec, store, RunFolder(store, run, 1), events.append), events


def _answers(store: LocalBlobStore, finished: Finished) -> list[dict[str, Any]]:
    (blob,) = finished.artifacts["answers"].files
    return [json.loads(line) for line in b"".join(store.open(blob.key)).splitlines()]


def test_a_classifier_is_compared_with_its_base_on_every_held_out_row(
    store: LocalBlobStore, make_spec: Callable[..., TrainSpec], trained: Callable[..., EvalSpec]
) -> None:
    spec = trained(make_spec(optimization={"epochs": 8}))
    finished, events = _evaluate(spec, store)
    summary = finished.summary
    assert (summary["task"], summary["rows"]) == ("classification", 24)
    assert set(summary["metrics"]) == {"accuracy", "macro_f1", "perplexity"}
    for metric in summary["metrics"].values():
        assert metric["verdict"] == "better"
        assert metric["rows"] == 24
        assert metric["interval"][0] <= metric["difference"] <= metric["interval"][1]
    assert [metric["higher_is_better"] for metric in summary["metrics"].values()] == [True, True, False]

    answers = _answers(store, finished)
    assert len(answers) == 24
    right = sum(line["tuned"] == line["expected"] for line in answers)
    assert summary["metrics"]["accuracy"]["tuned"] == right / 24
    assert sum(label["tuned"] for label in summary["labels"]) == right
    assert sum(label["rows"] for label in summary["labels"]) == 24
    assert sum(pair["rows"] for pair in summary["confusions"]) == 24 - right
    assert len(summary["samples"]) == 4
    assert all(set(sample) == {"row", "prompt", "expected", "base", "tuned"} for sample in summary["samples"])
    stages = {event.stage for event in events if isinstance(event, Progressed)}
    assert any("base" in stage for stage in stages)
    assert any("tuned" in stage for stage in stages)
    assert all(event.done <= event.total for event in events if isinstance(event, Progressed))


def test_the_seed_decides_everything(
    store: LocalBlobStore, make_spec: Callable[..., TrainSpec], trained: Callable[..., EvalSpec]
) -> None:
    spec = trained(make_spec(optimization={"epochs": 1}))
    first, second = _evaluate(spec, store, "e1")[0].summary, _evaluate(spec, store, "e2")[0].summary
    other = _evaluate(spec.model_copy(update={"seed": 8}), store, "e3")[0].summary
    first.pop("wall_seconds"), second.pop("wall_seconds")
    assert first == second
    assert first["metrics"]["perplexity"]["tuned"] == other["metrics"]["perplexity"]["tuned"]
    assert first["metrics"]["perplexity"]["interval"] != other["metrics"]["perplexity"]["interval"]


def test_a_label_that_was_never_trained_counts_as_wrong_and_is_told(
    store: LocalBlobStore,
    dataset: Callable[..., DatasetRef],
    make_spec: Callable[..., TrainSpec],
    trained: Callable[..., EvalSpec],
) -> None:
    training = make_spec(optimization={"epochs": 1})
    unseen = dataset("unseen.csv", [("what colour has coal", "black")] * 6)
    spec = trained(training, data=EvalData(train=training.data.train, eval=unseen, held_out=None))
    finished, events = _evaluate(spec, store)
    assert finished.summary["metrics"]["accuracy"]["tuned"] == 0.0
    assert finished.summary["metrics"]["accuracy"]["verdict"] == "not distinguishable"
    warnings = [event.message for event in events if isinstance(event, Noted) and event.level == "warning"]
    assert any("6 of 6" in message and "'black'" in message for message in warnings)


def test_written_answers_are_scored_on_the_rows_that_were_drawn(
    store: LocalBlobStore, make_spec: Callable[..., TrainSpec], trained: Callable[..., EvalSpec]
) -> None:
    rows = [{"question": f"say {word} now", "answer": f"{word} now"} for word in ["yes", "no", "maybe", "never"] * 6]
    data = EvalData(
        train=_put(store, "qa-train", rows, "question_answer", ["question", "answer"]),
        eval=_put(store, "qa-eval", rows, "question_answer", ["question", "answer"]),
        held_out=None,
    )
    spec = trained(make_spec(task="generation", data=data, optimization={"epochs": 20, "learning_rate": 4e-3}))
    finished, _ = _evaluate(spec, store)
    metrics = finished.summary["metrics"]
    assert set(metrics) == {"exact_match", "token_f1", "perplexity"}
    assert metrics["exact_match"]["rows"] == metrics["token_f1"]["rows"] == 10
    assert metrics["perplexity"]["rows"] == 24
    assert metrics["exact_match"]["verdict"] == metrics["token_f1"]["verdict"] == "better"
    answered = [line for line in _answers(store, finished) if line["tuned"] is not None]
    assert len(answered) == 10
    assert metrics["exact_match"]["tuned"] == sum(line["tuned"] == line["expected"] for line in answered) / 10
    assert "labels" not in finished.summary


def test_a_plain_text_has_perplexity_and_continuations(
    store: LocalBlobStore, make_spec: Callable[..., TrainSpec], trained: Callable[..., EvalSpec]
) -> None:
    rows = [{"text": f"one two three four five six seven {number}"} for number in range(12)]
    data = EvalData(
        train=_put(store, "text-train", rows, "text", ["text"]),
        eval=_put(store, "text-eval", rows, "text", ["text"]),
        held_out=None,
    )
    spec = trained(make_spec(task="language_modeling", data=data, optimization={"epochs": 4}))
    finished, _ = _evaluate(spec, store)
    assert set(finished.summary["metrics"]) == {"perplexity"}
    assert finished.summary["metrics"]["perplexity"]["verdict"] == "better"
    for sample in finished.summary["samples"]:
        assert sample["prompt"] + sample["expected"] == rows[sample["row"]]["text"]


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # peft asks transformers by the old name
def test_an_adapter_is_compared_with_the_model_it_stands_on(
    store: LocalBlobStore,
    make_spec: Callable[..., TrainSpec],
    trained: Callable[..., EvalSpec],
    model_directory: Path,
) -> None:
    spec = trained(make_spec(model_directory, method="lora", optimization={"epochs": 3, "learning_rate": 1e-2}))
    finished, _ = _evaluate(spec, store)
    assert finished.summary["metrics"]["perplexity"]["verdict"] == "better"


def test_a_classification_without_labels_says_what_to_train_on(
    store: LocalBlobStore, make_spec: Callable[..., TrainSpec], trained: Callable[..., EvalSpec]
) -> None:
    rows = _put(store, "qa", [{"question": "why", "answer": "because"}] * 12, "question_answer", ["question", "answer"])
    spec = trained(make_spec(optimization={"epochs": 1}))
    with pytest.raises(RunFailure, match="no training row has a label"):
        _evaluate(spec.model_copy(update={"data": EvalData(train=rows, eval=rows, held_out=None)}), store)


def test_a_label_longer_than_the_limit_says_what_to_raise(
    store: LocalBlobStore,
    make_spec: Callable[..., TrainSpec],
    trained: Callable[..., EvalSpec],
    dataset: Callable[..., DatasetRef],
) -> None:
    rows = dataset("long.csv", [("what is it", "a label of far more tokens than there is room for at all")] * 12)
    spec = trained(make_spec(optimization={"epochs": 1}), max_seq_length=8)
    with pytest.raises(RunFailure, match="raise max_seq_length above 8"):
        _evaluate(spec.model_copy(update={"data": EvalData(train=rows, eval=rows, held_out=None)}), store)
