"""The database: an engine that locks rightly on SQLite and PostgreSQL, sessions, and keyset pages."""

import base64
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine, Select, create_engine, event, func, select
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.orm import InstrumentedAttribute, Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from slmforge.control.errors import Invalid

POOL_SIZE = 20


class Database:
    """Sessions for reading and for writing over one pool of connections."""

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self._writes = sessionmaker(self.engine, expire_on_commit=False)
        self._reads = sessionmaker(self.engine.execution_options(begin="DEFERRED"), expire_on_commit=False)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        with self._writes.begin() as session:
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only looks. It takes no lock that would hold up a writer."""
        with self._reads() as session:
            yield session

    def close(self) -> None:
        self.engine.dispose()


class Identified(Protocol):
    """A table with a time-ordered primary key."""

    id: InstrumentedAttribute[uuid.UUID] | Any


RowT = TypeVar("RowT")


@dataclass(frozen=True)
class Page:
    """What a list request asked for; `cursor` is opaque to the caller."""

    limit: int
    cursor: str | None


@dataclass(frozen=True)
class Listed:
    """One page of rows, how many there are in all, and where the next page begins."""

    rows: Sequence[Any]
    total: int
    next_cursor: str | None


def paginate(session: Session, query: Select[Any], key: Any, page: Page) -> Listed:
    """Newest first by `key`, a UUIDv7 column: rows added while somebody pages never shift a page.

    Raises `Invalid` for a cursor that we did not make.
    """
    total = session.scalar(select(func.count()).select_from(query.order_by(None).subquery())) or 0
    if page.cursor is not None:
        query = query.where(key < _decode_cursor(page.cursor))
    rows = session.scalars(query.order_by(key.desc()).limit(page.limit + 1)).all()
    more = len(rows) > page.limit
    rows = rows[: page.limit]
    return Listed(rows, total, _encode_cursor(rows[-1].id) if more else None)


def _encode_cursor(id_: uuid.UUID) -> str:
    return base64.urlsafe_b64encode(id_.bytes).decode().rstrip("=")


def _decode_cursor(cursor: str) -> uuid.UUID:
    try:
        return uuid.UUID(bytes=base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        raise Invalid("The cursor is not one that this service gave; begin again without it.") from None


def _engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(url, pool_size=POOL_SIZE, max_overflow=POOL_SIZE, pool_pre_ping=True)
    engine = create_engine(url, pool_size=POOL_SIZE, max_overflow=POOL_SIZE)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # the driver must not begin transactions behind our back
    cursor = connection.cursor()
    # FULL: what was acknowledged survives a power cut, at the price of one fsync for each commit.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that turns into a writer fails at once, whatever the busy timeout: writers ask first.
    mode = connection.get_execution_options().get("begin", "IMMEDIATE")
    connection.exec_driver_sql(f"BEGIN {mode}")
