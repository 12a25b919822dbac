"""CLOSE is said three times, and each time in a datagram of its own: a lost one must not take the others with it."""

import pytest
from core_pair import CorePair, every_pair_is_sound, lose

from jvpn.protocol.constants import CLOSE_REPEATS, PacketType
from jvpn.protocol.control import ControlChannel, ControlType, decode_frames
from jvpn.session.machine import Reason

__all__ = ["every_pair_is_sound"]


def _end(pair: CorePair, *, up: bool) -> None:
    if up:
        pair.client.stop(pair.now_ns)
    else:
        pair.gateway.terminate(pair.live, Reason.OPERATOR_TERMINATED, pair.now_ms)
    pair.settle()


@pytest.mark.parametrize("up", [True, False])
def test_a_close_goes_in_three_datagrams(up: bool) -> None:
    pair = CorePair().attach()
    before = len(pair.of_kind(PacketType.CONTROL, up=up))
    _end(pair, up=up)
    pair.wait_for(lambda: len(pair.of_kind(PacketType.CONTROL, up=up)) - before == CLOSE_REPEATS)
    pair.advance(2_000)
    assert len(pair.of_kind(PacketType.CONTROL, up=up)) - before == CLOSE_REPEATS


@pytest.mark.parametrize("up", [True, False])
def test_two_lost_closes_end_the_session_all_the_same(up: bool) -> None:
    pair = CorePair().attach()
    pair.rules.insert(0, lose(PacketType.CONTROL, CLOSE_REPEATS - 1, up=up))
    _end(pair, up=up)
    if up:
        pair.wait_for(lambda: not pair.context.sessions)
        assert pair.gateway_sink.events[-1].reason_code == Reason.PEER_CLOSED.value
    else:
        pair.wait_for(lambda: pair.over)
        assert pair.over[0].reason == Reason.OPERATOR_TERMINATED.value


def test_what_waits_before_a_close_shares_its_datagram_and_what_follows_does_not() -> None:
    channel = ControlChannel()
    kinds = [ControlType.HEALTH, ControlType.CLOSE, ControlType.CLOSE, ControlType.STATE]
    for kind in kinds:
        channel.send(kind, b"x", 0)
    sent = [[frame.kind for frame in decode_frames(p)] for p in channel.plaintexts_to_send(0)]
    assert sent == [kinds[:2], kinds[2:3], kinds[3:]]
