"""The only path returns: traffic that waits for it is not kept waiting, whatever time has passed without it."""

import pytest
from core_pair import CorePair, every_pair_is_sound, silent

from jvpn.agent.reattaching import FAST_MS, RETRY_MAX_MS, RETRY_MS
from jvpn.protocol.constants import PacketType

__all__ = ["every_pair_is_sound"]

RTT_MS = 20


def outage(pair: CorePair, ms: int, every_ms: int = 5) -> None:
    """Everything is lost for so long, while the client has something to send."""
    pair.rules.append(silent(0))
    for _ in range(ms // every_ms):
        pair.data_up(bytes(48))
        pair.data_down(bytes(48))
        pair.advance(every_ms)


def back(pair: CorePair) -> int:
    """The path returns; how long that takes to be used."""
    pair.rules.clear()
    since_ms = pair.now_ms
    while not pair.attached:
        pair.data_up(bytes(48))
        pair.advance(1)
    return pair.now_ms - since_ms


@pytest.mark.parametrize("out_ms", [1_000, FAST_MS + 2_000, 30_000])
@pytest.mark.parametrize("phase_ms", range(0, RETRY_MS, 7))
def test_a_path_that_returns_is_used_after_one_round_trip(out_ms: int, phase_ms: int) -> None:
    pair = CorePair(uplinks=1).attach()
    pair.advance(3_000)
    outage(pair, out_ms)
    pair.advance(phase_ms)
    assert back(pair) <= RETRY_MS + RTT_MS


def test_without_traffic_the_client_asks_less_and_less_until_there_is_some() -> None:
    pair = CorePair(uplinks=1).attach()
    pair.advance(3_000)
    outage(pair, 1_000)
    pair.advance(60_000)
    asked = len(pair.of_kind(PacketType.REATTACH_REQUEST, up=True))
    pair.advance(10_000)
    assert len(pair.of_kind(PacketType.REATTACH_REQUEST, up=True)) - asked <= 10_000 / RETRY_MAX_MS + 1
    pair.data_up(bytes(48))
    assert back(pair) <= RETRY_MS + RTT_MS + 20


def test_a_path_dead_in_one_direction_is_not_bound_while_another_may_answer() -> None:
    pair = CorePair(uplinks=2).attach()
    pair.advance(3_000)
    pair.rules.append(silent(0, up=False))
    pair.rules.append(silent(1))
    version = pair.version
    for _ in range(60):
        pair.data_up(bytes(48))
        pair.data_down(bytes(48))
        pair.advance(5)
    pair.rules.pop()
    pair.wait_for(lambda: pair.attached)
    assert pair.client.session is not None
    assert pair.client.session.paths.active == 1
    # The death and the bind, nothing between.
    assert pair.version == version + 2
