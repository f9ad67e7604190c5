"""What handlers ask for: a session, the store, a page; each given by its type alone."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Query, Request, Response
from sqlalchemy.orm import Session

from slmforge.blobs import BlobStore
from slmforge.control.database import Database, Listed, Page


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


def _store(request: Request) -> BlobStore:
    store: BlobStore = request.app.state.store
    return store


def _reading(request: Request) -> Iterator[Session]:
    with _database(request).read() as session:
        yield session


def _writing(request: Request) -> Iterator[Session]:
    with _database(request).write() as session:
        yield session


def _page(
    limit: Annotated[int, Query(ge=1, le=200, description="Rows in the answer.")] = 50,
    cursor: Annotated[
        str | None, Query(max_length=100, description="From the `Link` header of the page before.")
    ] = None,
) -> Page:
    return Page(limit=limit, cursor=cursor)


TheDatabase = Annotated[Database, Depends(_database)]
Store = Annotated[BlobStore, Depends(_store)]
Reading = Annotated[Session, Depends(_reading)]
# Function scope: the transaction is committed before the answer goes out. By default it would be after, and a
# commit that fails would have been answered with 201.
Writing = Annotated[Session, Depends(_writing, scope="function")]
PageAsked = Annotated[Page, Depends(_page)]


def add_page_headers(request: Request, response: Response, listed: Listed) -> None:
    """Say how many rows there are in all and where the next page is."""
    response.headers["X-Total-Count"] = str(listed.total)
    if listed.next_cursor is not None:
        following = request.url.include_query_params(cursor=listed.next_cursor)
        response.headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
