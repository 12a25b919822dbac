"""Which indexes a gateway has installed: a window that follows what was authenticated, and what is bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpn.protocol.constants import MAX_INDEX
from jvpn.protocol.indexes import IndexTable, window
from jvpn.protocol.keys import SessionSecrets, steering_id
from jvpn.protocol.suites import suite

SECRETS = SessionSecrets(suite(1), b"s" * 32, b"p" * 32)


@pytest.mark.parametrize(
    ("highest", "candidates", "expected"),
    [
        (0, 3, range(6)),
        (1, 3, range(7)),
        (3, 3, range(9)),
        (4, 3, range(1, 10)),
        (100, 1, range(99, 104)),
        (MAX_INDEX, 3, range(MAX_INDEX - 3, MAX_INDEX + 1)),
    ],
)
def test_window(highest: int, candidates: int, expected: range) -> None:
    assert window(highest, candidates) == expected


def test_a_new_table_has_the_first_window() -> None:
    table = IndexTable(SECRETS, 3)
    assert table.ids == {n: steering_id(SECRETS, n) for n in range(6)}
    assert table.highest_installed == 5


def test_only_a_higher_index_moves_the_window() -> None:
    table = IndexTable(SECRETS, 3)
    assert table.saw(2)
    assert not table.saw(2)
    assert not table.saw(1)
    added, gone = table.update(keep=(0,))
    assert (sorted(added), gone) == ([6, 7], {})
    assert table.update(keep=(0,)) == ({}, {})


def test_bound_indexes_stay_however_far_the_window_has_gone() -> None:
    table = IndexTable(SECRETS, 3)
    table.saw(50)
    added, gone = table.update(keep=(0, 2))
    assert sorted(added) == list(range(47, 56))
    assert sorted(gone) == [1, 3, 4, 5]
    assert set(table.ids) == {0, 2, *range(47, 56)}
    assert table.update(keep=(50,))[1].keys() == {0, 2}


@given(st.integers(1, 8), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=30))
def test_what_is_told_adds_up_to_what_is_there(candidates: int, steps: list[tuple[int, int]]) -> None:
    """Whoever applies every (new, gone) has what the table has: maps and worker never drift from it."""
    table = IndexTable(SECRETS, candidates)
    mirror = dict(table.ids)
    for seen, bound in steps:
        table.saw(seen)
        added, gone = table.update(keep=(bound,))
        assert not added.keys() & mirror.keys()
        assert gone.items() <= mirror.items()
        mirror = {n: sid for n, sid in mirror.items() if n not in gone} | added
        assert mirror == table.ids
        assert {bound, *window(table.highest_seen, candidates)} == table.ids.keys()
        assert all(sid == steering_id(SECRETS, n) for n, sid in mirror.items())
