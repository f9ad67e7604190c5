"""Refuses a request body that is too long, before it is read where its length is declared, else while it is read.

FastAPI's own limit answers in plain text; here every error is a problem document.
"""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """Middleware: no more than `max_bytes` of a body reach the application."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what is received; the 413 is raised where the body is read, and rendered like any other error."""
        declared = int(dict(scope.get("headers", [])).get(b"content-length") or 0)
        received = 0

        async def counting() -> Message:
            nonlocal received
            if declared > self._max_bytes:
                raise HTTPException(413)
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(413)
            return message

        await self._app(scope, counting, send)
