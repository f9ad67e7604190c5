"""A training run from its spec to its artefact: rows, tokenizer, model, loop, export. Called by `__main__`."""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from slmforge.contract.events import Emit, Finished, Noted, Progressed
from slmforge.contract.run_folder import RunFolder, fetch_artifact
from slmforge.contract.spec import Base, HubBase, ScratchBase, TrainSpec
from slmforge.training import checkpoint, scratch
from slmforge.training.export import export, peak_memory_bytes
from slmforge.training.failures import RunFailure
from slmforge.training.loss import LabelLoss
from slmforge.training.model import add_lora, load_base
from slmforge.training.optimizer import adamw, total_steps
from slmforge.training.packing import choose_attention
from slmforge.training.progress import Progress
from slmforge.training.rows import RenderedRows, Rows, read_rows, render_rows, texts
from slmforge.training.stopping import StopRequest
from slmforge.training.train import Loop


def train(spec: TrainSpec, folder: RunFolder, emit: Emit, stop: StopRequest) -> Finished:
    """Carry out `spec`; the artefact `model` is in the store when this returns. Raises `RunFailure`, `Interrupted`."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="slmforge-") as temporary:
        work = Path(temporary)
        emit(Progressed(stage="reading rows", done=0, total=1, unit="files"))
        rows = read_rows(folder.store, spec.data)
        resumed = fetch_artifact(folder.store, spec.resume_from, work / "resumed") if spec.resume_from else None
        tokenizer = _scratch_tokenizer(spec, rows, resumed, work, emit)

        loaded = load_base(_pinned(spec.base, resumed), tokenizer, use=spec.method)
        spec = spec.model_copy(update={"base": loaded.base})
        attention = choose_attention(loaded.model, loaded.choices)
        emit(Noted(level="info", message=f"attention: {attention.value}; {attention.reason}"))
        model = add_lora(loaded.model, spec.lora, spec.seed) if spec.lora else loaded.model

        render = partial(render_rows, renderer=loaded.renderer, max_length=spec.max_seq_length)
        training = render(rows.train, report=_reporter(emit, "tokenizing", len(rows.train)))
        held_out = render(rows.held_out, report=_reporter(emit, "tokenizing held-out rows", len(rows.held_out)))
        _say_what_was_lost(spec, training, emit)

        loop = Loop(
            model=model,
            optimizer=adamw(model, spec.optimization),
            loss=LabelLoss(model, spec.micro_batch_tokens, loaded.choices | {"attention": attention}),
            rows=training.examples,
            held_out=held_out.examples,
            spec=spec,
            progress=_planned(spec, training),
            emit=emit,
            stop=stop,
            checkpoints=checkpoint.Checkpoints(folder, emit, spec.checkpoint_every_seconds, tokenizer),
        )
        loop.run(resumed)
        emit(Progressed(stage="saving the model", done=0, total=1, unit="files"))
        export(work / "model", model, loaded.folder, spec, loop.progress)
        artifact = folder.publish_folder("model", work / "model")
    summary = _summary(spec, rows, training, model, loop.progress)
    summary |= {"architecture": type(loaded.model).__name__, "wall_seconds": time.monotonic() - began}
    return Finished(summary=summary, artifacts={"model": artifact})


def _scratch_tokenizer(spec: TrainSpec, rows: Rows, resumed: Path | None, work: Path, emit: Emit) -> Path | None:
    """The folder of a scratch model's tokenizer: learnt from the training rows, or as a checkpoint kept it."""
    if not isinstance(spec.base, ScratchBase):
        return None
    if resumed is not None:
        return resumed / "tokenizer"
    emit(Progressed(stage="learning the tokenizer", done=0, total=len(rows.train), unit="rows"))
    scratch.learn_tokenizer(texts(rows.train), spec.base.size, work / "tokenizer")
    return work / "tokenizer"


def _pinned(base: Base, resumed: Path | None) -> Base:
    """A run that goes on does so from the revision it began with, whatever the hub's branch has become."""
    if isinstance(base, HubBase) and resumed is not None:
        return base.model_copy(update={"revision": checkpoint.read_progress(resumed).revision})
    return base


def _planned(spec: TrainSpec, training: RenderedRows) -> Progress:
    rows = len(training.examples)
    revision = spec.base.revision if isinstance(spec.base, HubBase) else None
    return Progress(rows, total_steps(rows, spec.optimization), revision)


def _reporter(emit: Emit, stage: str, total: int) -> Callable[[int], None]:
    return lambda done: emit(Progressed(stage=stage, done=done, total=total, unit="rows"))


def _say_what_was_lost(spec: TrainSpec, training: RenderedRows, emit: Emit) -> None:
    remedy = f"raise max_seq_length above {spec.max_seq_length}, or shorten the rows"
    if not training.examples:
        raise RunFailure("nothing_to_learn", f"no training row has an answer left to learn; {remedy}")
    if training.empty_rows:
        message = f"{training.empty_rows} training rows have no answer left to learn and are passed over; {remedy}"
        emit(Noted(level="warning", message=message))
    if training.cut_rows:
        emit(Noted(level="warning", message=f"{training.cut_rows} training rows were shortened to fit; {remedy}"))


def _summary(
    spec: TrainSpec, rows: Rows, training: RenderedRows, model: nn.Module, progress: Progress
) -> dict[str, Any]:
    weights = list(model.parameters())
    return {
        "base": spec.base.model_dump(mode="json"),
        "steps": progress.step,
        "epochs": spec.optimization.epochs,
        "tokens_seen": progress.tokens,
        "label_tokens": progress.label_tokens,
        "train_rows": len(rows.train),
        "held_out_rows": len(rows.held_out),
        "cut_rows": training.cut_rows,
        "empty_rows": training.empty_rows,
        "held_out_loss": {
            "first": progress.held_out_first,
            "last": progress.held_out_last,
            "best": progress.held_out_best,
        },
        "training_seconds": progress.seconds,
        "tokens_per_second": progress.tokens / progress.seconds if progress.seconds else 0.0,
        "peak_memory_bytes": peak_memory_bytes(),
        "parameters": sum(weight.numel() for weight in weights),
        "trainable_parameters": sum(weight.numel() for weight in weights if weight.requires_grad),
    }
