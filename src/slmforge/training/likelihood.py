"""Likelihoods: how probable a model finds given tokens behind a prompt. Nothing is generated here.

`sequence_nll` scores the supervised tokens of rows, as training's loss does, row by row. `most_likely_labels`
classifies: of all known labels the one with the greatest log p(label, end of turn | prompt), which is summed over the
label's tokens and so comparable between labels of any length. Called by `answers.py`.
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
from slmforge.training.scorers import Floats

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Flags = NDArray[np.bool_]
Advance = Callable[[int], None]  # told how many rows were finished
TRIED_LABELS = 8
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


def most_likely_labels(
    model: "PreTrainedModel", prompts: Sequence[list[int]], labels: Sequence[list[int]], advance: Advance
) -> list[int]:
    """For each prompt the place of the label with the greatest log p(label | prompt); a label's tokens include its end.

    All labels of a row take one pass, as a tree behind the prompt. Whether this model's layers take a tree as they
    should is tried on the longest prompt; where they do not, each label takes a pass of its own.
    """
    if not prompts:
        return []
    if not takes_trees(model, max(prompts, key=len), labels):
        return _places(plain_log_probs(model, prompts, labels, advance))
    trie = LabelTrie.of(labels, model.device)
    if len(trie.tokens_N) < 2 * np.mean([len(prompt) for prompt in prompts]):  # reading prompts twice would cost more
        return _places(tree_log_probs(model, prompts, labels, advance))
    return _search(model, prompts, trie, advance)


def takes_trees(model: "PreTrainedModel", prompt: list[int], labels: Sequence[list[int]]) -> bool:
    """Whether a tree behind `prompt` gives this model's labels, or some of many, the likelihoods they have alone."""
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    if getattr(model, "_is_stateful", False) or not layers <= ATTENTION_LAYERS:
        return False  # a convolution or a recurrent state runs through the branches
    labels = labels[:: max(1, len(labels) // TRIED_LABELS)]
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2  # sums in another order
    tree_1L = tree_log_probs(model, [prompt], labels, _unheard)
    return np.allclose(tree_1L, plain_log_probs(model, [prompt], labels, _unheard), rtol=tolerance, atol=tolerance)


def tree_log_probs(
    model: "PreTrainedModel", prompts: Sequence[list[int]], labels: Sequence[list[int]], advance: Advance
) -> Floats:
    """log p(label | prompt) for R prompts and L labels, shape (R, L), each row in one pass."""
    every_RL = np.ones((len(prompts), len(labels)), dtype=bool)
    return _tree_bounds(model, prompts, LabelTrie.of(labels, model.device), every_RL, advance)


def plain_log_probs(
    model: "PreTrainedModel", prompts: Sequence[list[int]], labels: Sequence[list[int]], advance: Advance
) -> Floats:
    """The same as `tree_log_probs` by one sequence for every prompt and label, for any model."""
    scores_RL = np.zeros((len(prompts), len(labels)))
    for number, prompt in enumerate(prompts):
        mask = [False] * len(prompt)
        rows = [Rendered(prompt + label, mask + [True] * len(label), 0) for label in labels]
        scores_RL[number] = -sequence_nll(model, rows, _unheard)[0]
        advance(1)
    return scores_RL


def _search(model: "PreTrainedModel", prompts: Sequence[list[int]], trie: LabelTrie, advance: Advance) -> list[int]:
    """The most likely labels without looking at those that cannot be.

    A label is at most as likely as its beginning. So the label that begins best is followed to its end, and only those
    whose beginning is no less likely than the whole of it are looked at further: few, when a model has an opinion.
    """
    rows = np.arange(len(prompts))
    none_RL = np.zeros((len(prompts), trie.paths_EL.shape[1]), dtype=bool)
    first_R = _tree_bounds(model, prompts, trie, none_RL, _unheard).argmax(1)
    rivals_RL = none_RL.copy()
    rivals_RL[rows, first_R] = True
    bounds_RL = _tree_bounds(model, prompts, trie, rivals_RL, _unheard)
    rivals_RL |= bounds_RL >= bounds_RL[rows, first_R][:, None]
    open_r = np.flatnonzero(rivals_RL.sum(1) > 1)
    advance(len(prompts) - len(open_r))
    scores_rL = _tree_bounds(model, [prompts[int(row)] for row in open_r], trie, rivals_RL[open_r], advance)
    first_R[open_r] = np.where(rivals_RL[open_r], scores_rL, -np.inf).argmax(1)
    return [int(label) for label in first_R]


def _places(scores_RL: Floats) -> list[int]:
    return [int(label) for label in scores_RL.argmax(1)]


def _unheard(_rows: int) -> None:
    """Progress of a part that is not worth telling."""


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


@torch.inference_mode()
def _tree_bounds(
    model: "PreTrainedModel", prompts: Sequence[list[int]], trie: LabelTrie, wanted_RL: Flags, advance: Advance
) -> Floats:
    """log p of the labels that are wanted of a row; of the others a bound from above, by what is known of them."""
    nodes_RN = trie.nodes_of(torch.from_numpy(wanted_RL))
    counts = nodes_RN.sum(1).tolist()
    lengths = [len(prompt) + count for prompt, count in zip(prompts, counts, strict=True)]
    bounds_RL = np.zeros(wanted_RL.shape)
    logits = [count + 1 for count in counts]
    for batch in plan_batches(lengths, logits, model.config.get_text_config().vocab_size):
        of_batch = _batch_tree(model, [prompts[index] for index in batch], trie, nodes_RN[batch].to(model.device))
        bounds_RL[batch] = of_batch.cpu().numpy()
        advance(len(batch))
    return bounds_RL


def _batch_tree(model: "PreTrainedModel", prompts: Sequence[list[int]], trie: LabelTrie, nodes_BN: Tensor) -> Tensor:
    """The sums over labels' steps out of the prompt's end and out of each row's own `nodes_BN`, shape (B, L)."""
    block = left_pad(prompts, model.device)
    count = int(nodes_BN.sum(1).max())
    # The nodes of each row side by side, and behind those of a row with fewer some that none of them sees.
    fed_Bn = nodes_BN.int().argsort(dim=1, descending=True, stable=True)[:, :count]
    sees_Bnn = trie.sees_NN[fed_Bn[:, :, None], fed_Bn[:, None]] & nodes_BN.gather(1, fed_Bn)[:, None]
    logits_BnV = model(
        input_ids=torch.cat([block.ids_BT, trie.tokens_N[fed_Bn]], 1),
        attention_mask=_additive(_tree_mask(block.real_BT, sees_Bnn), model),
        position_ids=torch.cat([block.positions_BT, block.positions_BT[:, -1:] + trie.depths_N[fed_Bn]], 1),
        logits_to_keep=count + 1,
        use_cache=False,
    ).logits[:, -count - 1 :]
    totals_Bn = logits_BnV.float().logsumexp(2)
    nodes_BN[:, 0] = True
    columns_BE = (nodes_BN.cumsum(1) - 1)[:, trie.step_nodes_E]
    rows_B1 = torch.arange(len(prompts), device=model.device)[:, None]
    steps_BE = logits_BnV[rows_B1, columns_BE, trie.step_tokens_E].float() - totals_Bn[rows_B1, columns_BE]
    known_BE = nodes_BN[:, trie.step_nodes_E]
    sums_BL: Tensor = steps_BE.double().where(known_BE, 0.0) @ trie.paths_EL
    return sums_BL


def _tree_mask(real_BP: Tensor, sees_Bnn: Tensor) -> Tensor:
    """(B, 1, T, T): a prompt's tokens see their past, a node sees the prompt and its ancestors, all see themselves."""
    rows, width = real_BP.shape
    total = width + sees_Bnn.shape[1]
    sees_BTT = torch.ones(total, total, dtype=torch.bool, device=real_BP.device).tril().repeat(rows, 1, 1)
    sees_BTT[:, width:, width:] = sees_Bnn
    sees_BTT[:, :, :width] &= real_BP[:, None]
    sees_BTT |= torch.eye(total, dtype=torch.bool, device=real_BP.device)
    return sees_BTT[:, None]


def _additive(sees: Tensor, model: "PreTrainedModel") -> Tensor:
    """The mask in the one form that every attention implementation adds to its scores."""
    zeros = torch.zeros(sees.shape, dtype=model.dtype, device=sees.device)
    return zeros.masked_fill(~sees, torch.finfo(model.dtype).min)
