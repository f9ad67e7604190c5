"""From rendered rows to micro-batches: which rows belong to a step, and how they are packed.

Nothing here knows the model or the optimizer. The order of rows is a pure function of (seed, epoch), so a resumed run
meets the rows that an uninterrupted one would have met.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slmforge.training.attention import Documents


@dataclass(frozen=True, slots=True)
class Example:
    """A rendered row: its token ids, and for each whether it is a label."""

    ids: NDArray[np.int64]
    supervised: NDArray[np.bool_]

    @property
    def labels(self) -> int:
        """How many of its tokens are predicted; the first never is."""
        return int(self.supervised[1:].sum())


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Documents packed into one stream of T tokens, N of whose next tokens are labels."""

    ids_1T: Tensor
    positions_1T: Tensor  # restart at 0 with each document
    predicting_N: Tensor  # where in the stream a label is the next token
    labels_N: Tensor  # those labels
    documents: Documents


@lru_cache(maxsize=1)
def epoch_order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of `rows` rows in `epoch`: a permutation that depends on nothing but the arguments."""
    return np.random.default_rng((seed, epoch)).permutation(rows)


def step_rows(rows: int, batch_size: int, seed: int, step: int) -> list[int]:
    """The rows of optimizer step `step`, counted from 0. The last step of an epoch may have fewer."""
    epoch, place = divmod(step, math.ceil(rows / batch_size))
    order = epoch_order(rows, seed, epoch)[place * batch_size : (place + 1) * batch_size]
    return [int(row) for row in order]


def micro_batches(
    examples: Iterable[Example], max_tokens: int, device: torch.device, *, packed: bool = True
) -> Iterator[MicroBatch]:
    """Cut rows into micro-batches of at most `max_tokens`, longest first; a longer row stands alone.

    With `packed` off every row stands alone, for models whose layers carry something from token to token
    besides attention.
    """
    stream: list[Example] = []
    tokens = 0
    for example in sorted(examples, key=lambda one: len(one.ids), reverse=True):
        if stream and (not packed or tokens + len(example.ids) > max_tokens):
            yield pack(stream, device)
            stream, tokens = [], 0
        stream.append(example)
        tokens += len(example.ids)
    if stream:
        yield pack(stream, device)


def pack(examples: list[Example], device: torch.device) -> MicroBatch:
    """Lay documents, longest first, one after the other. No label crosses from one into the next."""
    lengths = [len(example.ids) for example in examples]
    ids_T = np.concatenate([example.ids for example in examples])
    supervised_T = np.concatenate([example.supervised for example in examples])
    starts = np.cumsum([0, *lengths[:-1]])
    supervised_T[starts] = False
    targets_N = supervised_T.nonzero()[0]
    return MicroBatch(
        ids_1T=torch.from_numpy(ids_T)[None].to(device),
        positions_1T=torch.from_numpy(np.arange(len(ids_T)) - np.repeat(starts, lengths))[None].to(device),
        predicting_N=torch.from_numpy(targets_N - 1).to(device),
        labels_N=torch.from_numpy(ids_T[targets_N]).to(device),
        documents=Documents.of_lengths(lengths, device),
    )
