"""Whole training runs on tiny models, in this process."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from slmforge.blobs import LocalBlobStore
from slmforge.contract.events import Checkpointed, Finished, KnownEvent, Measured, Noted, Progressed
from slmforge.contract.run_folder import RunFolder, fetch_artifact
from slmforge.contract.spec import ArtifactRef, DirectoryBase, EvalData, HeldOut, HubBase, TrainSpec
from slmforge.training.failures import RunFailure
from slmforge.training.job import train
from slmforge.training.model import load_base, load_tuned
from slmforge.training.stopping import Interrupted, StopRequest

# peft asks for an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

MakeSpec = Callable[..., TrainSpec]


class Run:
    """One attempt, carried out here; `interrupt_at` asks it to stop once it has measured that step's loss."""

    def __init__(
        self, store: LocalBlobStore, spec: TrainSpec, attempt: int = 1, interrupt_at: int | None = None
    ) -> None:
        self.folder = RunFolder(store, "run", attempt)
        self.events: list[KnownEvent] = []
        self._spec, self._stop, self._interrupt_at = spec, StopRequest(), interrupt_at

    def carry_out(self) -> Finished:
        return train(self._spec, self.folder, self._emit, self._stop)

    def losses(self, name: str = "loss") -> dict[int, float]:
        points = [event for event in self.events if isinstance(event, Measured)]
        return {event.step: event.values[name] for event in points if name in event.values}

    def checkpoints(self) -> list[ArtifactRef]:
        return [event.artifact for event in self.events if isinstance(event, Checkpointed)]

    def _emit(self, event: KnownEvent) -> None:
        self.events.append(event)
        if isinstance(event, Measured) and "loss" in event.values and event.step == self._interrupt_at:
            self._stop.asked = True


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_directory_learns_and_its_export_says_what_it_learnt(
    method: str, store: LocalBlobStore, model_directory: Path, make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec(model_directory, method=method, optimization={"learning_rate": 2e-2})
    run = Run(store, spec)
    finished = run.carry_out()

    loss = finished.summary["held_out_loss"]
    assert loss["last"] < 0.7 * loss["first"]
    assert finished.summary["train_rows"] == 96
    assert finished.summary["steps"] == 24
    assert finished.summary["base"] == spec.base.model_dump(mode="json")
    assert (finished.summary["trainable_parameters"] < finished.summary["parameters"]) == (method == "lora")

    exported = fetch_artifact(store, finished.artifacts["model"], tmp_path / "exported")
    assert not list(exported.glob("*.bin"))
    prompt = AutoTokenizer.from_pretrained(exported)("<|user|>what colour has rose<|assistant|>", return_tensors="pt")
    ours = load_tuned(spec.base, exported).model
    theirs: Any = AutoModelForCausalLM.from_pretrained(model_directory if method == "lora" else exported)
    if method == "lora":
        theirs = PeftModel.from_pretrained(theirs, exported)
    with torch.no_grad():
        tuned, reloaded = ours(**prompt).logits, theirs(**prompt).logits
        base = load_base(spec.base).model(**prompt).logits
    torch.testing.assert_close(tuned, reloaded)
    assert not torch.allclose(tuned, base, atol=0.1)


def test_a_scratch_model_learns_from_rows_alone(store: LocalBlobStore, make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec()
    run = Run(store, spec)
    finished = run.carry_out()
    loss = finished.summary["held_out_loss"]
    assert loss["last"] < 0.2 * loss["first"]
    exported = fetch_artifact(store, finished.artifacts["model"], tmp_path / "exported")
    rebuilt = load_base(spec.base, exported)
    assert rebuilt.renderer.answer_ids("red") == load_tuned(spec.base, exported).renderer.answer_ids("red")
    stages = [event.stage for event in run.events if isinstance(event, Progressed)]
    assert stages[0] == "reading rows"
    assert stages[-2:] == ["training", "saving the model"]


def test_the_model_card_says_how_the_model_was_made(store: LocalBlobStore, make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(optimization={"epochs": 0.2})
    finished = Run(store, spec).carry_out()
    card = (fetch_artifact(store, finished.artifacts["model"], tmp_path) / "README.md").read_text()
    assert card.startswith("---\nlibrary_name:")
    assert spec.data.train.blob.sha256 in card
    assert f"{finished.summary['held_out_loss']['last']:.4f}" in card


def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(
    store: LocalBlobStore, make_spec: MakeSpec, model_directory: Path
) -> None:
    spec = make_spec(model_directory, method="lora")
    whole = Run(store, spec, attempt=1)
    whole.carry_out()
    first = Run(store, spec, attempt=2, interrupt_at=10)
    with pytest.raises(Interrupted) as request:
        first.carry_out()
    assert request.value.step == 10
    second = Run(store, spec.model_copy(update={"resume_from": first.checkpoints()[-1]}), attempt=3)
    second.carry_out()
    for name in ("loss", "held_out_loss"):
        assert first.losses(name) | second.losses(name) == pytest.approx(whole.losses(name), abs=1e-6)
        assert min(second.losses(name)) >= 10


def test_a_resumed_scratch_run_keeps_its_tokenizer(store: LocalBlobStore, make_spec: MakeSpec) -> None:
    spec = make_spec()
    first = Run(store, spec, attempt=1, interrupt_at=3)
    with pytest.raises(Interrupted):
        first.carry_out()
    names = {file.key.rsplit("/", 1)[1] for file in first.checkpoints()[-1].files}
    assert {"tokenizer.json", "weights.safetensors", "optimizer.safetensors", "random.safetensors"} <= names
    second = Run(store, spec.model_copy(update={"resume_from": first.checkpoints()[-1]}), attempt=2)
    assert second.carry_out().summary["steps"] == 24
    assert min(second.losses()) == 4


def test_a_resumed_run_stays_at_the_hub_commit_it_began_with(
    store: LocalBlobStore, make_spec: MakeSpec, model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    branch = "c0ffee"
    shutil.copytree(model_directory, tmp_path / branch)

    def snapshot_download(_repo_id: str, *, revision: str, **_options: object) -> str:
        return str(tmp_path / (branch if revision == "main" else revision))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    spec = make_spec(model_directory, method="lora")
    spec = spec.model_copy(update={"base": HubBase(repo_id="some/model", revision="main")})
    first = Run(store, spec, attempt=1, interrupt_at=3)
    with pytest.raises(Interrupted):
        first.carry_out()
    branch = "decade"
    second = Run(store, spec.model_copy(update={"resume_from": first.checkpoints()[-1]}), attempt=2)
    assert second.carry_out().summary["base"]["revision"] == "c0ffee"


def test_a_checkpoint_of_other_settings_is_refused(store: LocalBlobStore, make_spec: MakeSpec) -> None:
    first = Run(store, make_spec(), attempt=1, interrupt_at=3)
    with pytest.raises(Interrupted):
        first.carry_out()
    other = make_spec(optimization={"batch_size": 8}, resume_from=first.checkpoints()[-1])
    with pytest.raises(RunFailure) as failure:
        Run(store, other, attempt=2).carry_out()
    assert failure.value.code == "invalid_spec"


def test_the_newest_two_checkpoints_are_kept(store: LocalBlobStore, make_spec: MakeSpec) -> None:
    run = Run(store, make_spec(checkpoint_every_seconds=1e-9, optimization={"epochs": 0.7}))
    run.carry_out()
    kept = {key.split("/")[4] for key in store.list(f"{run.folder.path}/artifacts")}
    assert len(run.checkpoints()) > 2
    assert kept == {"model", *(f"checkpoint-{step}" for step in (2, 3))}


def test_a_loss_that_is_no_number_ends_the_run(store: LocalBlobStore, make_spec: MakeSpec) -> None:
    spec = make_spec(optimization={"learning_rate": 1e30, "max_grad_norm": 1e30, "warmup_ratio": 0})
    with pytest.raises(RunFailure, match="learning rate") as failure:
        Run(store, spec).carry_out()
    assert failure.value.code == "diverged"


def test_a_part_of_the_rows_is_held_out_when_no_other_file_is_named(store: LocalBlobStore, make_spec: MakeSpec) -> None:
    spec = make_spec(optimization={"epochs": 0.2})
    part = EvalData(train=spec.data.train, eval=None, held_out=HeldOut(fraction=0.25, max_rows=50, seed=0))
    summary = Run(store, spec.model_copy(update={"data": part})).carry_out().summary
    assert summary["train_rows"] + summary["held_out_rows"] == 96
    assert summary["held_out_rows"] >= 20


def test_rows_that_are_too_long_are_counted_and_told(store: LocalBlobStore, make_spec: MakeSpec) -> None:
    run = Run(store, make_spec(max_seq_length=8, optimization={"epochs": 0.2}))
    assert run.carry_out().summary["cut_rows"] > 0
    assert any(isinstance(event, Noted) and "max_seq_length above 8" in event.message for event in run.events)


def failing(store: LocalBlobStore, spec: TrainSpec) -> str:
    with pytest.raises(RunFailure) as failure:
        Run(store, spec).carry_out()
    return failure.value.code


def test_damaged_rows_are_an_integrity_error(store: LocalBlobStore, make_spec: MakeSpec) -> None:
    spec = make_spec()
    store.put(spec.data.train.blob.key, [b"text,label\nanother,file\n"])
    assert failing(store, spec) == "integrity_error"


def test_a_file_without_a_usable_row_is_told(store: LocalBlobStore, make_spec: MakeSpec, dataset: Any) -> None:
    spec = make_spec()
    empty = EvalData(train=dataset("empty.csv", [("", "")]), eval=spec.data.eval, held_out=None)
    assert failing(store, spec.model_copy(update={"data": empty})) == "no_usable_rows"


@pytest.mark.parametrize("model_directory", ["llama"], indirect=True)
def test_a_directory_that_changed_is_an_integrity_error(
    store: LocalBlobStore, make_spec: MakeSpec, model_directory: Path
) -> None:
    spec = make_spec(model_directory)
    (model_directory / "tokenizer_config.json").write_text("{}")
    assert failing(store, spec) == "integrity_error"


@pytest.mark.parametrize("model_directory", ["llama"], indirect=True)
def test_a_target_that_the_model_lacks_is_named(
    store: LocalBlobStore, make_spec: MakeSpec, model_directory: Path
) -> None:
    lora = {"rank": 2, "alpha": 4, "dropout": 0, "targets": "no_such_projection"}
    assert failing(store, make_spec(model_directory, method="lora", lora=lora)) == "invalid_spec"


def test_a_directory_that_is_gone_is_unavailable(store: LocalBlobStore, make_spec: MakeSpec) -> None:
    spec = make_spec(base=DirectoryBase(path="/no/such/model", fingerprint="0"))
    assert failing(store, spec) == "model_unavailable"
