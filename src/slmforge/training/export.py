"""The artefact of a training run: weights as safetensors, the tokenizer, and a model card that says how it was made."""

import json
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slmforge.contract.spec import Base, DirectoryBase, HubBase, TrainSpec
from slmforge.training.lineage import installed_versions
from slmforge.training.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
)


def export(folder: Path, model: "PreTrainedModel", tokenizer: Path, spec: TrainSpec, progress: Progress) -> None:
    """Write what was learnt into `folder`, loadable with transformers (full) or peft (lora) alone."""
    folder.mkdir(parents=True, exist_ok=True)
    if spec.method == "full":
        # Packed attention lives in this package; whoever loads the model takes the library's own.
        model.set_attn_implementation("sdpa")
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, folder / name)
    (folder / "README.md").write_text(model_card(spec, progress), encoding="utf-8")


def model_card(spec: TrainSpec, progress: Progress) -> str:
    """The README.md of the artefact: front matter that the hub reads, and the facts of the run."""
    base = name_of(spec.base)
    front: dict[str, Any] = {
        "base_model": base,
        "library_name": "peft" if spec.method == "lora" else "transformers",
        "license": "other",
        "license_name": "unknown",
        "pipeline_tag": "text-generation",
        "tags": ["slmforge", spec.task, spec.method],
    }
    if not isinstance(spec.base, HubBase):
        del front["base_model"]  # the hub reads it as one of its own ids
    header = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    data = {"training": spec.data.train, "held out": spec.data.eval}
    files = [f"| {use} file | sha256 `{ref.blob.sha256}` |" for use, ref in data.items() if ref is not None]
    if spec.data.held_out is not None:
        part = spec.data.held_out
        files.append(f"| held out | {part.fraction:g} of the training file, seed {part.seed} |")
    settings = spec.optimization.model_dump() | {"max_seq_length": spec.max_seq_length, "seed": spec.seed}
    if spec.lora is not None:
        settings |= {f"lora_{key}": value for key, value in spec.lora.model_dump().items()}
    return CARD.format(
        header=header,
        name=spec.name,
        how="LoRA" if spec.method == "lora" else "full fine-tuning",
        base=base if not isinstance(spec.base, HubBase) else f"{base}` at `{spec.base.revision}",
        files="\n".join(files),
        sequences=progress.rows,
        steps=progress.step,
        tokens=progress.tokens,
        before=_loss(progress.held_out_first),
        after=_loss(progress.held_out_last),
        settings="\n".join(f"| {key} | {value} |" for key, value in settings.items()),
        versions=", ".join(f"{name} {number}" for name, number in installed_versions().items()),
        loading=LOAD_ADAPTER.format(base=base) if spec.method == "lora" else LOAD_MODEL,
    )


def name_of(base: Base) -> str:
    """The base as a person would name it."""
    match base:
        case HubBase():
            return base.repo_id
        case DirectoryBase():
            return Path(base.path).name
        case _:
            return base.size


def peak_memory_bytes() -> int:
    """The most this run has held: on the GPU where there is one, else by the whole process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _loss(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


CARD = """\
---
{header}
---

# {name}

{how} of `{base}` with SLM Forge. The licence is that of the base model and of the
data, which this tool cannot know.

| | |
| --- | --- |
{files}
| sequences trained on | {sequences} |
| optimizer steps | {steps} |
| tokens seen | {tokens} |
| held-out loss per label, before | {before} |
| held-out loss per label, after | {after} |

## Use

```python
{loading}
```

## Settings

| setting | value |
| --- | --- |
{settings}

Made with {versions}.
"""

LOAD_MODEL = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("this-folder")
model = AutoModelForCausalLM.from_pretrained("this-folder")"""

LOAD_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("this-folder")
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "this-folder")"""
