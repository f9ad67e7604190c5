"""Our training loop against a plain `trl` `SFTTrainer`: same weights, rows, labels, steps, batch size and seed.

    pip install trl
    python benchmarks/trl_loop.py [FILE] [--quick]

Each contender runs in a process of its own, on the same rendered rows; the held-out loss of both is measured by the
same code. `trl` is run as it comes, and without its gradient checkpointing; the ratio is to the faster of the two.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel

from slmforge.blobs import BlobRef, LocalBlobStore
from slmforge.contract.events import Choice, KnownEvent
from slmforge.contract.run_folder import RunFolder, read_file
from slmforge.contract.spec import DatasetRef, EvalData, Optimization, ScratchBase, TrainSpec
from slmforge.data.conversations import Conversation
from slmforge.data.reading import read_dataset, scan
from slmforge.data.render import Renderer
from slmforge.training import scratch
from slmforge.training.batches import Example
from slmforge.training.checkpoint import Checkpoints
from slmforge.training.loss import LabelLoss
from slmforge.training.model import choose_for_this_machine
from slmforge.training.optimizer import adamw, total_steps
from slmforge.training.packing import choose_attention
from slmforge.training.progress import Progress
from slmforge.training.rows import render_rows, texts
from slmforge.training.stopping import StopRequest
from slmforge.training.train import Loop

ROOT = Path(__file__).parents[1]
CONTENDERS = ("ours", "trl", "trl without checkpointing")
BATCH_SIZE, LEARNING_RATE, MAX_LENGTH, SEED = 16, 1e-3, 512, 0


def main() -> None:
    """Run the contenders one after the other and print what they did, last as one line of JSON."""
    arguments = parse_arguments()
    if arguments.contender:
        sys.stdout.write(json.dumps(compete(arguments)) + "\n")
        return
    results = {}
    for contender in CONTENDERS:
        command = [
            sys.executable,
            __file__,
            str(arguments.file),
            "--contender",
            contender,
            "--steps",
            str(arguments.steps),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        result = results[contender] = json.loads(done.stdout.splitlines()[-1])
        speeds = f"{result['tokens_per_second']:8.0f} tokens/s {result['tokens_per_cpu_second']:8.0f} per CPU-s"
        rest = f"held-out loss {result['held_out_loss']:.4f}  peak {result['peak_memory_mb']:.0f} MB"
        sys.stdout.write(f"{contender:28}{speeds}  {rest}\n")
    ours, *others = results.values()
    other = max(others, key=lambda result: result["tokens_per_cpu_second"])
    # CPU seconds, because a neighbour on the machine slows only the clock on the wall.
    ratio = ours["tokens_per_cpu_second"] / other["tokens_per_cpu_second"]
    summary = {
        "benchmark": "trl_loop",
        "ours": ours,
        "other": other,
        "ratio": round(ratio, 2),
        "steps": arguments.steps,
    }
    sys.stdout.write(json.dumps(summary | {"all": results}) + "\n")


def parse_arguments() -> argparse.Namespace:
    """The command line; `--contender` is for the processes that this one starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=ROOT / "examples/support_tickets/train.csv")
    parser.add_argument("--quick", action="store_true", help="10 steps instead of 60")
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.steps = arguments.steps or (10 if arguments.quick else 60)
    return arguments


def compete(arguments: argparse.Namespace) -> dict[str, float]:
    """Train one contender and measure it. Importing and preparing are not counted; `startup.py` is about those."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = read_conversations(arguments.file, folder)
        held_out, rows = rows[:200], rows[200 : 200 + arguments.steps * BATCH_SIZE]
        scratch.learn_tokenizer(texts(rows), "scratch-5m", folder / "tokenizer")
        model = scratch.build("scratch-5m", SEED, folder / "tokenizer")
        render = partial(render_rows, renderer=Renderer.from_directory(folder / "tokenizer"), max_length=MAX_LENGTH)
        examples, unseen = render(rows, report=no_report).examples, render(held_out, report=no_report).examples
        train = train_ours if arguments.contender == "ours" else train_theirs
        wall, cpu = time.perf_counter(), time.process_time()
        train(model, examples, folder, checkpointing=arguments.contender == "trl")
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        tokens = sum(len(example.ids) for example in examples)
        return {
            "tokens_per_second": tokens / wall,
            "tokens_per_cpu_second": tokens / cpu,
            "held_out_loss": held_out_loss(model, unseen),
            "peak_memory_mb": peak,
        }


def read_conversations(file: Path, folder: Path) -> list[Conversation]:
    """The usable rows of `file`, in an order that no contender chose."""
    with file.open("rb") as opened:
        scanned = scan(opened, purpose="training")
    store = LocalBlobStore(folder / "store")
    ref = DatasetRef(
        blob=store.put("data", read_file(file)),
        format=scanned.format,
        layout=scanned.layout,
        columns=scanned.columns,
        split=scanned.split,
    )
    rows = [item for item in read_dataset(store, ref) if isinstance(item, Conversation)]
    return [rows[place] for place in np.random.default_rng(SEED).permutation(len(rows))]


def train_ours(model: PreTrainedModel, examples: list[Example], folder: Path, *, checkpointing: bool) -> None:
    """One epoch of `training/train.py`'s loop, with nothing held out and no checkpoint."""
    assert not checkpointing
    spec = our_spec()
    choices = choose_for_this_machine("full")
    choices |= {"attention": choose_attention(model, choices)}
    events: list[KnownEvent] = []
    Loop(
        model=model,
        optimizer=adamw(model, spec.optimization),
        loss=LabelLoss(model, spec.micro_batch_tokens, choices),
        rows=examples,
        held_out=[],
        spec=spec,
        progress=Progress(len(examples), total_steps(len(examples), spec.optimization)),
        emit=events.append,
        stop=StopRequest(),
        checkpoints=Checkpoints(
            RunFolder(LocalBlobStore(folder / "run"), "benchmark", 1), events.append, math.inf, None
        ),
    ).run()


def our_spec() -> TrainSpec:
    """What `TrainingArguments` below say, in our words; the data in it is not read."""
    blob = BlobRef(key="data", sha256="", size_bytes=0)
    rows = DatasetRef(blob=blob, format="csv", layout="text", columns={}, split=None)
    return TrainSpec(
        name="benchmark",
        base=ScratchBase(size="scratch-5m", seed=SEED),
        data=EvalData(train=rows, eval=rows, held_out=None),
        task="generation",
        method="full",
        lora=None,
        optimization=Optimization(
            epochs=1,
            batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
            warmup_ratio=0,  # the two begin a warm-up one step apart
            schedule="cosine",
            weight_decay=0.01,
            max_grad_norm=1.0,
        ),
        max_seq_length=MAX_LENGTH,
        micro_batch_tokens=8192,
        seed=SEED,
        eval_every_steps=1_000_000,
        checkpoint_every_seconds=1_000_000,
        resume_from=None,
    )


def train_theirs(model: PreTrainedModel, examples: list[Example], folder: Path, *, checkpointing: bool) -> None:
    """One epoch of `SFTTrainer` on the same ids and labels."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    labels = [np.where(example.supervised, example.ids, -100).tolist() for example in examples]
    columns = {"input_ids": [example.ids.tolist() for example in examples], "labels": labels}
    settings = SFTConfig(
        output_dir=str(folder / "trl"),
        num_train_epochs=1,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        weight_decay=0.01,
        adam_beta2=0.99,
        max_length=MAX_LENGTH,
        gradient_checkpointing=checkpointing,
        bf16=False,
        dataloader_pin_memory=False,
        seed=SEED,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_dict(columns),
        processing_class=AutoTokenizer.from_pretrained(folder / "tokenizer"),
    ).train()


def held_out_loss(model: PreTrainedModel, examples: list[Example]) -> float:
    """The mean loss per label of rows that nobody trained on, one row at a time and with the library's attention."""
    model.set_attn_implementation("sdpa")
    model.eval()
    choices = choose_for_this_machine("full") | {"attention": Choice(value="one row at a time", reason="benchmark")}
    with torch.no_grad():
        total = sum(loss.item() for loss in LabelLoss(model, MAX_LENGTH, choices).of(examples))
    return total / sum(example.labels for example in examples)


def no_report(_done: int) -> None:
    """Nobody watches."""


if __name__ == "__main__":
    main()
