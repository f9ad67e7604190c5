"""From the start of the process to the first optimizer step: ours against `trl`'s `SFTTrainer`.

    pip install trl
    python benchmarks/startup.py [FILE] [--quick]

Both read the same CSV of `text` and a label, the same saved model and tokenizer, and take one step of 16 rows.
CPU seconds are those of the whole process, which ends after that step.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from slmforge.blobs import LocalBlobStore
from slmforge.contract.events import Measured
from slmforge.contract.fingerprint import directory_fingerprint
from slmforge.contract.run_folder import RunFolder, read_file
from slmforge.contract.spec import DatasetRef, DirectoryBase, EvalData, HeldOut, Optimization, TrainSpec
from slmforge.data.reading import scan

ROOT = Path(__file__).parents[1]
THEIRS = """
import json, sys, time
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

model, rows, text, label, output = sys.argv[1:]

class FirstStep(TrainerCallback):
    def on_step_end(self, *_, **__):
        print("first step at", time.time(), flush=True)

def conversation(row):
    return {
        "prompt": [{"role": "user", "content": row[text]}],
        "completion": [{"role": "assistant", "content": row[label]}],
    }

dataset = load_dataset("csv", data_files=rows, split="train")
dataset = dataset.map(conversation, remove_columns=dataset.column_names)
settings = SFTConfig(
    output_dir=output, max_steps=1, per_device_train_batch_size=16, max_length=512, bf16=False, report_to="none",
    save_strategy="no",
)
SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(model), args=settings, train_dataset=dataset,
    processing_class=AutoTokenizer.from_pretrained(model), callbacks=[FirstStep()],
).train()
"""


def main() -> None:
    """Take the median of several starts of each and print them, last as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=ROOT / "examples/support_tickets/train.csv")
    parser.add_argument("--quick", action="store_true", help="one start of each instead of five")
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        model = save_model(arguments.file, Path(temporary) / "model")
        for name, start in (("ours", start_ours), ("other", start_theirs)):
            starts = range(1 if arguments.quick else 5)
            seconds = [start(arguments.file, model, Path(temporary) / f"{name}-{number}") for number in starts]
            wall, cpu = (statistics.median(column) for column in zip(*seconds, strict=True))
            results[name] = {"seconds_to_first_step": round(wall, 2), "cpu_seconds": round(cpu, 2)}
            sys.stdout.write(f"{name:6} first step after {wall:6.2f} s, {cpu:6.2f} CPU-s in all\n")
    ratio = results["other"]["cpu_seconds"] / results["ours"]["cpu_seconds"]
    sys.stdout.write(json.dumps({"benchmark": "startup", **results, "ratio": round(ratio, 2)}) + "\n")


def save_model(file: Path, folder: Path) -> Path:
    """A small model and its tokenizer, as `save_pretrained` leaves them."""
    from slmforge.training import scratch

    scratch.learn_tokenizer([file.read_text(encoding="utf-8")], "scratch-5m", folder)
    scratch.build("scratch-5m", 0, folder).save_pretrained(folder)
    return folder


def start_ours(file: Path, model: Path, folder: Path) -> tuple[float, float]:
    """Seconds from start to first step, and CPU seconds of the process."""
    store = LocalBlobStore(folder)
    run = RunFolder(store, "run", 1)
    run.write_spec(one_step(store, file, model))
    began, cpu = timed([sys.executable, "-m", "slmforge.training", run.url])
    records = [record for _, segment in run.segments_after(0) for record in segment]
    first = next(r for r in records if isinstance(r.event, Measured) and "loss" in r.event.values)
    return first.at.timestamp() - began, cpu


def start_theirs(file: Path, model: Path, folder: Path) -> tuple[float, float]:
    """The same of the script above."""
    folder.mkdir()
    script, log = folder / "theirs.py", folder / "log"
    script.write_text(THEIRS)
    with file.open(newline="", encoding="utf-8") as opened:
        text, label = next(csv.reader(opened))[:2]
    began, cpu = timed([sys.executable, str(script), str(model), str(file), text, label, str(folder)], log)
    line = next(line for line in log.read_text().splitlines() if line.startswith("first step at"))
    return float(line.rsplit(" ", 1)[1]) - began, cpu


def timed(command: list[str], log: Path | None = None) -> tuple[float, float]:
    """When the command began, and its CPU seconds. Raises `CalledProcessError` when it fails."""
    began = time.time()
    with log.open("w") if log else Path(os.devnull).open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return began, usage.ru_utime + usage.ru_stime


def one_step(store: LocalBlobStore, file: Path, model: Path) -> TrainSpec:
    """One optimizer step of 16 rows on the saved model."""
    with file.open("rb") as opened:
        scanned = scan(opened, purpose="training")
    rows = DatasetRef(
        blob=store.put("data", read_file(file)),
        format=scanned.format,
        layout=scanned.layout,
        columns=scanned.columns,
        split=scanned.split,
    )
    return TrainSpec(
        name="startup",
        base=DirectoryBase(path=str(model), fingerprint=directory_fingerprint(model)),
        data=EvalData(train=rows, eval=None, held_out=HeldOut(fraction=0.001, max_rows=1, seed=0)),
        task="classification",
        method="full",
        lora=None,
        optimization=Optimization(
            epochs=16 / scanned.row_count,
            batch_size=16,
            learning_rate=1e-3,
            warmup_ratio=0,
            schedule="linear",
            weight_decay=0,
            max_grad_norm=1,
        ),
        max_seq_length=512,
        micro_batch_tokens=8192,
        seed=0,
        eval_every_steps=1_000_000,
        checkpoint_every_seconds=1_000_000,
        resume_from=None,
    )


if __name__ == "__main__":
    main()
