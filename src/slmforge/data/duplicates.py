"""Duplicates: records that say the same but for case, Unicode form and white space.

Exact after that normalisation; near duplicates are not found here. Called by `splits`, so that a repeat never stands on
both sides, and by `profile`.
"""

import unicodedata
from hashlib import blake2b

from slmforge.data.conversations import Conversation

FINGERPRINT_BYTES = 8  # two of a million different texts meet with a chance of 3 in 100 million


def fingerprint(conversation: Conversation) -> bytes:
    """A hash of all that the conversation says and who says it."""
    if conversation.text is not None:
        return _digest("text", conversation.text)
    return _digest(*(part for message in conversation.messages for part in (message.role, message.content)))


def prompt_fingerprint(conversation: Conversation) -> bytes:
    """A hash of all that stands before the last answer; of plain text, the whole."""
    if conversation.text is not None:
        return fingerprint(conversation)
    return _digest(*(part for message in conversation.messages[:-1] for part in (message.role, message.content)))


class Repeats:
    """Tells of each conversation, in the order they come, whether it repeats or contradicts an earlier one.

    Keeps two hashes per conversation.
    """

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._prompts: set[bytes] = set()

    def add(self, conversation: Conversation) -> tuple[bool, bool]:
        """(it repeats an earlier one whole, it gives an earlier one's prompt an answer not given before)."""
        whole, prompt = fingerprint(conversation), prompt_fingerprint(conversation)
        repeats = whole in self._seen
        contradicts = not repeats and conversation.text is None and prompt in self._prompts
        self._seen.add(whole)
        self._prompts.add(prompt)
        return repeats, contradicts


def _digest(*parts: str) -> bytes:
    # A NUL keeps ("ab", "c") and ("a", "bc") apart; normalised text holds it only where the file did.
    return blake2b("\0".join(map(_normalised, parts)).encode(), digest_size=FINGERPRINT_BYTES).digest()


def _normalised(text: str) -> str:
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return " ".join(plain.casefold().split())
