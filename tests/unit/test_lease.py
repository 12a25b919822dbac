"""A lease as its node knows it: it never believes to hold what the store may have given to another."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpn.store.lease import Lease, Standing

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


FOLLOWS, RENEWS, GONE, LEADS, SILENT = Standing


@pytest.mark.parametrize(
    "standings",
    [
        [FOLLOWS, GONE, GONE],
        [FOLLOWS, FOLLOWS, GONE],
        [FOLLOWS, FOLLOWS, FOLLOWS],
        [RENEWS, GONE, GONE],
        [RENEWS, RENEWS, FOLLOWS],
        [GONE, GONE, GONE],
        [FOLLOWS],
    ],
)
def test_while_no_leader_can_end_it_a_lease_goes_on_from_the_first_question(
    standings: list[Standing],
) -> None:
    lease = Lease(TTL, MARGIN)
    lease.granted(7, 1000, TTL)
    lease.failed(2000, 3000)
    assert lease.accounted(3000, 3400, standings)
    assert lease.fence_ms == 3000 + TTL - MARGIN
    assert lease.next_ms == 3000
    assert lease.accounted(5000, 5100, standings)
    assert lease.fence_ms == 5000 + TTL - MARGIN


@pytest.mark.parametrize(
    "standings",
    [
        [],
        [FOLLOWS, FOLLOWS, SILENT],
        [GONE, GONE, SILENT],
        [RENEWS, GONE, SILENT],
        [LEADS, FOLLOWS, FOLLOWS],
        [LEADS, GONE, GONE],
        [RENEWS, LEADS, FOLLOWS],
    ],
)
def test_one_member_that_may_end_it_is_enough_to_be_fenced(standings: list[Standing]) -> None:
    lease = Lease(TTL, MARGIN)
    lease.granted(7, 1000, TTL)
    assert not lease.accounted(3000, 3001, standings)
    assert lease.fence_ms == 1000 + TTL - MARGIN


def test_what_may_have_been_ended_before_it_was_asked_about_does_not_go_on() -> None:
    lease = Lease(TTL, MARGIN)
    assert not lease.accounted(0, 1, [FOLLOWS])
    lease.granted(7, 1000, TTL)
    assert not lease.accounted(3000, 1000 + TTL - MARGIN, [FOLLOWS])
    assert lease.fence_ms == 1000 + TTL - MARGIN
    lease.lost(2000)
    assert not lease.accounted(2001, 2002, [FOLLOWS])
    assert lease.fenced(2003)


def test_doubt_brings_the_next_keepalive_forward_but_not_more_often_than_failures_do() -> None:
    lease = Lease(TTL, MARGIN)
    lease.granted(7, 1000, TTL)
    lease.doubted(1100)
    assert lease.next_ms == 1250
    lease.doubted(1900)
    assert lease.next_ms == 1250
    lease.renewed(7, 1250, TTL)
    lease.doubted(1900)
    assert lease.next_ms == 1900


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


class Etcd:
    """A store of three members as far as leases go: each leader knows our lease by itself, from when it took office or
    renewed it. `up`: whether a member runs. A member that loses its office may get it back only by an election."""

    def __init__(self) -> None:
        self.up = [True] * 3
        self.ends_ms: list[int | None] = [None, None, TTL]

    def elect(self, member: int, now_ms: int) -> None:
        """Whoever led before may not have noticed yet."""
        if self.up[member]:
            self.ends_ms[member] = now_ms + TTL

    def standing(self, member: int, now_ms: int, seen: bool) -> Standing:
        if not seen:
            return SILENT
        if not self.up[member]:
            return GONE
        if self.ends_ms[member] is None:
            return FOLLOWS
        self.ends_ms[member] = now_ms + TTL
        return RENEWS

    @property
    def first_end_ms(self) -> int | None:
        return min((end for end in self.ends_ms if end is not None), default=None)


STEP = st.tuples(
    st.sampled_from(["kill", "start", "elect", "depose", "call", "call", "call"]),
    st.integers(0, 2),
    st.integers(0, 1200),
    st.lists(st.integers(0, 300), min_size=3, max_size=3),
    st.lists(st.sampled_from([True, True, True, False]), min_size=3, max_size=3),
    st.lists(st.sampled_from(["", "", "kill", "elect", "depose"]), min_size=3, max_size=3),
)


@given(st.lists(STEP, max_size=30))
def test_whoever_leads_whenever_nobody_ends_a_lease_before_its_nodes_fence(steps: list[Any]) -> None:
    """Members die, are elected and deposed between the questions of one roll call as well."""
    lease, etcd, now_ms = Lease(TTL, MARGIN), Etcd(), 0
    lease.granted(1, 0, TTL)

    def happen(what: str, member: int) -> None:
        if what == "elect":
            etcd.elect(member, now_ms)
        elif what in ("kill", "depose"):
            etcd.ends_ms[member] = None
            etcd.up[member] &= what != "kill"
        elif what == "start":
            etcd.up[member] = True

    for what, member, pause_ms, ways_ms, seen, meanwhile in steps:
        now_ms += pause_ms
        happen(what, member)
        if what == "call":
            asked_ms, standings = now_ms, []
            for number in range(3):
                now_ms += ways_ms[number]
                standings.append(etcd.standing(number, now_ms, seen[number]))
                happen(meanwhile[number], (number + member) % 3)
            if lease.fenced(now_ms):
                return
            lease.accounted(asked_ms, now_ms, standings)
        if etcd.first_end_ms is not None:
            assert lease.fence_ms + MARGIN <= etcd.first_end_ms
