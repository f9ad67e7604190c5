import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file

from slmforge.contract.fingerprint import directory_fingerprint
from slmforge.contract.spec import DirectoryBase, HubBase, ScratchBase
from slmforge.training.failures import RunFailure
from slmforge.training.model import load_base

pytestmark = pytest.mark.parametrize("model_directory", ["llama"], indirect=True)


def refusal(folder: Path) -> RunFailure:
    with pytest.raises(RunFailure) as failure:
        load_base(DirectoryBase(path=str(folder), fingerprint=directory_fingerprint(folder)))
    return failure.value


def test_a_loaded_model_is_ready_and_says_why_it_is_as_it_is(model_directory: Path) -> None:
    loaded = load_base(DirectoryBase(path=str(model_directory), fingerprint=directory_fingerprint(model_directory)))
    assert not loaded.model.training
    assert loaded.folder == model_directory
    assert set(loaded.choices) == {"device", "precision", "threads"}
    assert all(choice.reason for choice in loaded.choices.values())


def test_pickled_weights_are_never_opened(model_directory: Path) -> None:
    (model_directory / "model.safetensors").rename(model_directory / "pytorch_model.bin")
    failure = refusal(model_directory)
    assert failure.code == "model_rejected"
    assert "safetensors" in str(failure)


def test_a_models_own_code_is_never_run(model_directory: Path) -> None:
    code = model_directory / "modeling_evil.py"
    code.write_text(f"open({str(model_directory / 'ran')!r}, 'w')")
    config = json.loads((model_directory / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"},
    }
    (model_directory / "config.json").write_text(json.dumps(config))
    failure = refusal(model_directory)
    assert failure.code == "model_rejected"
    assert "code of its own" in str(failure)
    assert not (model_directory / "ran").exists()


def test_weights_that_were_cut_off_are_rejected(model_directory: Path) -> None:
    weights = model_directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert refusal(model_directory).code == "model_rejected"


def test_weights_that_are_missing_are_not_made_up(model_directory: Path) -> None:
    weights = load_file(model_directory / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, model_directory / "model.safetensors", metadata={"format": "pt"})
    failure = refusal(model_directory)
    assert failure.code == "model_rejected"
    assert "model.norm.weight" in str(failure)


def test_weights_of_another_shape_are_rejected(model_directory: Path) -> None:
    weights = load_file(model_directory / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(7)
    save_file(weights, model_directory / "model.safetensors", metadata={"format": "pt"})
    assert refusal(model_directory).code == "model_rejected"


def test_a_model_without_a_tokenizer_is_rejected(model_directory: Path) -> None:
    (model_directory / "tokenizer.json").unlink()
    failure = refusal(model_directory)
    assert failure.code == "model_rejected"
    assert "tokenizer.json" in str(failure)


def test_a_scratch_model_needs_its_tokenizer(model_directory: Path) -> None:
    with pytest.raises(RunFailure) as failure:
        load_base(ScratchBase(size="scratch-1m", seed=0))
    assert failure.value.code == "model_unavailable"


@pytest.mark.parametrize("error", [RepositoryNotFoundError, LocalEntryNotFoundError])
def test_a_hub_model_that_cannot_be_had_is_unavailable(
    error: type[Exception], model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        raise error.__new__(error)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(RunFailure, match="nobody/nothing") as failure:
        load_base(HubBase(repo_id="nobody/nothing", revision="main"))
    assert failure.value.code == "model_unavailable"


def test_a_hub_model_is_fetched_pinned_and_without_anything_that_runs(
    model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def snapshot_download(repo_id: str, **options: object) -> str:
        asked.update(options, repo_id=repo_id)
        return str(model_directory)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    loaded = load_base(HubBase(repo_id="some/model", revision="main"))
    assert loaded.folder == model_directory
    assert loaded.base == HubBase(repo_id="some/model", revision=model_directory.name)  # a commit, in the hub's cache
    assert (asked["repo_id"], asked["revision"]) == ("some/model", "main")
    assert not {"*.py", "*.bin", "*.pt"} & set(asked["allow_patterns"])  # type: ignore[call-overload]  # a list of strings
