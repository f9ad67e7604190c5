from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from slmforge.control import migrate
from slmforge.control.database import Database
from slmforge.control.tables import Table


def tables(database: Database) -> set[str]:
    return set(sa.inspect(database.engine).get_table_names())


def test_an_empty_database_gets_every_table_and_keeps_them_on_the_next_start(empty_database: Database) -> None:
    for _ in range(2):
        migrate.upgrade(empty_database)
        assert tables(empty_database) == {*Table.metadata.tables, "alembic_version"}


def test_the_migrations_lead_to_the_schema_that_the_code_has(empty_database: Database) -> None:
    migrate.upgrade(empty_database)
    with empty_database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Table.metadata) == []


def test_checks_of_the_database_itself_are_there(empty_database: Database) -> None:
    """Alembic does not compare these."""
    migrate.upgrade(empty_database)
    inspector = sa.inspect(empty_database.engine)
    for table in Table.metadata.tables.values():
        wanted = {c.name for c in table.constraints if isinstance(c, sa.CheckConstraint)}
        assert {c["name"] for c in inspector.get_check_constraints(table.name)} == wanted


def test_every_migration_can_be_undone_and_done_again(empty_database: Database) -> None:
    migrate.upgrade(empty_database)
    with empty_database.engine.begin() as connection:
        command.downgrade(migrate.config(connection), "base")
    assert tables(empty_database) == {"alembic_version"}
    migrate.upgrade(empty_database)
    assert tables(empty_database) == {*Table.metadata.tables, "alembic_version"}


def test_a_migration_that_breaks_leaves_nothing_half_done(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade = command.upgrade

    def upgrade_then_die(config: object, revision: str) -> None:
        upgrade(config, revision)  # type: ignore[arg-type]  # passed on as it came
        raise OSError("the disk is full")

    monkeypatch.setattr(command, "upgrade", upgrade_then_die)
    with pytest.raises(OSError, match="disk"):
        migrate.upgrade(empty_database)
    assert tables(empty_database) == set()
    monkeypatch.undo()
    migrate.upgrade(empty_database)
    assert "run" in tables(empty_database)


def test_a_database_of_a_newer_version_is_refused_and_left_alone(empty_database: Database) -> None:
    migrate.upgrade(empty_database)
    with empty_database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(RuntimeError, match="newer version of slmforge; upgrade this installation"):
        migrate.upgrade(empty_database)
    with empty_database.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT version_num FROM alembic_version")) == "9999"


def test_four_that_start_together_all_find_the_schema(empty_database: Database) -> None:
    url = empty_database.engine.url.render_as_string(hide_password=False)
    barrier = Barrier(4, timeout=20)

    def start() -> set[str]:
        database = Database(url)
        barrier.wait()
        migrate.upgrade(database)
        found = tables(database)
        database.close()
        return found

    with ThreadPoolExecutor(4) as pool:
        for started in [pool.submit(start) for _ in range(4)]:
            assert started.result() == {*Table.metadata.tables, "alembic_version"}
