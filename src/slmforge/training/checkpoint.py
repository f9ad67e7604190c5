"""Checkpoints: everything a run needs to go on as if it had never stopped. Safetensors and JSON, nothing pickled.

weights.safetensors     the weights that move, by name
optimizer.safetensors   their moments, and how many steps each has taken
random.safetensors      the states of torch's random generators
progress.json           step and sums; the data's place is a function of the step
tokenizer/              of a scratch model, whose tokenizer was learnt in this run
"""

import json
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from slmforge.contract.events import Checkpointed, Emit
from slmforge.contract.run_folder import RunFolder
from slmforge.contract.spec import ArtifactRef
from slmforge.training.failures import RunFailure
from slmforge.training.progress import Progress

KEPT = 2
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class Checkpoints:
    """Writes checkpoints of one attempt when they are due, and keeps the newest two."""

    def __init__(self, folder: RunFolder, emit: Emit, every_seconds: float, scratch_tokenizer: Path | None) -> None:
        self._folder = folder
        self._emit = emit
        self._every_seconds = every_seconds
        self._scratch_tokenizer = scratch_tokenizer
        self._saved_at = time.monotonic()
        self._published: list[ArtifactRef] = []

    @property
    def due(self) -> bool:
        return time.monotonic() - self._saved_at >= self._every_seconds

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Publish a checkpoint, say so, and only then delete the ones that are no longer needed."""
        with tempfile.TemporaryDirectory() as temporary:
            write(Path(temporary), model, optimizer, progress)
            if self._scratch_tokenizer is not None:
                copy_tokenizer(self._scratch_tokenizer, Path(temporary) / "tokenizer")
            artifact = self._folder.publish_folder(f"checkpoint-{progress.step}", Path(temporary))
        self._emit(Checkpointed(step=progress.step, artifact=artifact))
        self._saved_at = time.monotonic()
        self._published = [old for old in self._published if old.prefix != artifact.prefix] + [artifact]
        while len(self._published) > KEPT:
            for blob in self._published.pop(0).files:
                self._folder.store.delete(blob.key)


def write(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write the state of a run into `folder`."""
    moments = {
        f"{name}|{key}": value.contiguous()
        for name, parameter in _moving(model).items()
        for key, value in optimizer.state[parameter].items()
    }
    save_file({name: p.detach().contiguous() for name, p in _moving(model).items()}, folder / "weights.safetensors")
    save_file(moments, folder / "optimizer.safetensors")
    save_file(random_states(), folder / "random.safetensors")
    (folder / "progress.json").write_text(json.dumps(asdict(progress), indent=2))


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, planned: Progress) -> Progress:
    """Put the state in `folder` back. Raises `RunFailure` when it belongs to another run than the one `planned`."""
    progress = read_progress(folder)
    moving = _moving(model)
    weights = load_file(folder / "weights.safetensors")
    fits = weights.keys() == moving.keys() and all(weights[name].shape == moving[name].shape for name in weights)
    if not fits or (progress.total_steps, progress.rows) != (planned.total_steps, planned.rows):
        message = "the checkpoint is of a run with other data, model or settings; start a new experiment instead"
        raise RunFailure("invalid_spec", message)
    with torch.no_grad():
        for name, parameter in moving.items():
            parameter.copy_(weights[name])
    for key, value in load_file(folder / "optimizer.safetensors").items():
        name, _, moment = key.rpartition("|")
        parameter = moving[name]
        # The step counter stays where fused AdamW keeps it: beside the weights.
        optimizer.state[parameter][moment] = value.to(parameter.device)
    set_random_states(load_file(folder / "random.safetensors"))
    return progress


def read_progress(folder: Path) -> Progress:
    """Where the run of this checkpoint stood."""
    return Progress(**json.loads((folder / "progress.json").read_text()))


def random_states() -> dict[str, Tensor]:
    """The state of every random generator that dropout may draw from, as bytes."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Tensor]) -> None:
    """Put back what `random_states` gave."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy a learnt tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copy(source / name, folder / name)


def _moving(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
