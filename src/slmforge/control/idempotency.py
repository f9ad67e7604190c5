"""Idempotency keys: the same POST sent twice does its work once.

The answer is stored in the transaction that did the work, so there is no moment at which one exists without the other.
"""

import hashlib
from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Header
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from slmforge.control.errors import Conflict
from slmforge.control.tables import IdempotencyKey

AnswerT = TypeVar("AnswerT", bound=BaseModel)

Key = Annotated[
    str | None,
    Header(alias="Idempotency-Key", min_length=1, max_length=255, description="Repeat it, and the work is done once."),
]


def once(
    session: Session, owner: str, key: str | None, request: str, answer_type: type[AnswerT], work: Callable[[], AnswerT]
) -> AnswerT:
    """Do `work` unless `key` was used before; then give the answer that was given then.

    `request` is anything that tells this request from another. Raises `Conflict` for the same key with another one.
    """
    if key is None:
        return work()
    digest = hashlib.sha256(request.encode()).hexdigest()
    row = IdempotencyKey(owner_id=owner, key=key, request_sha256=digest, answer={})
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:
        # A twin of this request holds the key; the database made us wait until it had committed.
        return _earlier_answer(session, owner, key, digest, answer_type)
    answer = work()
    row.answer = answer.model_dump(mode="json")
    return answer


def _earlier_answer(session: Session, owner: str, key: str, digest: str, answer_type: type[AnswerT]) -> AnswerT:
    earlier = session.get_one(IdempotencyKey, (owner, key), populate_existing=True)
    if earlier.request_sha256 != digest:
        raise Conflict("This Idempotency-Key was used for a different request; send a new key with a new request.")
    return answer_type.model_validate(earlier.answer)
