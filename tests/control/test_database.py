import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from slmforge.control.database import Database, Page, paginate
from slmforge.control.errors import Invalid
from slmforge.control.ids import new_id
from slmforge.control.tables import Run, RunEvent, Worker


def test_a_block_that_ends_is_committed_and_one_that_raises_is_not(database: Database) -> None:
    now = datetime.now(UTC)
    with database.write() as session:
        session.add(Worker(id="kept", node="n", seen_at=now))

    def break_off() -> None:
        with database.write() as session:
            session.add(Worker(id="lost", node="n", seen_at=now))
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    with database.read() as session:
        assert session.scalars(sa.select(Worker.id)).all() == ["kept"]


def test_writers_that_read_first_do_not_overwrite_each_other(database: Database) -> None:
    threads, rounds = 4, 15
    with database.write() as session:
        run = Run(kind="profile", spec={})
        session.add(run)
    barrier = threading.Barrier(threads, timeout=20)

    def count() -> None:
        barrier.wait()
        for _ in range(rounds):
            with database.write() as session:
                session.scalars(sa.select(Run).where(Run.id == run.id).with_for_update()).one().version += 1

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(count) for _ in range(threads)]:
            done.result()
    with database.read() as session:
        assert session.get_one(Run, run.id).version == threads * rounds


def test_a_reader_neither_waits_for_a_writer_nor_sees_what_is_not_committed(database: Database) -> None:
    with database.write() as writer:
        writer.add(Worker(id="w", node="n", seen_at=datetime.now(UTC)))
        writer.flush()
        with database.read() as reader:
            assert reader.scalars(sa.select(Worker.id)).all() == []


@pytest.mark.parametrize("hours", [0, -8, 5.5])
def test_a_time_of_any_zone_comes_back_as_the_same_moment_in_utc(database: Database, hours: float) -> None:
    at = datetime(2026, 3, 29, 2, 30, 0, 123456, timezone(timedelta(hours=hours)))
    with database.write() as session:
        session.add(Worker(id="w", node="n", seen_at=at))
    with database.read() as session:
        seen = session.get_one(Worker, "w").seen_at
        assert seen == at
        assert seen.tzinfo == UTC
        assert session.scalar(sa.select(Worker.id).where(Worker.seen_at < at + timedelta(microseconds=1))) == "w"
        assert session.scalar(sa.select(Worker.id).where(Worker.seen_at < at)) is None


def test_a_row_that_refers_to_nothing_is_refused(database: Database) -> None:
    event = RunEvent(run_id=new_id(), number=1, attempt=1, seq=1, at=datetime.now(UTC), type="x", payload={})
    with pytest.raises(IntegrityError), database.write() as session:
        session.add(event)


def test_an_event_cannot_be_kept_twice(database: Database) -> None:
    with database.write() as session:
        run = Run(kind="profile", spec={})
        session.add(run)
    for number in (1, 2):
        event = RunEvent(run_id=run.id, number=number, attempt=1, seq=7, at=run.created_at, type="x", payload={})
        if number == 1:
            with database.write() as session:
                session.add(event)
        else:
            with pytest.raises(IntegrityError), database.write() as session:
                session.add(event)


def test_a_status_that_is_none_is_refused_by_the_database(database: Database) -> None:
    with pytest.raises(IntegrityError), database.write() as session:
        session.add(Run(kind="profile", spec={}, status="lost"))


def insert_runs(database: Database, count: int, *, at_seconds: float = 1000) -> list[uuid.UUID]:
    ids = [new_id(at_seconds + n) for n in range(count)]
    with database.write() as session:
        session.add_all(Run(id=id_, kind="profile", spec={}) for id_ in ids)
    return ids


def test_pages_are_newest_first_and_rows_added_meanwhile_shift_none(database: Database) -> None:
    ids = insert_runs(database, 5)
    seen: list[uuid.UUID] = []
    cursor = None
    for total in (5, 6, 7):
        with database.read() as session:
            page = paginate(session, sa.select(Run), Run.id, Page(limit=2, cursor=cursor))
        assert page.total == total
        seen += [run.id for run in page.rows]
        cursor = page.next_cursor
        insert_runs(database, 1, at_seconds=2000 + total)
    assert seen == ids[::-1]
    assert cursor is None


def test_a_last_page_that_is_full_has_no_next(sqlite: Database) -> None:
    insert_runs(sqlite, 4)
    with sqlite.read() as session:
        first = paginate(session, sa.select(Run), Run.id, Page(limit=2, cursor=None))
        last = paginate(session, sa.select(Run), Run.id, Page(limit=2, cursor=first.next_cursor))
    assert first.next_cursor is not None
    assert (len(last.rows), last.next_cursor) == (2, None)


@pytest.mark.parametrize("cursor", ["", "x", "!!!!", "AAAA", "ä", "A" * 99, "\0"])
def test_a_cursor_that_is_not_ours_is_refused(sqlite: Database, cursor: str) -> None:
    with sqlite.read() as session, pytest.raises(Invalid, match="begin again without it"):
        paginate(session, sa.select(Run), Run.id, Page(limit=2, cursor=cursor))
