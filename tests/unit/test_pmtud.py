"""The path MTU by probing: found on any path, kept while it holds, given up when the path has a hole."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpn.policy.pmtud import BASE, CEILING, GRAIN, RAISE_NS, PathMtu

MS = 1_000_000
RTT_NS = 20 * MS


class Wire:
    """A path of `mtu` bytes that loses a share of all probes; runs a PathMtu in virtual time."""

    def __init__(self, mtu: int, loss: float = 0.0, seed: int = 1) -> None:
        self.mtu, self.loss = mtu, loss
        self.now_ns = 0
        self.probes: list[tuple[int, int]] = []
        self.found = PathMtu(0)
        self._random = random.Random(seed)

    def run(self, seconds: float, *, busy: bool = True) -> None:
        until = self.now_ns + round(seconds * 1e9)
        while (due := self.found.next_probe_at(busy)) <= until:
            self.now_ns = max(self.now_ns, due)
            number = len(self.probes)
            size = self.found.on_timer(number, self.now_ns, RTT_NS)
            self.probes.append((self.now_ns, size))
            if size <= self.mtu and self._random.random() >= self.loss:
                self.now_ns += RTT_NS
                self.found.on_answer(number, self.now_ns)
        self.now_ns = until


def test_a_full_size_path_is_known_after_one_round_trip_and_the_peer_after_two() -> None:
    wire = Wire(CEILING)
    wire.run(0.041)
    assert (wire.found.confirmed, wire.found.settled) == (CEILING, True)
    assert wire.found.told == (CEILING, True)
    assert [size for _, size in wire.probes] == [CEILING, CEILING]


@given(mtu=st.integers(BASE, CEILING))
def test_what_a_path_carries_is_found_within_seconds_and_never_too_much(mtu: int) -> None:
    wire = Wire(mtu)
    for _ in range(50):
        wire.run(0.1)
        assert wire.found.confirmed <= mtu
    assert wire.found.settled
    assert wire.found.confirmed > mtu - GRAIN
    assert wire.found.told == (wire.found.confirmed, True)


@given(mtu=st.integers(BASE, CEILING), loss=st.floats(0, 0.3), seed=st.integers(0, 1000))
def test_loss_never_makes_it_too_much(mtu: int, loss: float, seed: int) -> None:
    wire = Wire(mtu, loss, seed)
    for _ in range(30):
        wire.run(1)
        assert BASE <= wire.found.confirmed <= mtu


@pytest.mark.parametrize("narrow", [BASE, 1400])
def test_a_hole_is_noticed_while_traffic_flows_and_the_size_found_again(narrow: int) -> None:
    wire = Wire(CEILING)
    wire.run(5)
    wire.mtu = narrow
    wire.run(2.1)
    assert wire.found.confirmed <= narrow
    wire.run(4)
    assert wire.found.settled
    assert narrow - GRAIN < wire.found.confirmed <= narrow


def test_an_idle_path_is_left_alone() -> None:
    wire = Wire(1400)
    wire.run(10, busy=False)
    before = len(wire.probes)
    wire.run(290, busy=False)
    assert len(wire.probes) - before <= 5


def test_a_larger_size_is_tried_again_after_a_while() -> None:
    wire = Wire(1400)
    wire.run(10)
    wire.mtu = CEILING
    wire.run(60)
    assert wire.found.confirmed <= 1400
    wire.run(RAISE_NS / 1e9)
    assert wire.found.confirmed == CEILING


def test_answers_that_nobody_waits_for_change_nothing() -> None:
    found = PathMtu(0)
    assert not found.on_answer(7, 1)
    size = found.on_timer(1, 0, RTT_NS)
    assert found.on_answer(1, 2)
    assert not found.on_answer(1, 3)
    assert (size, found.confirmed) == (CEILING, CEILING)
