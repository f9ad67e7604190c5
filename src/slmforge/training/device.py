"""What depends on the machine: device, precision and threads, each with the reason for it.

The spec leaves these to the machine it meets; the reasons go out in the `started` event.
"""

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from slmforge.contract.events import Choice


def choose_device() -> Choice:
    """The first accelerator that torch can use, else the processor."""
    if torch.cuda.is_available():
        return Choice(value="cuda", reason=f"{torch.cuda.get_device_name()} is there")
    return Choice(value="cpu", reason="torch sees no GPU")


def choose_precision(device: str, *, all_weights_move: bool) -> Choice:
    """`float32`, `bfloat16`, or `bfloat16 arithmetic`: float32 weights that are multiplied in bfloat16."""
    if device == "cpu":
        return Choice(value="float32", reason="most processors multiply bfloat16 no faster, and none more exactly")
    if not torch.cuda.is_bf16_supported():
        return Choice(value="float32", reason="this GPU has no bfloat16, and float16 overflows without loss scaling")
    if all_weights_move:
        reason = "full fine-tuning: steps smaller than a bfloat16 weight can show would be lost"
        return Choice(value="bfloat16 arithmetic", reason=reason)
    return Choice(value="bfloat16", reason="the GPU multiplies it natively, and these weights do not move")


def choose_threads() -> Choice:
    """How many threads torch uses: what the launcher granted through OMP_NUM_THREADS, else every core we may use."""
    granted = os.environ.get("OMP_NUM_THREADS", "")
    if granted.isdecimal() and int(granted) > 0:
        return Choice(value=granted, reason="OMP_NUM_THREADS says so")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Choice(value=str(cores), reason="every core this process may run on")


def weights_dtype(precision: Choice) -> torch.dtype:
    """What the frozen or moving weights are kept in."""
    return torch.bfloat16 if precision.value == "bfloat16" else torch.float32


def arithmetic(precision: Choice, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a forward pass runs."""
    if precision.value == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
