"""The loss of rows under a model: summed over their labels, micro-batch by micro-batch.

Logits are made only where a label is; called by the training loop, which decides what to divide by.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from slmforge.contract.events import Choice
from slmforge.training.batches import Example, MicroBatch, micro_batches
from slmforge.training.device import arithmetic


@dataclass(frozen=True)
class LabelLoss:
    """How rows become losses on this machine."""

    model: nn.Module
    micro_batch_tokens: int
    choices: dict[str, Choice]

    def of(self, rows: Sequence[Example]) -> Iterator[Tensor]:
        """Yield the summed cross-entropy of each micro-batch of `rows`, as a float32 scalar on the device."""
        device = torch.device(self.choices["device"].value)
        packed = self.choices["attention"].value == "packed"
        for batch in micro_batches(rows, self.micro_batch_tokens, device, packed=packed):
            with arithmetic(self.choices["precision"], device):
                logits_NV = label_logits(self.model, batch, packed=packed)
            yield functional.cross_entropy(logits_NV.float(), batch.labels_N, reduction="sum")


def label_logits(model: nn.Module, batch: MicroBatch, *, packed: bool) -> Tensor:
    """The (N, V) logits at the positions that predict a label, and nowhere else."""
    how = {"documents": batch.documents} if packed else {}
    output = model(
        input_ids=batch.ids_1T,
        position_ids=batch.positions_1T,
        logits_to_keep=batch.predicting_N,
        use_cache=False,
        **how,
    )
    logits_1NV: Tensor = output.logits
    return logits_1NV[0]
