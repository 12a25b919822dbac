"""What the gateway says to a client in CONTROL, how often the client repeats itself, and how it takes its leave."""

import itertools

import pytest
from core_pair import DELAY_MS, CorePair, Flight, every_pair_is_sound, fast_policy, lose, silent

from jvpn.agent.session import ClientSession
from jvpn.observability.events import ReattachAttempt, TransportSwitch, TransportSwitchDenied
from jvpn.policy.model import Policy
from jvpn.protocol import keys
from jvpn.protocol.constants import CLOSE_REPEATS, CONTROL_REPEAT_MIN_MS, OLD_PHASE_MS, Direction, PacketType
from jvpn.protocol.control import ControlType, Frame
from jvpn.protocol.key_limits import KEY_LIMITS
from jvpn.session.machine import Reason
from workers import commands

__all__ = ["every_pair_is_sound"]

_ids = itertools.count(0x7F000000)


def ours(pair: CorePair) -> ClientSession:
    assert pair.client.session is not None
    return pair.client.session


def attached(policy: Policy | None = None, uplinks: int = 2) -> CorePair:
    pair = CorePair(policy, uplinks=uplinks).attach()
    pair.advance(100)
    return pair


def frame(kind: ControlType, value: bytes = b"") -> Frame:
    return Frame(kind, 1, next(_ids), 0, 1, value)


def say(pair: CorePair, *frames: Frame) -> None:
    """CONTROL of the gateway arrives on the active path."""
    active = pair.live.bindings.active
    assert active is not None
    assert ours(pair).paths.active is not None
    text = b"".join(one.encode() for one in frames)
    sealed = pair.live.control.seal(active.index, pair.live.indexes.ids[active.index], text)
    pair.inject_down(sealed, ours(pair).paths.active)


def acknowledged(pair: CorePair, *frames: Frame) -> bool:
    """Whether the client's newest CONTROL holds an ACK for each."""
    active = pair.live.bindings.active
    assert active is not None
    told = b""
    for flight in pair.of_kind(PacketType.CONTROL, up=True)[-3:]:
        told += opened(pair, flight)
    return all(one.message_id.to_bytes(4, "big") in told for one in frames)


def opened(pair: CorePair, flight: Flight) -> bytes:
    """The plaintext of a CONTROL datagram of the client, whatever the gateway has read of it."""
    session = ours(pair)
    secrets = session.rekeying.secrets
    aead = secrets.suite.aead(keys.control_key(secrets, Direction.CLIENT_TO_GATEWAY, session.epoch))
    index = next(i for i in range(16) if keys.steering_id(secrets, i) == flight.data[4:12])
    counter = int.from_bytes(flight.data[12:20], "big")
    return aead.decrypt(keys.nonce(index, counter), flight.data[20:], flight.data[:20])


def denied(pair: CorePair) -> list[tuple[str, str]]:
    events = [e for e in pair.client_sink.events if isinstance(e, TransportSwitchDenied)]
    return [(event.cause, event.reason_code) for event in events]


def switched(pair: CorePair) -> list[tuple[str, bool]]:
    events = [e for e in pair.client_sink.events if isinstance(e, TransportSwitch)]
    return [(event.reason_code, event.explicit) for event in events]


# SWITCH


def test_a_client_that_is_asked_to_move_does_before_it_breaks() -> None:
    pair = attached()
    wish = frame(ControlType.SWITCH, b"OPERATOR_SWITCH")
    say(pair, wish)
    assert acknowledged(pair, wish)
    pair.data_up(b"on the old path")
    pair.wait_for(lambda: pair.attached and ours(pair).paths.active == 1, 1_000)
    pair.advance(2 * DELAY_MS)
    assert pair.workers[pair.live.slot].delivered == [b"on the old path"]
    assert switched(pair) == [("OPERATOR_SWITCH", True)]
    assert [event.reason_code for event in pair.events(TransportSwitch)] == ["OPERATOR_SWITCH"]
    # A copy of the wish is acknowledged, and that is all.
    say(pair, wish)
    assert acknowledged(pair, wish)
    pair.advance(5_000)
    assert len(switched(pair)) == 1


def test_the_gateways_own_wish_moves_the_client_whatever_is_lost() -> None:
    pair = attached()
    pair.rules.append(lose(PacketType.CONTROL, 3))
    pair.gateway.switch(pair.live, Reason.OPERATOR_SWITCH, pair.now_ms)
    pair.wait_for(lambda: pair.attached and ours(pair).paths.active == 1, 2_000)
    assert switched(pair) == [("OPERATOR_SWITCH", True)]


def test_a_client_stays_where_it_was_asked_to_go() -> None:
    pair = CorePair()
    pair.client.uplinks[0].preference = 200
    pair.attach()
    pair.advance(100)
    say(pair, frame(ControlType.SWITCH, b"OPERATOR_SWITCH"))
    pair.wait_for(lambda: pair.attached and ours(pair).paths.active == 1, 1_000)
    pair.advance(3 * pair.policy.stability_window_ms)
    assert ours(pair).paths.active == 1


def test_without_another_path_the_client_says_that_it_stays() -> None:
    pair = attached(uplinks=1)
    wish = frame(ControlType.SWITCH, b"OPERATOR_SWITCH")
    say(pair, wish)
    assert acknowledged(pair, wish)
    assert denied(pair) == [("OPERATOR_SWITCH", "NO_CANDIDATE")]
    assert pair.attached
    assert pair.version == 1


def test_a_dead_candidate_is_no_place_to_go() -> None:
    pair = attached()
    pair.rules.append(silent(1))
    pair.advance(20_000)
    say(pair, frame(ControlType.SWITCH, b"OPERATOR_SWITCH"))
    assert denied(pair) == [("OPERATOR_SWITCH", "NO_CANDIDATE")]
    assert pair.attached


def test_a_wish_during_a_change_of_path_is_denied_and_disturbs_nothing() -> None:
    pair = attached(uplinks=3)
    pair.rules.append(lambda flight: [300] if flight.kind is PacketType.REATTACH_ACK else None)
    pair.client.switch("upB", pair.now_ns)
    pair.advance(50)
    attempt = ours(pair).requester.attempt
    assert attempt is not None
    text = frame(ControlType.SWITCH, b"NODE_DRAIN").encode()
    index = ours(pair).paths.paths[0].index
    pair.inject_down(pair.live.control.seal(index, pair.live.indexes.ids[index], text), 0)
    assert denied(pair) == [("NODE_DRAIN", "SWITCH_IN_FLIGHT")]
    assert ours(pair).requester.attempt is attempt
    pair.wait_for(lambda: pair.attached, 2_000)
    assert ours(pair).paths.active == 1


@pytest.mark.parametrize("value", [b"TRANSPORT_DEAD", b"SOMETHING_ELSE", b"", b"x" * 65, b"\xff"])
def test_any_other_wish_is_acknowledged_and_has_no_effect(value: bytes) -> None:
    pair = attached()
    wish = frame(ControlType.SWITCH, value)
    say(pair, wish)
    assert acknowledged(pair, wish)
    assert pair.client.counters["unexpected_control"] + pair.client.counters["bad_control"] == 1
    pair.advance(1_000)
    assert pair.attached
    assert pair.version == 1
    assert not [e for e in pair.client_sink.events if isinstance(e, ReattachAttempt)]


def test_a_message_without_use_does_not_take_its_neighbours_with_it() -> None:
    pair = attached()
    useless, wish = frame(ControlType.SWITCH, b"NONSENSE"), frame(ControlType.SWITCH, b"OPERATOR_SWITCH")
    say(pair, useless, wish)
    assert acknowledged(pair, useless, wish)
    pair.wait_for(lambda: pair.attached and ours(pair).paths.active == 1, 1_000)


# REKEY_REQUIRED


def test_a_rekey_that_is_required_begins_at_once() -> None:
    pair = attached()
    pair.advance(OLD_PHASE_MS + 1_000)
    before = ours(pair).rekeying.secrets.phase_number
    say(pair, frame(ControlType.REKEY_REQUIRED))
    assert ours(pair).rekeying.under_way
    pair.wait_for(lambda: ours(pair).rekeying.secrets.phase_number == before + 1, 500)
    pair.advance(100)
    assert pair.attached


def test_a_rekey_that_is_required_too_soon_begins_when_it_may() -> None:
    pair = attached()
    before = ours(pair).rekeying.secrets.phase_number
    say(pair, frame(ControlType.REKEY_REQUIRED))
    assert not ours(pair).rekeying.under_way
    pair.wait_for(lambda: ours(pair).rekeying.secrets.phase_number == before + 1, OLD_PHASE_MS + 2_000)
    # One is enough: the next one follows when its own time has come.
    pair.advance(3 * OLD_PHASE_MS)
    assert ours(pair).rekeying.secrets.phase_number == before + 1


def test_a_requirement_while_a_rekey_is_under_way_asks_for_no_second_one() -> None:
    pair = attached()
    pair.advance(OLD_PHASE_MS + 1_000)
    before = ours(pair).rekeying.secrets.phase_number
    say(pair, frame(ControlType.REKEY_REQUIRED), frame(ControlType.REKEY_REQUIRED))
    pair.advance(3 * OLD_PHASE_MS)
    assert ours(pair).rekeying.secrets.phase_number == before + 1


def test_the_worker_stops_before_a_key_is_used_up_whatever_hinders_the_rekey() -> None:
    pair = attached()
    for _ in range(7):
        pair.data_up(b"under the first key")
    pair.advance(OLD_PHASE_MS + 1_000)
    sent = pair.client_page.read_activity(0).sent_packets
    say(pair, frame(ControlType.REKEY_REQUIRED))
    pair.advance(500)
    given = [c.send_until for c in pair.client_worker.commands if isinstance(c, commands.AddSession)]
    assert sent >= 7
    assert given[0] == KEY_LIMITS[1].stop_sent
    assert given[-1] == KEY_LIMITS[1].stop_sent + sent
    # A new owner has new keys, and the page begins anew.
    pair.restart_gateway()
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    last = [c for c in pair.client_worker.commands if isinstance(c, commands.AddSession)][-1]
    assert (last.send_until, last.forged_until) == (KEY_LIMITS[1].stop_sent, KEY_LIMITS[1].forged)


# Repeats


def rekey_inits_while_cut_off(pair: CorePair, for_ms: int) -> int:
    """CONTROL datagrams that the client sends in this time while none of them arrives."""
    pair.rules.insert(0, lambda flight: [] if flight.up and flight.kind is PacketType.CONTROL else None)
    before = len(pair.of_kind(PacketType.CONTROL, up=True))
    ours(pair).rekeying.begin(pair.now_ms)
    pair.advance(for_ms)
    return len(pair.of_kind(PacketType.CONTROL, up=True)) - before


def test_control_is_repeated_by_the_round_trip_of_the_path() -> None:
    quick, slow = CorePair(), CorePair()
    slow.rules.append(lambda _flight: [150])
    sent = []
    for pair in (quick, slow):
        pair.attach()
        pair.advance(OLD_PHASE_MS + 5_000)
        sent.append(rekey_inits_while_cut_off(pair, 900))
    # Two chunks every 50 ms, and at a round trip of 300 ms every 300 ms at most.
    assert sent[0] >= 2 * 15
    assert sent[1] <= 2 * 3


def test_what_was_not_acknowledged_goes_on_over_the_new_path_at_once() -> None:
    pair = CorePair()
    pair.rules.append(lambda flight: [140] if flight.uplink == 0 else None)
    pair.attach()
    assert ours(pair).paths.active == 0
    pair.advance(2 * OLD_PHASE_MS)
    before = ours(pair).rekeying.secrets.phase_number
    pair.rules.insert(0, silent(0))
    ours(pair).rekeying.begin(pair.now_ms)
    pair.advance(5)
    pair.link(0, False)
    pair.wait_for(lambda: ours(pair).rekeying.secrets.phase_number == before + 1, 200)
    pair.wait_for(lambda: pair.attached, 1_000)


# CLOSE


def test_close_is_said_three_times_apart() -> None:
    pair = attached()
    times: list[int] = []

    def note(flight: Flight) -> list[int] | None:
        if flight.up and flight.kind is PacketType.CONTROL:
            times.append(pair.now_ms)
            return []
        return None

    pair.rules.insert(0, note)
    patience_ms = ours(pair).paths.paths[0].patience_ms
    assert patience_ms is not None
    apart_ms = max(CONTROL_REPEAT_MIN_MS, round(patience_ms))
    began_ms = pair.now_ms
    pair.client.stop(pair.now_ns)
    pair.advance(10_000)
    assert [at - began_ms for at in times] == [number * apart_ms for number in range(CLOSE_REPEATS)]
    assert pair.client.closing_ms is None


@pytest.mark.parametrize("lost", [1, 2])
def test_one_close_that_arrives_is_enough(lost: int) -> None:
    pair = attached()
    pair.rules.insert(0, lose(PacketType.CONTROL, lost, up=True))
    pair.client.stop(pair.now_ns)
    pair.wait_for(lambda: not pair.context.sessions, 1_000)
    pair.advance(1_000)
    assert pair.over[0].reason == "PEER_CLOSED"


def test_on_a_slow_path_the_last_close_is_not_late() -> None:
    pair = CorePair()
    pair.rules.append(lambda _flight: [900])
    pair.attach()
    pair.advance(20_000)
    pair.client.stop(pair.now_ns)
    assert pair.client.closing_ms is not None
    pair.advance(1_000)
    assert pair.client.closing_ms is None


def test_the_leave_of_one_session_does_not_hold_the_next_one_up() -> None:
    pair = CorePair(fast_policy(session_ttl_ms=60_000, transport_loss_ttl_ms=60_000)).attach()
    first = pair.live.session_id
    pair.wait_for(lambda: pair.over, 61_000)
    pair.wait_for(lambda: pair.attached, 1_000)
    assert pair.live.session_id != first
    pair.advance(1_000)
    assert pair.attached


def test_a_rekey_that_finds_no_path_piles_nothing_up() -> None:
    pair = attached(fast_policy(rekey_interval_ms=10_000, transport_loss_ttl_ms=600_000))
    for uplink in (0, 1):
        pair.link(uplink, up=False)
    pair.advance(60_000)
    assert ours(pair).channel.unacknowledged <= 1
    pair.sent.clear()
    pair.link(0, up=True)
    pair.wait_for(lambda: pair.attached and not ours(pair).rekeying.under_way)
    assert pair.client.counters["bad_rekey"] == 0
    assert len(pair.of_kind(PacketType.CONTROL, up=True)) < 20
