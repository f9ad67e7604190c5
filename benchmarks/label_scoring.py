"""Choosing labels: the search through a label tree against one pass for each prompt and label.

Both sides get the same model, prompts and labels and must choose the same ones. The naive side does what a plain loop
over labels does: all labels of a prompt padded into one batch. It is timed, in CPU seconds, on the first few prompts.
There are two models, as in an evaluation: an untrained base, and one that has learnt which label follows which prompt.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from slmforge.training.likelihood import most_likely_labels

VOCABULARY = 2048
LABELS = 77
LABEL_TOKENS = (2, 9)
PROMPT_TOKENS = (8, 30)
END = 1

Tokens = list[int]


def main() -> None:
    """Time both sides on both models and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer prompts")
    count, few = (200, 20) if parser.parse_args().quick else (2000, 100)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    draw = np.random.default_rng(0)
    labels = [[*_tokens(draw, LABEL_TOKENS), END] for _ in range(LABELS)]
    prompts = [_tokens(draw, PROMPT_TOKENS) for _ in range(count)]
    model = _model()
    _one_by_one(model, prompts[0], labels)  # first calls are slow
    untrained = _rates(model, prompts, labels, few)
    _learn(model, prompts, labels)
    tuned = _rates(model, prompts, labels, few)
    result = {
        "benchmark": "label_scoring",
        "unit": "rows per CPU-second",
        "ours": round(tuned[0], 1),
        "other": round(tuned[1], 1),
        "ratio": round(tuned[0] / tuned[1], 2),
        "untrained": {"ours": round(untrained[0], 1), "other": round(untrained[1], 1)},
        "untrained_ratio": round(untrained[0] / untrained[1], 2),
        "labels": LABELS,
        "threads": torch.get_num_threads(),
    }
    sys.stdout.write(json.dumps(result) + "\n")


def _rates(model: LlamaForCausalLM, prompts: list[Tokens], labels: list[Tokens], few: int) -> tuple[float, float]:
    naive, naive_seconds = _timed(lambda: [_one_by_one(model, prompt, labels) for prompt in prompts[:few]])
    ours, our_seconds = _timed(partial(most_likely_labels, model, prompts, labels, lambda _: None))
    if ours[:few] != naive:
        sys.exit("the two sides chose different labels")
    return len(prompts) / our_seconds, few / naive_seconds


def _model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            tie_word_embeddings=True,
        )
    )


def _learn(model: LlamaForCausalLM, prompts: list[Tokens], labels: list[Tokens], steps: int = 150) -> None:
    """Teach the model that a prompt's last token, counted round, decides its label."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        batch = [prompts[(step * 32 + row) % len(prompts)] for row in range(32)]
        rows = [prompt + labels[prompt[-1] % LABELS] for prompt in batch]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        answered = torch.arange(longest) >= torch.tensor([[len(prompt)] for prompt in batch])
        targets = ids.masked_fill(~answered | (ids == 0), -100)[:, 1:]
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        torch.autograd.backward(cross_entropy(logits.transpose(1, 2), targets))
        optimizer.step()
        optimizer.zero_grad()


def _tokens(draw: np.random.Generator, length: tuple[int, int]) -> Tokens:
    return [int(token) for token in draw.integers(2, VOCABULARY, draw.integers(*length))]


@torch.inference_mode()
def _one_by_one(model: LlamaForCausalLM, prompt: Tokens, labels: list[Tokens]) -> int:
    longest = max(map(len, labels))
    ids = torch.tensor([prompt + label + [0] * (longest - len(label)) for label in labels])
    logs = model(input_ids=ids, use_cache=False).logits[:, len(prompt) - 1 : -1].log_softmax(2)
    answers = ids[:, len(prompt) :]
    scores = logs.gather(2, answers[..., None])[..., 0].masked_fill(answers == 0, 0.0).sum(1)
    return int(scores.argmax())


def _timed(work: Callable[[], list[int]]) -> tuple[list[int], float]:
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


if __name__ == "__main__":
    main()
