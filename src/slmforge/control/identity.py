"""Who is calling. With `auth = none` it is always the one local user, and only this machine may ask.

A page in that user's browser could ask as well, under a name that resolves to loopback: hence the check of the
names by which a caller may address us, and of where an unsafe request comes from.
"""

import ipaddress
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request

from slmforge.control.errors import Invalid
from slmforge.control.settings import Settings

LOCAL_USER = "local"


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only be this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def expected_host(request: Request) -> None:
    """Refuse a request that addresses us by a foreign name or, if it changes anything, comes from a foreign page.

    Raises `Invalid`.
    """
    settings: Settings = request.app.state.settings
    if settings.allow_public_bind:
        return
    ours = urlsplit(settings.public_url).hostname
    named = [urlsplit(f"//{request.headers.get('host', '')}").hostname or ""]
    if request.method not in {"GET", "HEAD", "OPTIONS"} and "origin" in request.headers:
        named.append(urlsplit(request.headers["origin"]).hostname or "")
    for name in named:
        if name != ours and not is_loopback(name):
            raise Invalid(f"This server answers on this machine only, not as {name[:80]!r}; set SLMFORGE_PUBLIC_URL.")


def _caller() -> str:
    return LOCAL_USER


Caller = Annotated[str, Depends(_caller)]
