"""Whether documents may be packed for this model, found out by trying it.

Packing is exact when attention alone carries anything from token to token. Rather than keep a list of architectures,
a document is run alone, behind one neighbour and behind another: the logits agree, or rows are taken one at a time.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from slmforge.contract.events import Choice
from slmforge.training.attention import DOCUMENTS, attend
from slmforge.training.batches import Example, pack
from slmforge.training.device import arithmetic
from slmforge.training.loss import label_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NEIGHBOUR_TOKENS, DOCUMENT_TOKENS = 23, 17
# Differences relative to the spread of the logits. Behind two neighbours of one length the arithmetic is the same, so
# what a neighbour says must not show at all; alone, sums may be taken in another order.
NEIGHBOUR_TOLERANCE = 1e-5
ALONE_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "bfloat16 arithmetic": 5e-2}


def choose_attention(model: "PreTrainedModel", choices: dict[str, Choice]) -> Choice:
    """Set the model to packed attention where that is exact: "packed", else "one row at a time". Needs `eval()`."""
    from transformers import AttentionInterface

    one, other, document = _probes(model)
    own = model.config._attn_implementation
    alone_NV = _logits(model, [document], choices, packed=False)
    AttentionInterface.register(DOCUMENTS, attend)
    try:
        model.set_attn_implementation(DOCUMENTS)
        behind_one_NV = _logits(model, [one, document], choices, packed=True)[NEIGHBOUR_TOKENS - 1 :]
        behind_other_NV = _logits(model, [other, document], choices, packed=True)[NEIGHBOUR_TOKENS - 1 :]
    except (NotImplementedError, TypeError, ValueError) as error:
        model.set_attn_implementation(own)
        reason = str(error).partition("\n")[0]
        return Choice(value="one row at a time", reason=f"this model does not take packed documents: {reason}")
    leak = _difference(behind_one_NV, behind_other_NV)
    apart = _difference(behind_one_NV, alone_NV)
    if leak > NEIGHBOUR_TOLERANCE or apart > ALONE_TOLERANCE[choices["precision"].value]:
        model.set_attn_implementation(own)
        reason = f"packed, a document's logits change by {max(leak, apart):.0e} of their spread"
        return Choice(value="one row at a time", reason=reason)
    reason = f"a packed document has the logits that it has alone, within {apart:.0e} of their spread"
    return Choice(value="packed", reason=reason)


def _probes(model: "PreTrainedModel") -> list[Example]:
    generator = np.random.default_rng(0)
    vocabulary = model.config.get_text_config().vocab_size
    sizes = (NEIGHBOUR_TOKENS, NEIGHBOUR_TOKENS, DOCUMENT_TOKENS)
    return [Example(generator.integers(vocabulary, size=size), np.ones(size, dtype=bool)) for size in sizes]


def _difference(one_NV: Tensor, other_NV: Tensor) -> float:
    return ((one_NV - other_NV).abs().max() / one_NV.std()).item()


def _logits(model: nn.Module, documents: list[Example], choices: dict[str, Choice], *, packed: bool) -> Tensor:
    device = torch.device(choices["device"].value)
    with torch.no_grad(), arithmetic(choices["precision"], device):
        return label_logits(model, pack(documents, device), packed=packed).float()
