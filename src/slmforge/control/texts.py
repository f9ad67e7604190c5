"""Texts that a request may carry: whatever one database could not keep is refused for all."""

from typing import Annotated

from pydantic import AfterValidator


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("NUL characters cannot be stored; remove them")
    return text


Text = Annotated[str, AfterValidator(_without_nul)]
