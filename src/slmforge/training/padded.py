"""Rows of different lengths as one block, padded on the left: every row ends in the last column.

Evaluation alone works like this; training packs (`batches.py`). Used by `likelihood.py` and `generation.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# A pass holds at most so many tokens, and makes at most so many logits (256 MiB in float32).
MAX_TOKENS = 8192
MAX_LOGITS = 2**26


@dataclass(frozen=True, slots=True)
class Block:
    """B rows in T columns. Positions count from 0 at a row's first real token."""

    ids_BT: Tensor
    real_BT: Tensor  # False where there is padding
    positions_BT: Tensor  # 0 in the padding


def left_pad(rows: Sequence[Sequence[int]], device: torch.device) -> Block:
    """Lay `rows` flush right. Padding is token 0, which no mask lets through."""
    longest = max(map(len, rows))
    ids_BT = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    lengths_B1 = torch.tensor([[len(row)] for row in rows], device=device)
    positions_BT = torch.arange(longest, device=device) - (longest - lengths_B1)
    return Block(ids_BT, positions_BT >= 0, positions_BT.clamp(min=0))


def plan_batches(tokens: Sequence[int], logits: Sequence[int], vocabulary: int) -> Iterator[list[int]]:
    """The rows' indices in batches, longest first, each within the limits of one pass; a larger row stands alone.

    Of row i, `tokens[i]` go in and the last `logits[i]` of its columns are predicted from.
    """
    batch: list[int] = []
    widest, most = 0, 0
    for row in sorted(range(len(tokens)), key=lambda index: (-tokens[index], -logits[index])):
        count = len(batch) + 1
        widest, most = max(widest, tokens[row]), max(most, logits[row])
        if batch and (count * widest > MAX_TOKENS or count * most * vocabulary > MAX_LOGITS):
            yield batch
            batch, widest, most = [], tokens[row], logits[row]
        batch.append(row)
    if batch:
        yield batch
