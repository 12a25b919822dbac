"""The replay window at its edges; the property test beside it covers what lies between."""

import pytest

from jvpn.protocol.constants import GENERATION_SHIFT, REPLAY_WINDOW
from jvpn.protocol.replay import ReplayWindow


def test_each_counter_passes_once_in_any_order() -> None:
    window = ReplayWindow()
    order = [0, 5, 3, 4, 1, 2, 8000, 6]
    assert [window.check_and_set(c) for c in order] == [True] * len(order)
    assert [window.check_and_set(c) for c in order] == [False] * len(order)
    assert window.highest == 8000


def test_the_window_is_exactly_its_size() -> None:
    window = ReplayWindow()
    assert window.check_and_set(REPLAY_WINDOW + 10)
    assert not window.check_and_set(10)
    assert window.check_and_set(11)


def test_the_page_s_highest_is_where_a_new_worker_begins() -> None:
    window = ReplayWindow(seen_below=1000)
    assert window.highest == 999
    assert not window.check_and_set(999)
    assert not window.check_and_set(0)
    assert window.check_and_set(1000)
    assert window.check_and_set(1002)
    assert window.check_and_set(1001)


@pytest.mark.parametrize("jump", [REPLAY_WINDOW - 1, REPLAY_WINDOW, REPLAY_WINDOW + 1, 1 << GENERATION_SHIFT])
def test_a_jump_leaves_nothing_behind(jump: int) -> None:
    window = ReplayWindow()
    assert window.check_and_set_run(0, REPLAY_WINDOW) is None
    top = REPLAY_WINDOW - 1 + jump
    assert window.check_and_set(top)
    for counter in (top - REPLAY_WINDOW + 1, top - 1):
        seen_before = counter < REPLAY_WINDOW
        assert window.check_and_set(counter) is not seen_before
    assert not window.check_and_set(top - REPLAY_WINDOW)


def test_a_run_says_which_are_fresh() -> None:
    window = ReplayWindow(size=8)
    assert window.check_and_set_run(0, 4) is None
    assert window.check_and_set_run(2, 4) == b"\0\0\1\1"
    assert window.highest == 5
    assert window.check_and_set(7)
    assert window.check_and_set_run(4, 4) == b"\0\0\1\0"
    assert window.check_and_set_run(0, 8) == bytes(8)
    assert window.check_and_set_run(20, 2) is None
    assert window.check_and_set_run(13, 3) == b"\0\1\1"


def test_a_gap_can_be_filled_as_a_run() -> None:
    window = ReplayWindow(size=64)
    assert window.check_and_set(40)
    assert window.check_and_set_run(10, 30) is None
    assert window.check_and_set_run(10, 30) == bytes(30)


@pytest.mark.parametrize("seen_below", [0, 700])
@pytest.mark.parametrize("in_order", [1, 100, REPLAY_WINDOW - 1, REPLAY_WINDOW, 3 * REPLAY_WINDOW + 5])
def test_what_came_in_order_is_seen_after_the_first_gap_too(seen_below: int, in_order: int) -> None:
    window = ReplayWindow(seen_below=seen_below)
    for first in range(seen_below, seen_below + in_order, 41):
        count = min(41, seen_below + in_order - first)
        assert window.check_and_set_run(first, count) is None
    gap = range(seen_below + in_order, seen_below + in_order + 10)
    assert window.check_and_set(gap.stop)
    assert not any(window.check_and_set(counter) for counter in range(gap.start))
    assert window.seen_run(0, gap.start) == b"\1" * gap.start
    assert [window.check_and_set(counter) for counter in gap] == [True] * 10
    assert [window.check_and_set(counter) for counter in gap] == [False] * 10


def test_looking_changes_nothing() -> None:
    window = ReplayWindow(size=8)
    window.check_and_set(9)
    assert window.seen_run(0, 12) == b"\1\1" + b"\0" * 7 + b"\1" + b"\0\0"
    assert window.highest == 9
    assert window.check_and_set(2)
    assert window.seen_run(0, 3) == b"\1\1\1"
