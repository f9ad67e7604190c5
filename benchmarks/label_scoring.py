"""Choosing labels: the search through a label tree against one pass for each prompt and label.

Both sides get the same model, prompts and labels and must choose the same ones. The naive side does what a plain
loop over labels does, all labels of a prompt padded into one batch; it is timed on the first few prompts.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slmforge.training.likelihood import most_likely_labels

VOCABULARY = 2048
LABELS = 77
LABEL_TOKENS = (2, 9)
PROMPT_TOKENS = (8, 30)


def main() -> None:
    """Time both sides on an untrained model and on one with opinions, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer prompts")
    quick = parser.parse_args().quick
    draw = random.Random(0)
    labels = [_tokens(draw, LABEL_TOKENS) for _ in range(LABELS)]
    prompts = [_tokens(draw, PROMPT_TOKENS) for _ in range(100 if quick else 1000)]
    few = prompts[: 10 if quick else 100]
    figures = {}
    for name, spread in (("untrained", 0.02), ("opinionated", 0.2)):
        model = _model(spread)
        naive, naive_seconds = _timed(lambda model=model: [_one_by_one(model, prompt, labels) for prompt in few])
        ours, our_seconds = _timed(lambda model=model: most_likely_labels(model, prompts, labels, lambda _: None))
        if ours[: len(few)] != naive:
            sys.exit("the two sides chose different labels")
        figures[name] = (len(prompts) / our_seconds, len(few) / naive_seconds)
        sys.stdout.write(f"{name}: {figures[name][0]:.1f} rows/s, one at a time {figures[name][1]:.1f} rows/s\n")
    ours_rate, other_rate = figures["opinionated"]
    result = {
        "benchmark": "label_scoring",
        "unit": "rows/s",
        "ours": round(ours_rate, 1),
        "other": round(other_rate, 1),
        "ratio": round(ours_rate / other_rate, 2),
        "untrained_ratio": round(figures["untrained"][0] / figures["untrained"][1], 2),
        "labels": LABELS,
        "threads": torch.get_num_threads(),
    }
    sys.stdout.write(json.dumps(result) + "\n")


def _model(spread: float) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            initializer_range=spread,
            tie_word_embeddings=True,
        )
    )


def _tokens(draw: random.Random, length: tuple[int, int]) -> list[int]:
    return [draw.randrange(2, VOCABULARY) for _ in range(draw.randint(*length))] + [1]


@torch.inference_mode()
def _one_by_one(model: LlamaForCausalLM, prompt: list[int], labels: list[list[int]]) -> int:
    longest = max(map(len, labels))
    ids = torch.tensor([prompt + label + [0] * (longest - len(label)) for label in labels])
    logits = model(input_ids=ids, use_cache=False).logits[:, len(prompt) - 1 : -1].log_softmax(2)
    scores = [
        sum(logits[row, place, token].item() for place, token in enumerate(label)) for row, label in enumerate(labels)
    ]
    return max(range(len(labels)), key=scores.__getitem__)


def _timed(work: Callable[[], list[int]]) -> tuple[list[int], float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


if __name__ == "__main__":
    main()
