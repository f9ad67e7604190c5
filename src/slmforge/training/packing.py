"""Whether documents may be packed for this model, found out by trying it.

Packing is exact when attention alone carries anything from token to token. Rather than keep a list of architectures,
two documents are run packed and each alone: the logits agree or the model takes its rows one at a time.
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

PROBE_TOKENS = (23, 17)
# Relative to the logits' own spread; a document that saw its neighbour differs by a multiple of these.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "bfloat16 arithmetic": 5e-2}


def choose_attention(model: "PreTrainedModel", choices: dict[str, Choice]) -> Choice:
    """Set the model to packed attention where that is exact: "packed", else "one row at a time". Needs `eval()`."""
    from transformers import AttentionInterface

    own = model.config._attn_implementation
    alone = [_logits(model, [document], choices, packed=False) for document in _probes(model)]
    AttentionInterface.register(DOCUMENTS, attend)
    try:
        model.set_attn_implementation(DOCUMENTS)
        together = _logits(model, _probes(model), choices, packed=True)
    except (NotImplementedError, TypeError, ValueError) as error:
        model.set_attn_implementation(own)
        reason = str(error).partition("\n")[0]
        return Choice(value="one row at a time", reason=f"this model does not take packed documents: {reason}")
    apart = torch.cat(alone)
    difference = ((together - apart).abs().max() / apart.std()).item()
    if difference > TOLERANCE[choices["precision"].value]:
        model.set_attn_implementation(own)
        reason = f"packed documents change this model's logits by {difference:.2g} of their spread"
        return Choice(value="one row at a time", reason=reason)
    reason = f"two packed documents gave the logits that each gives alone, within {difference:.0e} of their spread"
    return Choice(value="packed", reason=reason)


def _probes(model: "PreTrainedModel") -> list[Example]:
    generator = np.random.default_rng(0)
    vocabulary = model.config.get_text_config().vocab_size
    return [Example(generator.integers(vocabulary, size=size), np.ones(size, dtype=bool)) for size in PROBE_TOKENS]


def _logits(model: nn.Module, documents: list[Example], choices: dict[str, Choice], *, packed: bool) -> Tensor:
    device = torch.device(choices["device"].value)
    with torch.no_grad(), arithmetic(choices["precision"], device):
        return label_logits(model, pack(documents, device), packed=packed).float()
