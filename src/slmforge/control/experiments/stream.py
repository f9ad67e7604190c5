"""Events as they happen, as server-sent events (WHATWG HTML, 9.2)."""

import asyncio
import uuid
from collections.abc import AsyncIterator

from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from slmforge.control.database import Database
from slmforge.control.experiments.schemas import event_read
from slmforge.control.runs import service as runs

POLL_SECONDS = 0.5
KEEP_ALIVE_POLLS = 30


class EventStream(StreamingResponse):
    """Everything numbered above `after`, then what comes, until the run has ended and all is told."""

    media_type = "text/event-stream"

    def __init__(self, database: Database, run_id: uuid.UUID, after: int) -> None:
        super().__init__(self._events(database, run_id, after), headers={"Cache-Control": "no-store"})

    @staticmethod
    async def _events(database: Database, run_id: uuid.UUID, after: int) -> AsyncIterator[str]:
        silent = 0
        while True:
            messages, after, ended = await run_in_threadpool(_news, database, run_id, after)
            for message in messages:
                yield message
            if ended and not messages:
                return
            silent = 0 if messages else silent + 1
            if silent % KEEP_ALIVE_POLLS == KEEP_ALIVE_POLLS - 1:
                yield ": still here\n\n"
            if not messages:
                await asyncio.sleep(POLL_SECONDS)


def _news(database: Database, run_id: uuid.UUID, after: int) -> tuple[list[str], int, bool]:
    with database.read() as session:
        ended = runs.has_ended(session, run_id)
        found = [event_read(event) for event in runs.events(session, run_id, after=after, limit=1000)]
    messages = [f"id: {e.number}\nevent: {e.type}\ndata: {e.model_dump_json()}\n\n" for e in found]
    return messages, found[-1].number if found else after, ended
