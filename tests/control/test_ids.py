import uuid

import pytest

from slmforge.control import ids
from slmforge.control.errors import NotFound


def test_an_id_is_a_uuid_of_version_7_with_its_time_in_front() -> None:
    id_ = ids.new_id(at_seconds=1_700_000_000.123)
    assert (id_.version, id_.variant) == (7, uuid.RFC_4122)
    assert id_.int >> 80 == 1_700_000_000_123


def test_ids_made_later_sort_later_in_every_form() -> None:
    made = [ids.new_id(at_seconds=1_700_000_000 + n / 1000) for n in range(200)]
    assert sorted(made) == made
    assert sorted(id_.hex for id_ in made) == [id_.hex for id_ in made]


def test_ids_of_the_same_moment_differ() -> None:
    assert len({ids.new_id(at_seconds=1) for _ in range(1000)}) == 1000


def test_a_path_takes_either_form() -> None:
    id_ = ids.new_id()
    for form in (f"ds_{id_.hex}", id_.hex, str(id_), id_):
        assert ids.parse("ds", "dataset", form) == id_


@pytest.mark.parametrize("value", ["", "ds_", "exp_" + "0" * 32, "ds_" + "0" * 31, "ds_zz", "../etc", "\0", 12, None])
def test_what_cannot_be_an_id_names_nothing(value: object) -> None:
    with pytest.raises(NotFound, match="There is no dataset"):
        ids.parse("ds", "dataset", value)


def test_a_very_long_id_is_not_repeated_whole() -> None:
    with pytest.raises(NotFound) as caught:
        ids.parse("ds", "dataset", "x" * 10_000)
    assert len(caught.value.message) < 150
