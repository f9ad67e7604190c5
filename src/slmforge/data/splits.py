"""Splits: which rows of a training set are held out to be scored on.

The choice depends on the seed and on what the rows say, not on their order, and a prompt that occurs twice stands on
one side only. Called by training and by evaluation, which must agree.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from hashlib import blake2b

from slmforge.contract.spec import HeldOut
from slmforge.data.conversations import Conversation
from slmforge.data.duplicates import prompt_fingerprint


def hold_out(conversations: Sequence[Conversation], held_out: HeldOut) -> tuple[list[Conversation], list[Conversation]]:
    """(rows to train on, rows held out), both in the order given.

    About `fraction` of the rows, at most `max_rows`, at least one; every label keeps a row to be learnt from. Raises
    `ValueError` when the rows cannot be parted so.
    """
    groups: defaultdict[bytes, list[int]] = defaultdict(list)
    for index, conversation in enumerate(conversations):
        groups[prompt_fingerprint(conversation)].append(index)
    chosen = _choose(conversations, groups, held_out)
    kept = [row for index, row in enumerate(conversations) if index not in chosen]
    return kept, [conversations[index] for index in sorted(chosen)]


def _choose(conversations: Sequence[Conversation], groups: dict[bytes, list[int]], held_out: HeldOut) -> set[int]:
    wanted = min(held_out.max_rows, max(1, round(held_out.fraction * len(conversations))))
    order = sorted(groups, key=lambda prompt: _draw(held_out.seed, prompt))
    left = Counter(conversation.label for conversation in conversations)
    chosen: set[int] = set()

    def take(prompt: bytes, limit: int) -> None:
        taken = Counter(conversations[index].label for index in groups[prompt])
        if len(chosen) + taken.total() <= limit and all(left[label] > count for label, count in taken.items()):
            chosen.update(groups[prompt])
            left.subtract(taken)

    for prompt in order:
        take(prompt, wanted)
    for prompt in sorted(order, key=lambda prompt: len(groups[prompt])):
        if not chosen:  # every prompt has more rows than were wanted: one of the least is still better than none
            take(prompt, held_out.max_rows)
    if not chosen:
        raise ValueError(
            f"no row can be held out of {len(conversations)} with {len(groups)} different prompts: repeats of a prompt "
            "stay together, and every label keeps a row to learn from; add rows, or name an evaluation dataset"
        )
    return chosen


def _draw(seed: int, prompt: bytes) -> bytes:
    return blake2b(b"%d:%b" % (seed, prompt), digest_size=16).digest()
