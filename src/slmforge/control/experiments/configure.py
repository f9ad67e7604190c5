"""From the settings somebody sent to settings without a gap: every value is theirs or ours, and ours has a reason."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from slmforge.contract.spec import Base, HeldOut, Lora, Optimization, ScratchBase, ScratchSize, Task
from slmforge.control.errors import Invalid
from slmforge.control.texts import Text

TOKENS_PER_BYTE = 0.3  # of English CSV and JSONL under a BPE; only sizes the defaults, never reported
FEWEST_STEPS = 300  # below that a model with random weights has hardly begun


class TrainingConfig(BaseModel):
    """What a request may say about training. What it leaves out is decided by `resolve`."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    method: Literal["full", "lora"] | None = None
    num_epochs: float | None = Field(None, gt=0, le=1000, validation_alias=AliasChoices("num_epochs", "epochs"))
    batch_size: int | None = Field(None, ge=1, le=65536, description="Rows per optimizer step.")
    learning_rate: float | None = Field(None, gt=0, le=10)
    warmup_ratio: float | None = Field(None, ge=0, le=1)
    lr_schedule: Literal["cosine", "linear", "constant"] | None = None
    weight_decay: float | None = Field(None, ge=0, le=10)
    max_grad_norm: float | None = Field(None, gt=0)
    lora_rank: int | None = Field(None, ge=1, le=1024)
    lora_alpha: float | None = Field(None, gt=0)
    lora_dropout: float | None = Field(None, ge=0, lt=1)
    lora_targets: Text | None = Field(None, max_length=1000, description='"all-linear" or module names with commas.')
    max_seq_length: int | None = Field(None, ge=8, le=1 << 20)
    micro_batch_tokens: int | None = Field(None, ge=8, le=1 << 24)
    seed: int | None = Field(None, ge=0, lt=1 << 31)
    eval_every_steps: int | None = Field(None, ge=1)
    checkpoint_every_seconds: float | None = Field(None, ge=1)
    held_out_fraction: float | None = Field(None, gt=0, lt=1)
    held_out_max_rows: int | None = Field(None, ge=1)
    max_new_tokens: int | None = Field(None, ge=1, le=32768, description="Longest answer generated when evaluating.")
    generate_rows: int | None = Field(None, ge=0, description="Held-out rows that are answered by generation.")


@dataclass(frozen=True)
class Resolved:
    """Settings without a gap: `values` by name, and for each that was not sent the reason for it."""

    values: dict[str, Any]
    reasons: dict[str, str]

    def optimization(self) -> Optimization:
        v = self.values
        return Optimization(
            epochs=v["num_epochs"],
            batch_size=v["batch_size"],
            learning_rate=v["learning_rate"],
            warmup_ratio=v["warmup_ratio"],
            schedule=v["lr_schedule"],
            weight_decay=v["weight_decay"],
            max_grad_norm=v["max_grad_norm"],
        )

    def lora(self) -> Lora | None:
        if self.values["method"] != "lora":
            return None
        v = self.values
        return Lora(rank=v["lora_rank"], alpha=v["lora_alpha"], dropout=v["lora_dropout"], targets=v["lora_targets"])

    def held_out(self) -> HeldOut:
        v = self.values
        return HeldOut(fraction=v["held_out_fraction"], max_rows=v["held_out_max_rows"], seed=v["seed"])


def resolve(asked: TrainingConfig, base: Base, task: Task, rows: int, size_bytes: int) -> Resolved:
    """Fill the gaps. `rows` and `size_bytes` are those of the training file.

    Raises `Invalid` for settings of a method that is not the one in force.
    """
    sent = asked.model_dump(exclude_none=True)
    scratch = isinstance(base, ScratchBase)
    values: dict[str, Any] = {}
    reasons: dict[str, str] = {}

    def default(name: str, value: Any, reason: str) -> None:
        values[name] = sent.get(name, value)
        if name not in sent:
            reasons[name] = reason

    default(
        "method",
        "full" if scratch else "lora",
        "random weights have nothing to adapt" if scratch else "adapters reach what full fine-tuning does at this size",
    )
    for name, value, reason in (
        *(_scratch(base, rows, size_bytes) if isinstance(base, ScratchBase) else _pretrained(values["method"], rows)),
        *_common(task),
    ):
        default(name, value, reason)
    held_out = values["held_out_max_rows"]
    steps = math.ceil(max(1, rows - min(held_out, rows * values["held_out_fraction"])) / values["batch_size"])
    total = max(1, math.ceil(steps * values["num_epochs"]))
    default("eval_every_steps", max(1, total // 10), "ten looks at the held-out loss over the whole training")
    if values["method"] != "lora":
        for name in sent:
            if name.startswith("lora_"):
                raise Invalid(f'training_config.{name}: it goes with method "lora"; leave it out, or set the method.')
    else:
        default("lora_rank", 16, "enough for data of this size; more rank costs memory and seldom helps")
        default("lora_alpha", 32.0, "kept fixed while the rank varies, so that the learning rate keeps its meaning")
        default("lora_dropout", 0.0, "a few epochs over small data are regularised enough by the rank")
        default("lora_targets", "all-linear", "adapters on every linear layer learn more than on attention alone")
    return Resolved(values, reasons)


# How each scratch model is trained by default: tokens over all epochs, rows per step, learning rate. Measured on
# BANKING77: more passes no longer help, and at 6e-3 the smallest model falls apart.
_SCRATCH: dict[ScratchSize, tuple[float, int, float]] = {
    "scratch-1m": (1.75e6, 32, 3e-3),
    "scratch-5m": (2.0e6, 64, 2e-3),
    "scratch-25m": (1.0e6, 64, 1e-3),
}


def _scratch(base: ScratchBase, rows: int, size_bytes: int) -> list[tuple[str, Any, str]]:
    budget, most_rows, rate = _SCRATCH[base.size]
    batch_size = min(most_rows, 16 if rows < 500 else 32 if rows < 5000 else 64)
    passes = min(9, max(2, round(budget / (size_bytes * TOKENS_PER_BYTE))))
    passes = max(passes, min(30, math.ceil(FEWEST_STEPS * batch_size / rows)))
    why = f"some {budget / 1e6:.1f} million tokens in 2 to 9 passes, or up to 30 to make {FEWEST_STEPS} steps"
    return [
        ("num_epochs", float(passes), why),
        ("batch_size", batch_size, "random weights learn best from many small steps"),
        ("learning_rate", rate, "random weights of this width take a high rate"),
        ("weight_decay", 0.1, "keeps a model trained from nothing from memorising"),
        ("max_seq_length", 1024, "longer rows are shortened to this many tokens, and counted in cut_rows"),
    ]


def _pretrained(method: str, rows: int) -> list[tuple[str, Any, str]]:
    lora = method == "lora"
    rate = 2e-4 if lora else 2e-5
    return [
        ("num_epochs", 3.0 if rows < 20_000 else 1.0, "three passes for small data, one where there is plenty"),
        ("batch_size", 16 if rows >= 500 else 8, "small batches suit small data, and adapters most of all"),
        (
            "learning_rate",
            rate,
            "ten times that of full fine-tuning" if lora else "small enough to keep what the model knows",
        ),
        (
            "weight_decay",
            0.0 if lora else 0.01,
            "adapters need none" if lora else "a little keeps the weights in bounds",
        ),
        ("max_seq_length", 2048, "longer rows are shortened to this many tokens, and counted in cut_rows"),
    ]


def _common(task: Task) -> list[tuple[str, Any, str]]:
    return [
        ("warmup_ratio", 0.05, "the first steps of Adam are its noisiest"),
        ("lr_schedule", "cosine", "ends at a small rate, which lowers the loss at the end"),
        ("max_grad_norm", 1.0, "one odd row must not undo many good steps"),
        ("micro_batch_tokens", 4096, "fits the memory of a laptop; the result does not depend on it"),
        ("seed", 0, "the same request gives the same model"),
        ("checkpoint_every_seconds", 60.0, "a lost process costs a minute of work at most"),
        ("held_out_fraction", 0.1, "used when no evaluation dataset is named"),
        ("held_out_max_rows", 1000, "a thousand rows give intervals of a few points"),
        ("max_new_tokens", 16 if task == "classification" else 256, "long enough for most answers"),
        ("generate_rows", 200, "generation is slow; likelihoods use every held-out row"),
    ]
