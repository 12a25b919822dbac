"""How far a key is used, what the gateway asks for then, and what puts a new phase in force."""

from dataclasses import replace

import pytest
from core_pair import CorePair, Flight, Rule, every_pair_is_sound, fast_policy
from forge import NEW, Forge

from jvpn.observability.events import KeyEvent, PolicyEvent
from jvpn.protocol.constants import PacketType
from jvpn.protocol.control import ControlType, decode_frames
from jvpn.protocol.key_limits import KEY_LIMITS, KeyLimits
from jvpn.protocol.messages import Health
from jvpn.protocol.reattach import Result
from workers.counters import Counter

__all__ = ["every_pair_is_sound"]

LOW = KeyLimits(sent=64, forged=32)


def with_limits(limits: KeyLimits = LOW) -> CorePair:
    pair = CorePair()
    pair.context.facts = replace(pair.context.facts, key_limits=dict.fromkeys((1, 2), limits))
    pair.attach()
    pair.advance(6_000)
    return pair


def deaf(flight: Flight) -> list[int] | None:
    """The gateway hears no CONTROL."""
    return [] if flight.up and flight.kind is PacketType.CONTROL else None


def phase(pair: CorePair) -> int:
    return pair.live.secrets.phase_number


def overdue(pair: CorePair) -> list[str]:
    return [event.reason_code for event in pair.events(KeyEvent) if event.action == "overdue"]


def test_the_limits_are_those_of_rfc_9001() -> None:
    aes, chacha = KEY_LIMITS[1], KEY_LIMITS[2]
    assert (aes.sent, aes.forged, chacha.forged) == (2**28, 2**52, 2**36)
    for limits in KEY_LIMITS.values():
        assert limits.sent // 2 < limits.ask_sent < limits.stop_sent < limits.sent


@pytest.mark.parametrize("up", [True, False])
def test_a_key_that_nears_its_limit_is_replaced(up: bool) -> None:
    pair = with_limits()
    before = phase(pair)
    for _ in range(LOW.ask_sent):
        assert pair.data_up(b"u" * 80) if up else pair.data_down(b"d" * 80)
    pair.wait_for(lambda: phase(pair) == before + 1)
    assert overdue(pair) == ["KEY_LIMIT"]
    (told,) = pair.events(PolicyEvent)
    name = "key_datagrams_received" if up else "key_datagrams_sent"
    assert (told.limit, told.observed, told.threshold) == (name, LOW.ask_sent, LOW.ask_sent)
    pair.advance(60_000)
    assert overdue(pair) == ["KEY_LIMIT"]


def test_a_key_that_is_used_little_is_left_alone() -> None:
    pair = with_limits()
    before = phase(pair)
    for _ in range(LOW.ask_sent - 1):
        assert pair.data_down(b"d" * 80)
    pair.advance(20_000)
    assert (phase(pair), overdue(pair)) == (before, [])


def test_at_its_limit_a_key_sends_nothing_more_until_there_is_another() -> None:
    pair = with_limits()
    pair.rules.insert(0, deaf)
    pair.sent.clear()
    sent = [pair.data_down(b"d" * 80) for _ in range(3 * LOW.sent)]
    pair.advance(3_000)
    assert sent == [True] * LOW.stop_sent + [False] * (3 * LOW.sent - LOW.stop_sent)
    assert len(pair.of_kind(PacketType.DATA, up=False)) == LOW.stop_sent < LOW.sent
    assert "KEY_LIMIT" in overdue(pair)
    pair.rules.remove(deaf)
    before = phase(pair)
    pair.wait_for(lambda: phase(pair) == before + 1)
    pair.settle()
    assert pair.data_down(b"d" * 80)


def test_a_worker_that_takes_a_seat_goes_on_counting() -> None:
    pair = with_limits()
    pair.rules.insert(0, deaf)
    for _ in range(LOW.stop_sent - 1):
        assert pair.data_down(b"d" * 80)
    pair.replace_worker(pair.live.slot)
    assert [pair.data_down(b"d" * 80) for _ in range(3)] == [True, False, False]


def test_a_used_up_key_hinders_no_reattach() -> None:
    pair = with_limits()
    pair.rules.insert(0, deaf)
    for _ in range(LOW.sent):
        pair.data_down(b"d" * 80)
    forge = Forge(pair)
    index = pair.live.indexes.highest_seen + 1
    attempt = pair.live.last_attempt + 1
    assert forge.ack(forge.send(NEW, attempt, index, forge.challenge(NEW))).result is Result.BOUND
    assert not pair.data_down(b"d" * 80)


def test_a_client_that_does_not_rekey_is_asked_to_and_asked_again() -> None:
    pair = CorePair(fast_policy(rekey_interval_ms=10_000, idle_probe_interval_ms=20_000)).attach()
    forge = Forge(pair)
    pair.advance(19_000)
    assert overdue(pair) == []
    pair.sent.clear()
    pair.wait_for(lambda: overdue(pair) == ["REKEY_OVERDUE"], 2_000)
    assert pair.client.session is not None
    asked = pair.of_kind(PacketType.CONTROL, up=False)[-1]
    (frame,) = decode_frames(pair.client.session.control.open(0, asked.data).plaintext)
    assert (frame.kind, frame.flags, frame.value) == (ControlType.REKEY_REQUIRED, 1, b"REKEY_OVERDUE")
    acknowledgement = frame.message_id.to_bytes(4, "big") + b"\x01"
    pair.inject(forge.control(ControlType.ACK, acknowledgement), pair.addresses[0])
    pair.sent.clear()
    pair.advance(9_000)
    assert pair.of_kind(PacketType.CONTROL, up=False) == []
    pair.inject(
        forge.control(ControlType.HEALTH, Health(pair.live.machine.state_version).encode()), pair.addresses[0]
    )
    pair.wait_for(lambda: len(overdue(pair)) == 2)
    assert pair.of_kind(PacketType.CONTROL, up=False)
    challenge = forge.challenge(NEW)
    assert forge.ack(forge.send(NEW, 1, 2, challenge)).result is Result.BOUND


def test_a_client_that_rekeys_in_time_is_never_asked() -> None:
    pair = CorePair(fast_policy(rekey_interval_ms=10_000)).attach()
    pair.advance(120_000)
    assert phase(pair) > 8
    assert overdue(pair) == []


def test_forgeries_lead_to_a_rekey_and_at_their_limit_to_a_key_that_opens_nothing() -> None:
    pair = with_limits()
    pair.rules.insert(0, deaf)
    assert pair.data_up(b"u" * 80)
    genuine = pair.of_kind(PacketType.DATA, up=True)[-1]
    forged = genuine.data[:-1] + bytes([genuine.data[-1] ^ 1])
    for _ in range(LOW.forged):
        pair.inject(forged, genuine.source)
    worker = pair.workers[pair.live.slot]
    assert worker.count(Counter.BAD_TAG) == LOW.forged
    before, delivered = phase(pair), len(worker.delivered)
    pair.data_up(b"u" * 80)
    pair.advance(50)
    assert len(worker.delivered) == delivered
    assert worker.count(Counter.UNKNOWN_PHASE) > 0
    pair.rules.remove(deaf)
    pair.wait_for(lambda: phase(pair) == before + 1)
    assert "KEY_LIMIT" in overdue(pair)
    pair.data_up(b"u" * 80)
    pair.advance(50)
    assert len(worker.delivered) == delivered + 1


# What puts a phase in force


def only(kind: PacketType) -> Rule:
    """Of the client's datagrams only this type arrives."""
    return lambda flight: [] if flight.up and flight.kind is not kind else None


@pytest.mark.parametrize("kind", [PacketType.DATA, PacketType.PATH])
def test_whatever_comes_first_under_a_new_phase_puts_it_in_force(kind: PacketType) -> None:
    pair = CorePair().attach()
    pair.advance(6_000)
    session = pair.client.session
    assert session is not None
    before = phase(pair)
    session.rekeying.begin(pair.now_ms)
    pair.wait_for(lambda: pair.live.next_secrets is not None)
    pair.rules.insert(0, only(kind))
    pair.wait_for(lambda: session.rekeying.secrets.phase_number == before + 1)
    assert phase(pair) == before
    pair.data_up(b"u" * 80)
    pair.wait_for(lambda: phase(pair) == before + 1, 2_000)
    pair.sent.clear()
    assert pair.data_down(b"d" * 80)
    (sent,) = pair.of_kind(PacketType.DATA, up=False)
    assert sent.data[1] & 15 == (before + 1) & 15


def test_a_forgery_under_the_new_phase_puts_nothing_in_force() -> None:
    pair = CorePair().attach()
    pair.advance(6_000)
    session = pair.client.session
    assert session is not None
    before = phase(pair)
    assert pair.data_up(b"u" * 80)
    genuine = pair.of_kind(PacketType.DATA, up=True)[-1]
    session.rekeying.begin(pair.now_ms)
    pair.wait_for(lambda: pair.live.next_secrets is not None)
    nibble = 0x10 | (before + 1) & 15
    pair.inject(genuine.data[:1] + bytes([nibble]) + genuine.data[2:], genuine.source)
    assert phase(pair) == before
