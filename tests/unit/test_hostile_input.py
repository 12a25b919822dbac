"""Strangers, altered datagrams, copies and nonsense against both cores: counted, and nothing else."""

import random
from collections.abc import Iterator

import pytest
from core_pair import (
    CLIENT_KEY,
    GATEWAY_KEY,
    CorePair,
    every_pair_is_sound,
)
from forge import NEW, RACER, Forge, forge
from frozen import differences, frozen

from jvpn.protocol import handshake, messages
from jvpn.protocol.constants import PacketType
from jvpn.protocol.control import ControlType
from jvpn.protocol.suites import suite, x25519_public

__all__ = ["every_pair_is_sound", "forge"]


@pytest.fixture
def pair() -> CorePair:
    return CorePair()


# Unauthenticated, altered and repeated input


def strangers(dice: random.Random) -> Iterator[bytes]:
    """Datagrams of every type that nobody with a key has made."""
    for kind in (*range(0x40), 0xFF):
        for size in (0, 1, 19, 20, 35, 36, 60, 256, 1_232, 9_000):
            yield (bytes([kind, 0x10, 0, 0]) + dice.randbytes(8) + bytes(8) + dice.randbytes(size))[:size]


def test_no_stranger_changes_anything() -> None:
    pair = CorePair().attach()
    before, ours = frozen(pair.gateway), frozen(pair.client)
    for data in strangers(random.Random(1)):
        pair.inject(data, RACER)
        pair.inject_down(data)
    assert differences(before, frozen(pair.gateway)) == []
    assert differences(ours, frozen(pair.client)) == []
    expected = {"truncated", "unknown_type", "bad_length", "unknown_id"}
    assert expected <= pair.context.counters.keys()


def test_no_altered_datagram_changes_anything() -> None:
    pair = CorePair().attach()
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    pair.advance(100)
    recorded = list(pair.sent)
    before, ours = frozen(pair.gateway), frozen(pair.client)
    dice = random.Random(2)
    for number in range(3_000):
        flight = dice.choice(recorded)
        altered = bytearray(flight.data)
        if number % 3 == 0:
            del altered[dice.randrange(len(altered)) :]
        elif number % 3 == 1:
            altered += dice.randbytes(dice.randrange(1, 64))
        else:
            altered[dice.randrange(len(altered))] ^= dice.randrange(1, 256)
        if bytes(altered[12:]) == flight.data[12:] and flight.kind in (PacketType.DATA, PacketType.PATH):
            continue  # only the id differs: another session's or nobody's
        if flight.up:
            pair.inject(bytes(altered), flight.source)
        else:
            pair.inject_down(bytes(altered), 1)
    assert differences(before, frozen(pair.gateway)) == []
    assert differences(ours, frozen(pair.client)) == []


def test_no_replay_changes_anything() -> None:
    pair = CorePair().attach()
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    pair.link(0, True)
    pair.data_up(b"once")
    pair.data_down(b"once")
    pair.advance(3_000)
    recorded = list(pair.sent)
    delivered = (
        [list(worker.delivered) for worker in pair.workers.values()],
        list(pair.client_worker.delivered),
    )
    before, ours = frozen(pair.gateway), frozen(pair.client)
    versions = pair.live.machine.state_version
    for flight in recorded:
        if flight.up:
            pair.inject(flight.data, flight.source)
            pair.inject(flight.data, RACER)
        else:
            pair.inject_down(flight.data, 0)
            pair.inject_down(flight.data, 1)
    assert differences(before, frozen(pair.gateway)) == []
    assert differences(ours, frozen(pair.client)) == []
    assert pair.live.machine.state_version == versions
    after = [list(worker.delivered) for worker in pair.workers.values()], list(pair.client_worker.delivered)
    assert after == delivered
    assert pair.context.counters["replay"] > 0
    assert pair.context.counters["stale_timestamp"] > 0


def test_control_is_taken_on_pinned_indexes_only(forge: Forge) -> None:
    pair = forge.pair
    close = forge.control(ControlType.CLOSE, b"PEER_CLOSED", index=3)
    before = frozen(pair.gateway)
    pair.inject(close, NEW)
    assert pair.context.counters["control_not_bound"] == 1
    assert differences(before, frozen(pair.gateway)) == []


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (ControlType.HEALTH, b"short"),
        (ControlType.HEALTH, messages.Health(0).encode()[:8] + b"\xff" + messages.Health(0).encode()[9:]),
        (ControlType.CLOSE, b""),
        (ControlType.CLOSE, b"\xff\xfe"),
        (ControlType.CONFIG, b"{}"),
        (ControlType.STATE, messages.State(0, 1, "X").encode()),
        (ControlType.REKEY_INIT, b"?"),
    ],
)
def test_nonsense_from_the_key_holder_is_counted(forge: Forge, kind: ControlType, value: bytes) -> None:
    pair = forge.pair
    before = pair.live.machine.state_version
    counted = sum(pair.context.counters.values())
    pair.inject(forge.control(kind, value), NEW)
    assert pair.live.machine.state_version == before
    assert sum(pair.context.counters.values()) == counted + 1


@pytest.mark.parametrize("alter", ["unknown peer", "suite", "mac1"])
def test_an_init_that_is_not_a_peers_gets_no_answer(pair: CorePair, alter: str) -> None:
    pair.client.stopped = True
    key = b"\x33" * 32 if alter == "unknown peer" else CLIENT_KEY
    initiator = handshake.Initiator(
        suite(1), key, x25519_public(GATEWAY_KEY), bytes(32), b"\x44" * 32, bytes(8), 5, 0, "default"
    )
    data = bytearray(initiator.init_datagram)
    if alter == "suite":
        data[2] = 9
    if alter == "mac1":
        data[-20] ^= 1
    before = frozen(pair.gateway)
    pair.inject(bytes(data), RACER)
    assert pair.sent == []
    assert differences(before, frozen(pair.gateway)) == []
    assert sum(pair.context.counters.values()) == 1


def test_forged_probes_leave_a_healthy_path_alone(pair: CorePair) -> None:
    """Junk in the shape of PATH must not use up what the answers to the genuine probes need."""
    pair.attach()
    session = pair.client.session
    assert session is not None
    path = session.paths.active_path
    assert path is not None
    version = pair.live.machine.state_version
    junk = bytes([PacketType.PATH, 0x11, 0, 0]) + path.steering_id + bytes(8) + b"j" * 64
    for _ in range(600):
        pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
        for _ in range(3):
            pair.inject(junk, pair.addresses[0])
        pair.advance(1)
    assert pair.live.machine.state_version == version
    assert path.health.snapshot(pair.now_ns).answering
