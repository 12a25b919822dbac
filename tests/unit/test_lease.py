"""A lease as its node knows it: it never believes to hold what the store may have given to another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpn.store.lease import Lease

TTL, MARGIN = 3000, 250


def test_before_the_first_grant_the_node_is_fenced() -> None:
    lease = Lease(TTL, MARGIN)
    assert lease.fenced(0)
    assert lease.fenced(10**12)
    assert lease.next_ms == 0


def test_the_fence_stands_from_the_send_not_from_the_answer() -> None:
    lease = Lease(TTL, MARGIN)
    lease.granted(7, 1000, TTL)
    assert lease.fence_ms == 1000 + TTL - MARGIN
    lease.renewed(7, 2000, TTL)
    assert lease.fence_ms == 2000 + TTL - MARGIN
    assert not lease.fenced(4749)
    assert lease.fenced(4750)


def test_a_late_answer_to_an_early_keepalive_moves_nothing_back() -> None:
    lease = Lease(TTL, MARGIN)
    lease.granted(7, 1000, TTL)
    lease.renewed(7, 2500, TTL)
    lease.renewed(7, 2000, TTL)
    assert lease.fence_ms == 2500 + TTL - MARGIN


def test_a_lease_is_renewed_often_and_sooner_after_a_failure() -> None:
    lease = Lease(TTL, MARGIN)
    lease.granted(7, 1000, TTL)
    assert lease.next_ms == 2000
    lease.failed(2000, 2100)
    assert lease.next_ms == 2250
    lease.failed(2250, 3250)
    assert lease.next_ms == 3250
    assert lease.fence_ms == 1000 + TTL - MARGIN
    lease.renewed(7, 3250, TTL)
    assert lease.next_ms == 4250


def test_a_lease_that_is_lost_fences_at_once_and_is_not_revived() -> None:
    lease = Lease(TTL, MARGIN)
    lease.granted(7, 1000, TTL)
    lease.renewed(7, 2000, 0)
    assert lease.lease_id is None
    assert lease.fenced(2000)
    assert lease.next_ms == 2000
    lease.renewed(7, 1900, TTL)
    assert lease.fenced(2000)
    lease.granted(8, 2100, TTL)
    lease.renewed(7, 2200, 0)
    assert lease.fence_ms == 2100 + TTL - MARGIN


def test_what_the_store_grants_counts_not_what_was_wanted() -> None:
    lease = Lease(TTL, MARGIN)
    lease.granted(7, 1000, 5000)
    assert lease.fence_ms == 6000 - MARGIN
    lease.renewed(7, 2000, 2000)
    assert lease.fence_ms == 6000 - MARGIN
    assert lease.next_ms == 2666


@pytest.mark.parametrize("margin", [-1, 2000, 3000])
def test_a_margin_that_leaves_no_time_is_refused(margin: int) -> None:
    with pytest.raises(ValueError, match="leaves no time"):
        Lease(TTL, margin)


@given(
    st.lists(st.tuples(st.integers(1, 4000), st.integers(0, 2500), st.integers(0, 2500), st.booleans())),
    st.integers(0, MARGIN),
)
def test_whatever_is_lost_or_late_the_node_is_fenced_before_the_store_ends_its_lease(
    rounds: list[tuple[int, int, int, bool]], late_ms: int
) -> None:
    """A store of our own: its lease runs from when a keepalive comes to it."""
    lease, now_ms, ends_ms = Lease(TTL, MARGIN), 0, TTL
    lease.granted(1, 0, TTL)
    for pause_ms, way_there_ms, way_back_ms, answered in rounds:
        now_ms = max(now_ms + pause_ms, lease.next_ms)
        sent_ms, came_ms = now_ms, now_ms + way_there_ms
        alive = came_ms < ends_ms
        ends_ms = came_ms + TTL if alive else ends_ms
        now_ms = came_ms + way_back_ms
        if answered:
            lease.renewed(1, sent_ms, TTL if alive else 0)
        else:
            lease.failed(sent_ms, now_ms)
        if lease.lease_id is None:
            assert lease.fenced(now_ms)
            return
        assert lease.fence_ms + MARGIN <= ends_ms
        assert lease.fenced(ends_ms - late_ms)
