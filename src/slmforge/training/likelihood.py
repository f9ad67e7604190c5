"""Likelihoods: how probable a model finds given tokens behind a prompt. Nothing is generated here.

`sequence_nll` scores the supervised tokens of rows, as training's loss does, row by row. `label_log_probs` gives the
probability of every known label of a classification: log p(label, end of turn | prompt), summed over its tokens and
so comparable between labels of any length. Called by `evaluate.py`.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slmforge.data.render import Rendered
from slmforge.training.label_trie import LabelTrie
from slmforge.training.padded import left_pad, plan_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Floats = NDArray[np.float64]
Advance = Callable[[int], None]  # told how many rows were finished
ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


def sequence_nll(model: "PreTrainedModel", rows: Sequence[Rendered], advance: Advance) -> tuple[Floats, Floats]:
    """For each row, the summed negative log-likelihood of its supervised tokens in nats, and their number.

    The first token of a row is never predicted and does not count.
    """
    nll_R, count_R = np.zeros(len(rows)), np.zeros(len(rows))
    predicted = [_predicted_columns(row) for row in rows]
    for batch in plan_batches([len(row.ids) for row in rows], predicted, model.config.get_text_config().vocab_size):
        if kept := max(predicted[index] for index in batch):
            nll_B, count_B = _batch_nll(model, [rows[index] for index in batch], kept)
            nll_R[batch], count_R[batch] = nll_B.cpu().numpy(), count_B.cpu().numpy()
        advance(len(batch))
    return nll_R, count_R


def label_log_probs(
    model: "PreTrainedModel", prompts: Sequence[list[int]], labels: Sequence[list[int]], advance: Advance
) -> Floats:
    """log p(label | prompt) for R prompts and L labels, shape (R, L); a label's tokens include its end.

    All labels of a row take one pass, as a tree behind the prompt. Whether this model's layers take a tree as they
    should is tried on the longest prompt; where they do not, each label takes a pass of its own.
    """
    longest = max(prompts, key=len)
    if attends_only(model):
        tree_1L = tree_log_probs(model, [longest], labels, _unheard)
        plain_1L = plain_log_probs(model, [longest], labels, _unheard)
        if np.allclose(tree_1L, plain_1L, rtol=_tolerance(model), atol=_tolerance(model)):
            return tree_log_probs(model, prompts, labels, advance)
    return plain_log_probs(model, prompts, labels, advance)


@torch.inference_mode()
def tree_log_probs(
    model: "PreTrainedModel", prompts: Sequence[list[int]], labels: Sequence[list[int]], advance: Advance
) -> Floats:
    """`label_log_probs` by one pass a row, for models whose tokens meet in attention alone and without a window."""
    trie = LabelTrie.of(labels, model.device)
    nodes = len(trie.tokens_N)
    scores_RL = np.zeros((len(prompts), len(labels)))
    lengths = [len(prompt) + nodes - 1 for prompt in prompts]
    for batch in plan_batches(lengths, [nodes] * len(prompts), model.config.get_text_config().vocab_size):
        scores_RL[batch] = _batch_tree(model, [prompts[index] for index in batch], trie).cpu().numpy()
        advance(len(batch))
    return scores_RL


def plain_log_probs(
    model: "PreTrainedModel", prompts: Sequence[list[int]], labels: Sequence[list[int]], advance: Advance
) -> Floats:
    """`label_log_probs` by one sequence for every prompt and label, for any model."""
    scores_RL = np.zeros((len(prompts), len(labels)))
    for number, prompt in enumerate(prompts):
        mask = [False] * len(prompt)
        rows = [Rendered(prompt + label, mask + [True] * len(label), 0) for label in labels]
        scores_RL[number] = -sequence_nll(model, rows, _unheard)[0]
        advance(1)
    return scores_RL


def attends_only(model: "PreTrainedModel") -> bool:
    """Whether the tokens of this model meet in attention alone: no convolution, no recurrent state."""
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    return layers <= ATTENTION_LAYERS and not getattr(model, "_is_stateful", False)


def _unheard(_rows: int) -> None:
    """Progress of a part that is not worth telling."""


def _tolerance(model: "PreTrainedModel") -> float:
    """How far the same sum may lie apart when it is added up in another order."""
    return 1e-3 if model.dtype == torch.float32 else 5e-2


def _predicted_columns(row: Rendered) -> int:
    """How many columns, counted from the last but one backwards, hold all that predict a supervised token."""
    first = next((place for place, supervised in enumerate(row.supervised) if supervised and place), len(row.ids))
    return len(row.ids) - first


@torch.inference_mode()
def _batch_nll(model: "PreTrainedModel", rows: Sequence[Rendered], kept: int) -> tuple[Tensor, Tensor]:
    block = left_pad([row.ids for row in rows], model.device)
    counted = left_pad([[False, *row.supervised[1:]] for row in rows], model.device).ids_BT[:, -kept:]
    logits_BKV = model(
        input_ids=block.ids_BT,
        attention_mask=block.real_BT.long(),
        position_ids=block.positions_BT,
        logits_to_keep=kept + 1,
        use_cache=False,
    ).logits[:, -kept - 1 : -1]
    targets_BK1 = block.ids_BT[:, -kept:, None]
    chosen_BK = logits_BKV.gather(2, targets_BK1)[..., 0].float() - logits_BKV.float().logsumexp(2)
    return -(chosen_BK.double() * counted).sum(1), counted.sum(1)


def _batch_tree(model: "PreTrainedModel", prompts: Sequence[list[int]], trie: LabelTrie) -> Tensor:
    block = left_pad(prompts, model.device)
    rows = len(prompts)
    nodes = len(trie.tokens_N)
    last_B1 = block.positions_BT[:, -1:]
    logits_BNV = model(
        input_ids=torch.cat([block.ids_BT, trie.tokens_N[1:].expand(rows, -1)], 1),
        attention_mask=_additive(_tree_mask(block.real_BT, trie), model.dtype),
        position_ids=torch.cat([block.positions_BT, last_B1 + trie.depths_N[1:]], 1),
        logits_to_keep=nodes,
        use_cache=False,
    ).logits[:, -nodes:]
    totals_BN = logits_BNV.float().logsumexp(2)
    steps_BE = logits_BNV[:, trie.step_nodes_E, trie.step_tokens_E].float() - totals_BN[:, trie.step_nodes_E]
    scores_BL: Tensor = steps_BE.double() @ trie.paths_EL
    return scores_BL


def _tree_mask(real_BP: Tensor, trie: LabelTrie) -> Tensor:
    """(B, 1, T, T): a prompt's tokens see their past, a node sees the prompt and its ancestors, all see themselves."""
    rows, width = real_BP.shape
    total = width + len(trie.tokens_N) - 1
    sees_TT = torch.ones(total, total, dtype=torch.bool, device=real_BP.device).tril()
    sees_TT[width:, width:] = trie.sees_NN[1:, 1:]
    sees_BTT = sees_TT.expand(rows, -1, -1).clone()
    sees_BTT[:, :, :width] &= real_BP[:, None]
    return (sees_BTT | torch.eye(total, dtype=torch.bool, device=real_BP.device))[:, None]


def _additive(sees_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask in the one form that every attention implementation adds to its scores."""
    return torch.zeros(sees_BT.shape, dtype=dtype, device=sees_BT.device).masked_fill(~sees_BT, torch.finfo(dtype).min)
