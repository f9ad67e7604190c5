"""Small models, rows and specs that the training plane's tests share; all made on the spot."""

import csv
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from slmforge.blobs import LocalBlobStore
from slmforge.contract.fingerprint import directory_fingerprint
from slmforge.contract.spec import DatasetRef, DirectoryBase, EvalData, Lora, Optimization, ScratchBase, TrainSpec
from slmforge.training import scratch

COLOURS = {"red": ["rose", "blood", "tomato"], "green": ["grass", "leaf", "frog"], "blue": ["sky", "sea", "whale"]}

torch.set_num_threads(1)


def coloured_things(count: int, seed: int) -> list[tuple[str, str]]:
    """Questions that name a thing, and its colour: quickly learnt, and not by heart."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        label = draw.choice(sorted(COLOURS))
        words = draw.sample(["what", "colour", "has", "that", "nice", "old", "big"], 3)
        rows.append((" ".join([*words, draw.choice(COLOURS[label])]), label))
    return rows


def tiny_model(architecture: str, vocabulary: int) -> PreTrainedModel:
    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,  # as if pretrained: with the usual 0.02 an adapter has next to nothing to steer
    }
    torch.manual_seed(0)
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False))
    return Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=16, tie_word_embeddings=True))


@pytest.fixture(params=["llama", "qwen3"])
def model_directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny pretrained-looking model with its own tokenizer, saved by transformers."""
    learnt, folder = tmp_path / "learnt", tmp_path / f"tiny-{request.param}"
    words = [text for row in coloured_things(100, seed=9) for text in row]
    scratch.learn_tokenizer(words, "scratch-1m", learnt)
    tokenizer = AutoTokenizer.from_pretrained(learnt)
    tokenizer.save_pretrained(folder)
    tiny_model(request.param, len(tokenizer)).save_pretrained(folder)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> LocalBlobStore:
    return LocalBlobStore(tmp_path / "store")


@pytest.fixture
def dataset(store: LocalBlobStore) -> Callable[..., DatasetRef]:
    """Store rows as a CSV of `text,label` under a name."""

    def put(name: str, rows: list[tuple[str, str]]) -> DatasetRef:
        text = io.StringIO()
        csv.writer(text).writerows([("text", "label"), *rows])
        blob = store.put(f"datasets/{name}", [text.getvalue().encode()])
        columns = {"text": "text", "label": "label"}
        return DatasetRef(blob=blob, format="csv", layout="classification", columns=columns, split=None)

    return put


@pytest.fixture
def make_spec(dataset: Callable[..., DatasetRef]) -> Callable[..., TrainSpec]:
    """A small full fine-tuning of a scratch model on coloured things; keyword arguments replace parts of it."""

    def make(
        model: Path | None = None, *, method: str = "full", optimization: dict[str, Any] | None = None, **changes: Any
    ) -> TrainSpec:
        settings = {
            "epochs": 4,
            "batch_size": 16,
            "learning_rate": 5e-3,
            "warmup_ratio": 0.1,
            "schedule": "cosine",
            "weight_decay": 0.01,
            "max_grad_norm": 1.0,
        }
        base = ScratchBase(size="scratch-1m", seed=1)
        spec = {
            "name": "colours",
            "base": DirectoryBase(path=str(model), fingerprint=directory_fingerprint(model)) if model else base,
            "data": EvalData(
                train=dataset("train.csv", coloured_things(96, seed=0)),
                eval=dataset("eval.csv", coloured_things(24, seed=1)),
                held_out=None,
            ),
            "task": "classification",
            "method": method,
            "lora": Lora(rank=4, alpha=16, dropout=0.1, targets="all-linear") if method == "lora" else None,
            "optimization": Optimization(**(settings | (optimization or {}))),
            "max_seq_length": 64,
            "micro_batch_tokens": 128,
            "seed": 3,
            "eval_every_steps": 5,
            "checkpoint_every_seconds": 3600,
            "resume_from": None,
        }
        return TrainSpec.model_validate(spec | changes)

    return make
