"""Specs: everything a run needs to know, resolved, frozen, and free of secrets.

The control plane writes one as `spec.json` into a run folder; `python -m slmforge.training FOLDER` carries it out.
Nothing is left to the trainer's taste: no "auto", no default. What depends on the device is chosen there, with a
reason, and reported in the `started` event.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from slmforge.blobs import BlobRef

Format = Literal["csv", "json", "jsonl"]
Layout = Literal[
    "messages",  # {"messages": [{"role", "content"}]}
    "sharegpt",  # {"conversations": [{"from", "value"}]}
    "alpaca",  # {"instruction", "input", "output"}
    "prompt_completion",  # {"prompt", "completion"}
    "question_answer",  # {"question", "answer"}
    "classification",  # {"text", "label"}
    "text",  # {"text"}
]
Task = Literal["classification", "generation", "language_modeling"]
ScratchSize = Literal["scratch-1m", "scratch-5m", "scratch-25m"]


class Frozen(BaseModel):
    """Base of everything the planes exchange: immutable, and a field we do not know is refused."""

    # JSON has no NaN and no infinity: one that slipped in would make its file unreadable for ever.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DatasetRef(Frozen):
    """An uploaded file and how its rows are read. `columns` maps our field names to the file's own."""

    blob: BlobRef
    format: Format
    layout: Layout
    columns: dict[str, str]
    split: str | None


class ArtifactRef(Frozen):
    """A folder of files made by a run: each blob's key is `prefix/` and the file's path in the folder."""

    prefix: str
    files: tuple[BlobRef, ...]


class HeldOut(Frozen):
    """Rows kept out of training when no evaluation dataset is named; repeats of a row stay on one side."""

    fraction: float = Field(gt=0, lt=1)
    max_rows: int = Field(gt=0)
    seed: int


class EvalData(Frozen):
    """The held-out rows: those of another dataset, or a part of the training dataset."""

    train: DatasetRef
    eval: DatasetRef | None
    held_out: HeldOut | None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.eval is None) == (self.held_out is None):
            raise ValueError("name an evaluation dataset or a held-out part, not both and not neither")
        return self


class ScratchBase(Frozen):
    """A Llama-shaped model of random weights with a byte-level BPE learnt from the training rows."""

    source: Literal["scratch"] = "scratch"
    size: ScratchSize
    seed: int


class DirectoryBase(Frozen):
    """A model saved with `save_pretrained`. `fingerprint` is the sha256 over its config and weight files' digests."""

    source: Literal["directory"] = "directory"
    path: str
    fingerprint: str


class HubBase(Frozen):
    """A model on the Hugging Face hub, pinned. `revision` is a commit hash when the hub could be asked."""

    source: Literal["hub"] = "hub"
    repo_id: str
    revision: str


Base = Annotated[ScratchBase | DirectoryBase | HubBase, Field(discriminator="source")]


class Lora(Frozen):
    """Low-rank adapters on `targets` ("all-linear", or module names joined by commas)."""

    rank: int = Field(ge=1, le=1024)
    alpha: float = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)
    targets: str


class Optimization(Frozen):
    """How the weights move. `batch_size` counts rows per optimizer step, over all micro-batches."""

    epochs: float = Field(gt=0)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup_ratio: float = Field(ge=0, le=1)
    schedule: Literal["cosine", "linear", "constant"]
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)


class TrainSpec(Frozen):
    """Train `base` on `data.train` without its held-out rows; export what was learnt."""

    kind: Literal["train"] = "train"
    schema_version: Literal[1] = 1
    name: str
    base: Base
    data: EvalData
    task: Task
    method: Literal["full", "lora"]
    lora: Lora | None
    optimization: Optimization
    max_seq_length: int = Field(ge=8)
    micro_batch_tokens: int = Field(ge=8)
    seed: int
    eval_every_steps: int = Field(ge=1)
    checkpoint_every_seconds: float = Field(gt=0)
    resume_from: ArtifactRef | None

    @model_validator(mode="after")
    def _lora_with_its_method(self) -> Self:
        if (self.method == "lora") != (self.lora is not None):
            raise ValueError("the lora settings go with the lora method, and only with it")
        return self


class EvalSpec(Frozen):
    """Score `base` and `tuned` on the same held-out rows.

    `generate_rows` bounds how many rows are answered by generation (a seeded sample); likelihoods use every row.
    """

    kind: Literal["evaluate"] = "evaluate"
    schema_version: Literal[1] = 1
    base: Base
    tuned: ArtifactRef
    data: EvalData
    task: Task
    max_seq_length: int = Field(ge=8)
    max_new_tokens: int = Field(ge=1)
    generate_rows: int = Field(ge=0)
    bootstrap_samples: int = Field(ge=100)
    sample_rows: int = Field(ge=0)
    seed: int


class ProfileSpec(Frozen):
    """Read every row of a dataset once and say what is in it."""

    kind: Literal["profile"] = "profile"
    schema_version: Literal[1] = 1
    dataset: DatasetRef


RunSpec = Annotated[TrainSpec | EvalSpec | ProfileSpec, Field(discriminator="kind")]
RUN_SPEC: TypeAdapter[RunSpec] = TypeAdapter(RunSpec)
