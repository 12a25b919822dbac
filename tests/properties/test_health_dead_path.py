"""The dead-path rule over a simulated path: found dead in time, and never while it lives."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jvpn.policy.dead_path import DeadPathRule
from jvpn.policy.estimators import MS, SECOND
from jvpn.policy.health import PathHealth
from jvpn.policy.model import Policy

POLICY = Policy.default()
TICK_NS = MS


@dataclass
class Path:
    """A path with a fixed delay; `passes(outward, now_ns)` says whether a datagram put on it then gets through."""

    delay_ns: int
    passes: Callable[[bool, int], bool]
    answers: list[tuple[int, int, bool]] = field(default_factory=list)

    def probe(self, probe_id: int, now_ns: int) -> None:
        if self.passes(True, now_ns):
            heapq.heappush(self.answers, (now_ns + self.delay_ns, probe_id, False))

    def arrived(self, now_ns: int) -> list[int]:
        """Ids of probe answers that reach us by now; the far end answers at once."""
        found = []
        while self.answers and self.answers[0][0] <= now_ns:
            at_ns, probe_id, returning = heapq.heappop(self.answers)
            if returning:
                found.append(probe_id)
            elif self.passes(False, at_ns):
                heapq.heappush(self.answers, (at_ns + self.delay_ns, probe_id, True))
        return found


def verdict_ns(
    path: Path,
    until_ns: int,
    sends: Callable[[int], bool],
    receives: Callable[[int], bool] = lambda now_ns: False,
    from_ns: int = 0,
) -> int | None:
    """Run the path in steps of 1 ms; when it was first called dead from `from_ns` on, None if never."""
    health = PathHealth(POLICY, 0, active=True)
    probe_id = 0
    for now_ns in range(0, until_ns, TICK_NS):
        for answered in path.arrived(now_ns):
            assert health.on_probe_acked(answered, now_ns)
        if sends(now_ns):
            health.on_data_sent(now_ns)
        if receives(now_ns):
            health.on_data_received(now_ns)
        if now_ns >= from_ns and health.dead(now_ns):
            return now_ns
        if health.next_probe_at(now_ns) <= now_ns:
            probe_id += 1
            health.on_probe_sent(probe_id, now_ns)
            path.probe(probe_id, now_ns)
        # One answer may be on its way back within this step when the delay is zero.
        for answered in path.arrived(now_ns):
            assert health.on_probe_acked(answered, now_ns)
        assert health.get_timer() > now_ns or health.next_probe_at(now_ns) <= now_ns
    return None


@settings(max_examples=60, deadline=None)
@given(
    delay_ms=st.integers(0, 200),
    death_ms=st.integers(3_000, 4_000),
    directions=st.sampled_from(["both", "outward", "inward"]),
    every_ms=st.integers(1, 30),
)
def test_a_path_that_loses_nothing_is_found_dead_within_180_ms_and_one_round_trip(
    delay_ms: int, death_ms: int, directions: str, every_ms: int
):
    death_ns = death_ms * MS

    def passes(outward: bool, now_ns: int) -> bool:
        hit = directions == "both" or outward == (directions == "outward")
        return now_ns < death_ns or not hit

    found_ns = verdict_ns(
        Path(delay_ms * MS, passes), death_ns + 2 * SECOND, lambda now_ns: now_ns // MS % every_ms == 0
    )
    assert found_ns is not None
    assert found_ns >= death_ns
    # The step of the simulation and the gap until the next DATA are not the rule's.
    assert found_ns - death_ns <= (180 + 2 * delay_ms + every_ms) * MS + 2 * TICK_NS


@settings(max_examples=40, deadline=None)
@given(
    delay_ms=st.integers(0, 200),
    death_ms=st.integers(3_000, 4_000),
    every_ms=st.integers(1, 40),
)
def test_a_client_that_only_listens_finds_a_dead_path_too(delay_ms: int, death_ms: int, every_ms: int):
    death_ns = death_ms * MS

    def receives(now_ns: int) -> bool:
        return now_ns < death_ns and now_ns // MS % every_ms == 0

    found_ns = verdict_ns(
        Path(delay_ms * MS, lambda _, now_ns: now_ns < death_ns),
        death_ns + 2 * SECOND,
        lambda now_ns: now_ns < SECOND,  # so that the round trip is known
        receives,
    )
    assert found_ns is not None
    assert death_ns <= found_ns <= death_ns + (50 + 180 + 2 * delay_ms) * MS + 2 * TICK_NS


@settings(max_examples=60, deadline=None)
@given(delay_ms=st.integers(0, 200), lost=st.integers(1, 100), late=st.integers(1, 100))
def test_one_lost_and_one_late_probe_kill_no_path(delay_ms: int, lost: int, late: int):
    """Even on a path so long that many probes are under way at any time."""
    health = PathHealth(POLICY, 0, active=True)
    pending: list[tuple[int, int]] = []
    probe_id = 0
    for now_ns in range(0, 6 * SECOND, TICK_NS):
        while pending and pending[0][0] <= now_ns:
            health.on_probe_acked(heapq.heappop(pending)[1], now_ns)
        health.on_data_sent(now_ns)
        assert not health.dead(now_ns)
        if health.next_probe_at(now_ns) <= now_ns:
            probe_id += 1
            health.on_probe_sent(probe_id, now_ns)
            if probe_id != lost:
                extra_ns = 35 * MS if probe_id == late else 0
                heapq.heappush(pending, (now_ns + 2 * delay_ms * MS + extra_ns, probe_id))


@pytest.mark.parametrize("loss", [0.05, 0.15, 0.25])
def test_a_lossy_path_that_delivers_is_not_called_dead_once_its_loss_is_known(loss: float):
    """The loss is that of each direction; a minute each, five seeds."""
    for seed in range(5):
        draw = random.Random(seed)
        path = Path(20 * MS, lambda outward, now_ns, draw=draw: draw.random() >= loss)
        assert (
            verdict_ns(path, 60 * SECOND, lambda now_ns: now_ns // MS % 10 == 0, from_ns=2 * SECOND) is None
        ), seed


@pytest.mark.parametrize("loss", [0.3, 0.4])
@pytest.mark.parametrize("delay_ms", [10, 50])
def test_a_loss_that_begins_at_once_is_seldom_taken_for_a_death(loss: float, delay_ms: int):
    """In each direction, two seconds long, before anything has been measured of it."""
    dead = 0
    for seed in range(40):
        draw = random.Random(seed)

        def passes(outward: bool, now_ns: int, draw: random.Random = draw) -> bool:
            return now_ns < 2 * SECOND or draw.random() >= loss

        dead += verdict_ns(Path(delay_ms * MS, passes), 4 * SECOND, lambda now_ns: True) is not None
    assert dead <= 4


def test_a_lossy_path_that_dies_is_still_found_dead():
    draw = random.Random(7)
    death_ns = 20 * SECOND
    path = Path(20 * MS, lambda outward, now_ns: now_ns < death_ns and draw.random() >= 0.25)
    found_ns = verdict_ns(path, 22 * SECOND, lambda now_ns: now_ns // MS % 10 == 0, from_ns=2 * SECOND)
    assert found_ns is not None
    assert death_ns <= found_ns <= death_ns + SECOND


@given(loss=st.floats(0, 1))
def test_k_is_the_smallest_whose_chance_is_below_one_in_a_million(loss: float):
    k = DeadPathRule.unanswered_needed(loss)
    assert 3 <= k <= 24
    assert k == 24 or loss**k < 1e-6 * (1 + 1e-6)
    assert k == 3 or loss ** (k - 1) >= 1e-6 * (1 - 1e-6)
