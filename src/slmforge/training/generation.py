"""Greedy answers in batches: prompts of like length together, rows that have ended leave the batch.

The most probable token each time and nothing drawn, so the same weights give the same answers. Called by `evaluate.py`.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from slmforge.training.padded import left_pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Keys and values of one batch take at most so much memory.
MAX_CACHE_BYTES = 2**30
# Leaving costs a copy of what the others have cached, so rows leave together.
LEAVE_SHARE = 0.125


@torch.inference_mode()
def generate(
    model: "PreTrainedModel",
    prompts: Sequence[list[int]],
    *,
    end_ids: Collection[int],
    max_new_tokens: int,
    advance: Callable[[int], None],
) -> list[list[int]]:
    """For each prompt the tokens up to the first of `end_ids`, which is left out, or `max_new_tokens` of them."""
    answers: list[list[int]] = [[] for _ in prompts]
    for batch in _batches(model, [len(prompt) + max_new_tokens for prompt in prompts]):
        for index, tokens in zip(
            batch, _answer(model, [prompts[i] for i in batch], end_ids, max_new_tokens), strict=True
        ):
            answers[index] = tokens
        advance(len(batch))
    return answers


def _batches(model: "PreTrainedModel", tokens: Sequence[int]) -> Iterator[list[int]]:
    budget = MAX_CACHE_BYTES // _cache_bytes_per_token(model)
    order = sorted(range(len(tokens)), key=lambda index: -tokens[index])
    while order:
        count = max(1, budget // tokens[order[0]])
        yield order[:count]
        order = order[count:]


def _cache_bytes_per_token(model: "PreTrainedModel") -> int:
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * head_size * model.dtype.itemsize)


def _answer(
    model: "PreTrainedModel", prompts: Sequence[list[int]], end_ids: Collection[int], max_new_tokens: int
) -> list[list[int]]:
    from transformers import DynamicCache

    block = left_pad(prompts, model.device)
    ends = torch.tensor(sorted(end_ids), device=model.device)
    cache = DynamicCache(config=model.config)
    answers_BN = torch.full((len(prompts), max_new_tokens), int(ends[0]), device=model.device)
    rows_b = torch.arange(len(prompts), device=model.device)  # those still in the batch
    going_b = torch.ones_like(rows_b, dtype=torch.bool)  # those of them that have not ended
    ids, positions, real = block.ids_BT, block.positions_BT, block.real_BT.long()
    for place in range(max_new_tokens):
        logits_bV = model(
            input_ids=ids,
            attention_mask=real,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        next_b = logits_bV.argmax(1)
        answers_BN[rows_b, place] = next_b
        going_b &= ~torch.isin(next_b, ends)
        left = int(going_b.sum())
        if left == 0:
            break
        positions = positions[:, -1:] + 1
        if left <= (1 - LEAVE_SHARE) * len(going_b):
            staying = going_b.nonzero()[:, 0]
            cache.reorder_cache(staying)  # type: ignore[arg-type]  # a tensor of indices is one of dtype long
            rows_b, next_b, positions, real = rows_b[staying], next_b[staying], positions[staying], real[staying]
            going_b = going_b[staying]
        ids = next_b[:, None]
        real = torch.cat([real, torch.ones_like(ids)], 1)
    return [_until(row, end_ids) for row in answers_BN.tolist()]


def _until(tokens: list[int], end_ids: Collection[int]) -> list[int]:
    ended = next((place for place, token in enumerate(tokens) if token in end_ids), len(tokens))
    return tokens[:ended]
