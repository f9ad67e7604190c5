"""AdamW and its learning rate: what moves the weights, and how far."""

import math

import torch
from torch import nn

from slmforge.contract.spec import Optimization

BETAS = (0.9, 0.99)


def adamw(model: nn.Module, settings: Optimization) -> torch.optim.AdamW:
    """AdamW over the weights that move. Decay is for matrices: not for norms, biases, embeddings or their tied head."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    moving = [weight for weight in model.parameters() if weight.requires_grad]
    decayed = [weight for weight in moving if weight.ndim >= 2 and id(weight) not in embeddings]
    kept = [weight for weight in moving if weight.ndim < 2 or id(weight) in embeddings]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.learning_rate, betas=BETAS, fused=True)


def total_steps(rows: int, settings: Optimization) -> int:
    """Optimizer steps of the whole run; the last step of an epoch may have fewer rows."""
    return max(1, round(math.ceil(rows / settings.batch_size) * settings.epochs))


def learning_rate(settings: Optimization, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: a linear warm-up, then the schedule."""
    warmup = round(steps * settings.warmup_ratio)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    match settings.schedule:
        case "cosine":
            return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return settings.learning_rate * (1 - done)
        case "constant":
            return settings.learning_rate
