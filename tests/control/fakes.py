"""Hand-written stand-ins for what is slow or far away: processes, and the trainer in them."""

import uuid

from slmforge.blobs import BlobRef, BlobStore
from slmforge.contract.events import Checkpointed, KnownEvent, Started
from slmforge.contract.run_folder import EventWriter, RunFolder
from slmforge.contract.spec import (
    ArtifactRef,
    DatasetRef,
    EvalData,
    HeldOut,
    Optimization,
    ProfileSpec,
    ScratchBase,
    TrainSpec,
)
from slmforge.control.launchers.protocol import Alive, Exited, Resources

STARTED = Started(host="fake", pid=1, device="cpu", choices={}, versions={})


class FakeLauncher:
    """Processes that are only names. Tests make them end; nothing else does, unless they obey `stop`."""

    def __init__(self, *, obeys_stop: bool = False) -> None:
        self.launched: list[str] = []  # every process ever started, in order
        self.commands: dict[str, list[str]] = {}
        self.stopped: list[tuple[str, bool]] = []
        self.alive: set[str] = set()
        self.obeys_stop = obeys_stop
        self.output = ""
        self.refuses: OSError | None = None
        self._kept: dict[str, int | None] = {}

    def launch(self, name: str, command: list[str], needs: Resources) -> str:
        if self.refuses:
            raise self.refuses
        if name not in self.alive:
            self.launched.append(name)
            self.commands[name] = command
            self.alive.add(name)
            self._kept[name] = None
        return name

    def poll(self, handle: str) -> Alive | Exited:
        return Alive() if handle in self.alive else Exited(self._kept.get(handle))

    def stop(self, handle: str, *, force: bool) -> None:
        self.stopped.append((handle, force))
        if force or self.obeys_stop:
            self.end(handle, -9 if force else 0)

    def handles(self) -> list[str]:
        return sorted(self._kept)

    def output_tail(self, handle: str) -> str:
        return self.output

    def forget(self, handle: str) -> None:
        assert handle not in self.alive, "a process that is there must not be forgotten"
        self._kept.pop(handle, None)

    def end(self, handle: str, code: int | None = -9) -> None:
        """Let the process be gone."""
        self.alive.discard(handle)
        self._kept[handle] = code


def trainer(store: BlobStore, run_id: uuid.UUID, attempt: int = 1) -> EventWriter:
    """Says things as the process of this attempt would: `say = trainer(store, run.id); say(Finished(…))`."""
    return EventWriter(RunFolder(store, run_id.hex, attempt))


def play(store: BlobStore, run_id: uuid.UUID, *events: KnownEvent, attempt: int = 1) -> EventWriter:
    """Claim the attempt with a `started` and say `events`."""
    say = trainer(store, run_id, attempt)
    say(STARTED)
    for event in events:
        say(event)
    return say


def checkpoint(step: int) -> Checkpointed:
    """A checkpoint whose artefact names its step."""
    return Checkpointed(step=step, artifact=artifact(f"checkpoint-{step}"))


def artifact(name: str) -> ArtifactRef:
    return ArtifactRef(prefix=f"artifacts/{name}", files=())


def dataset_ref(key: str = "datasets/a/data") -> DatasetRef:
    blob = BlobRef(key=key, sha256="0" * 64, size_bytes=0)
    return DatasetRef(blob=blob, format="jsonl", layout="text", columns={"text": "text"}, split=None)


def profile_spec() -> ProfileSpec:
    return ProfileSpec(dataset=dataset_ref())


def train_spec(name: str = "try") -> TrainSpec:
    return TrainSpec(
        name=name,
        base=ScratchBase(size="scratch-1m", seed=1),
        data=EvalData(train=dataset_ref(), eval=None, held_out=HeldOut(fraction=0.1, max_rows=10, seed=1)),
        task="language_modeling",
        method="full",
        lora=None,
        optimization=Optimization(
            epochs=1,
            batch_size=4,
            learning_rate=0.001,
            warmup_ratio=0.1,
            schedule="cosine",
            weight_decay=0,
            max_grad_norm=1,
        ),
        max_seq_length=64,
        micro_batch_tokens=256,
        seed=1,
        eval_every_steps=10,
        checkpoint_every_seconds=60,
        resume_from=None,
    )
