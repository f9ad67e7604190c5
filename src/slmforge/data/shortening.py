"""Making a prompt fit: whole exchanges go before parts of a question, so that the template stays intact.

Called by `render.py` alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

from slmforge.data.conversations import Message


def shorten(
    turns: Sequence[Message],
    max_tokens: int,
    tokens: Callable[[Sequence[Message]], list[int]],
    spans: Callable[[str], list[tuple[int, int]]],
) -> tuple[Message, ...]:
    """The turns such that `tokens(turns)` holds at most `max_tokens`, if leaving out content can achieve it.

    The oldest exchanges go first, then the middle of the longest message: instructions stand at a prompt's beginning
    or at its end. The system turn is cut when nothing else is left. `spans(text)` gives each token's characters.
    """
    kept = tuple(turns)
    while (excess := len(tokens(kept)) - max_tokens) > 0 and (rest := _without_oldest_exchange(kept)):
        kept = rest
    for slack in count():
        longest = max(range(len(kept)), key=lambda number: _cut_order(kept[number]), default=None)
        if excess <= 0 or longest is None or not kept[longest].content:
            return kept
        shorter = replace(kept[longest], content=_without_middle(kept[longest].content, excess + slack, spans))
        kept = (*kept[:longest], shorter, *kept[longest + 1 :])
        excess = len(tokens(kept)) - max_tokens
    raise AssertionError("unreachable: the slack grows until every message is empty")


def _without_oldest_exchange(turns: Sequence[Message]) -> tuple[Message, ...]:
    """The turns without the first exchange, or nothing when it is the only one."""
    users = [number for number, turn in enumerate(turns) if turn.role == "user"]
    if len(users) < 2:
        return ()
    opening = tuple(turn for turn in turns[: users[0]] if turn.role == "system")
    return (*opening, *turns[users[1] :])


def _cut_order(turn: Message) -> tuple[bool, int]:
    return turn.role != "system" and turn.content != "", len(turn.content)


def _without_middle(text: str, excess_tokens: int, spans: Callable[[str], list[tuple[int, int]]]) -> str:
    tokens = spans(text)
    keep = max(0, len(tokens) - excess_tokens)
    head, tail = (keep + 1) // 2, keep // 2
    return text[: tokens[head - 1][1] if head else 0] + (text[tokens[-tail][0] :] if tail else "")
