"""The base model, wherever it comes from, and the tuned one that stands on it.

Both come with the folder that holds their tokenizer and with the renderer made from it. Weights are read from
safetensors only, and a model's own code is never run. Called by `job.py` and `evaluate.py`.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import nn

from slmforge.contract.events import Choice
from slmforge.contract.fingerprint import directory_fingerprint
from slmforge.contract.spec import Base, DirectoryBase, HubBase, Lora, ScratchBase
from slmforge.data.render import Renderer
from slmforge.training import scratch
from slmforge.training.device import choose_device, choose_precision, choose_threads, weights_dtype
from slmforge.training.failures import RunFailure, ran_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
NOT_HUB_FILES = ["*/*", "consolidated*"]  # other frameworks' weights, and Mistral's second copy of its own

Use = Literal["full", "lora", "inference"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model on its device, its tokenizer's files, and what was chosen for this machine, with reasons.

    `base` is what was asked for, a hub's branch replaced by the commit that it stood at.
    """

    base: Base
    model: "PreTrainedModel"
    renderer: Renderer
    folder: Path
    choices: dict[str, Choice]

    @property
    def device(self) -> torch.device:
        return torch.device(self.choices["device"].value)


def load_base(base: Base, scratch_tokenizer: Path | None = None, *, use: Use = "inference") -> Loaded:
    """Load or build `base`; a scratch model is built for the tokenizer in the folder `scratch_tokenizer`.

    Raises `RunFailure`: `model_unavailable` when it is not to be had, `model_rejected` when we will not load it,
    `integrity_error` when a directory is no longer the one that was recorded.
    """
    if isinstance(base, ScratchBase):
        if scratch_tokenizer is None:
            raise RunFailure("model_unavailable", "the tokenizer of this scratch model is missing; train it again")
        return _ready(base, scratch.build(base.size, base.seed, scratch_tokenizer), scratch_tokenizer, use)
    if isinstance(base, DirectoryBase):
        return _load_folder(base, _directory(base), use)
    folder = _snapshot(base)  # the hub's cache names it by the commit
    return _load_folder(base.model_copy(update={"revision": folder.name}), folder, use)


def load_tuned(base: Base, artifact: Path) -> Loaded:
    """Load what a training run exported into the folder `artifact`: a whole model, or an adapter put on `base`.

    Raises `RunFailure` as `load_base` does.
    """
    if not (artifact / "adapter_config.json").is_file():
        return _load_folder(base, artifact, "inference")
    from peft import PeftModel

    loaded = load_base(base, artifact)
    adapted = PeftModel.from_pretrained(loaded.model, artifact, use_safetensors=True)
    adapted.eval()
    return replace(loaded, model=cast("PreTrainedModel", adapted), renderer=_read_renderer(artifact), folder=artifact)


def add_lora(model: "PreTrainedModel", lora: Lora, seed: int) -> "PreTrainedModel":
    """Freeze `model` and put seeded low-rank adapters, in float32, on its targets. Raises `RunFailure`."""
    from peft import LoraConfig, get_peft_model

    targets: str | list[str] = lora.targets
    if lora.targets != "all-linear":
        targets = [name.strip() for name in lora.targets.split(",")]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=cast("int", lora.alpha),  # a float serves; only the annotation is narrow
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        return cast("PreTrainedModel", get_peft_model(model, config))  # it forwards what it does not have
    except ValueError as error:
        message = f"LoRA does not fit this model with targets {lora.targets!r}: {error}; use all-linear"
        raise RunFailure("invalid_spec", message) from error


def choose_for_this_machine(use: Use) -> dict[str, Choice]:
    """Device, precision and threads for `use`."""
    device = choose_device()
    return {
        "device": device,
        "precision": choose_precision(device.value, all_weights_move=use == "full"),
        "threads": choose_threads(),
    }


def _directory(base: DirectoryBase) -> Path:
    folder = Path(base.path)
    try:
        found = directory_fingerprint(folder)
    except OSError as error:
        raise RunFailure("model_unavailable", f"the model at {folder} cannot be read: {error}") from error
    if found != base.fingerprint:
        message = f"the model at {folder} has changed since the experiment was made; create the experiment again"
        raise RunFailure("integrity_error", message)
    return folder


def _snapshot(base: HubBase) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        path = snapshot_download(
            base.repo_id, revision=base.revision, allow_patterns=HUB_FILES, ignore_patterns=NOT_HUB_FILES
        )
    except GatedRepoError as error:
        raise _unavailable(base, "is gated; accept its terms on the hub and set HF_TOKEN") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise _unavailable(base, "is not on the hub; check the id and the revision") from error
    except OSError as error:  # the hub's own errors are of this kind, and so is a full disk
        raise _unavailable(base, f"could not be fetched ({error}); check the network, or name a folder") from error
    return Path(path)


def _unavailable(base: HubBase, reason: str) -> RunFailure:
    return RunFailure("model_unavailable", f"{base.repo_id} at {base.revision} {reason}")


def _load_folder(base: Base, folder: Path, use: Use) -> Loaded:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    _refuse_what_we_never_load(folder)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=weights_dtype(choose_for_this_machine(use)["precision"]),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (ValueError, KeyError, OSError, RuntimeError, SafetensorError) as error:
        if ran_out_of_memory(error):
            raise
        first_line = str(error).strip().partition("\n")[0]
        message = f"the model in {folder.name} cannot be loaded: {first_line}; choose another, or save it anew"
        raise RunFailure("model_rejected", message) from error
    model, report = cast("tuple[PreTrainedModel, dict[str, list[str]]]", loaded)
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        message = f"the weights in {folder.name} lack {missing} and would be random there; save the model anew"
        raise RunFailure("model_rejected", message)
    return _ready(base, model, folder, use)


def _refuse_what_we_never_load(folder: Path) -> None:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise RunFailure("model_rejected", f"config.json of {folder.name} cannot be read: {error}") from error
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
        message = f"{folder.name} needs Python code of its own, which is never run; choose a model without"
        raise RunFailure("model_rejected", message)
    if not any(folder.glob("*.safetensors")):
        message = f"{folder.name} has no safetensors weights, and pickled ones are never opened; convert them first"
        raise RunFailure("model_rejected", message)


def _ready(base: Base, model: "PreTrainedModel", folder: Path, use: Use) -> Loaded:
    """The model on its device, in its precision, not yet training."""
    choices = choose_for_this_machine(use)
    torch.set_num_threads(int(choices["threads"].value))
    nn.Module.to(model, device=choices["device"].value, dtype=weights_dtype(choices["precision"]))
    nn.Module.eval(model)
    return Loaded(base, model, _read_renderer(folder), folder, choices)


def _read_renderer(folder: Path) -> Renderer:
    """The renderer of a model's folder. Raises `RunFailure`."""
    try:
        return Renderer.from_directory(folder)
    except (ValueError, OSError) as error:
        message = f"the model's tokenizer cannot be used: {error}; choose a model that has a tokenizer.json"
        raise RunFailure("model_rejected", message) from error
