"""COOKIE under load: a flood costs no Diffie-Hellman, and a client that receives gets through beside it."""

import pytest

from jvpn.protocol.handshake import NO_PSK, HandshakeError, Initiator
from jvpn.protocol.suites import suite, x25519_public
from jvpn.supervisor.admission import COOKIE_SLOT_MS, SOURCE_RATE, UNPROVEN_RATE, Admission
from jvpn.supervisor.arrival import Arrival
from workers.commands import Endpoint

GATEWAY = b"\x11" * 32
GATEWAY_PUBLIC = x25519_public(GATEWAY)
LOCAL = Endpoint(bytes(16), 51820)


def initiator(timestamp_us: int = 1) -> Initiator:
    return Initiator(
        suite(1), b"\x22" * 32, GATEWAY_PUBLIC, NO_PSK, b"\x33" * 32, bytes(8), timestamp_us, 0, "default"
    )


def source(number: int) -> Arrival:
    return Arrival(0, LOCAL, Endpoint(bytes(10) + b"\xff\xff" + number.to_bytes(4, "big"), 4000))


@pytest.fixture
def admission() -> Admission:
    count = iter(range(1, 10**6))
    return Admission(GATEWAY_PUBLIC, lambda size: next(count).to_bytes(size, "big"), suite(1).hmac)


def flood(admission: Admission, now_ms: int) -> int:
    """INITs from ever new sources until one is answered with a COOKIE; returns how many were paid for."""
    init = initiator().init_datagram
    paid = 0
    while admission.judge(init, source(1000 + paid), now_ms) is None:
        paid += 1
        assert paid <= UNPROVEN_RATE.burst
    return paid


def test_in_quiet_times_an_init_is_paid_for(admission: Admission) -> None:
    assert admission.judge(initiator().init_datagram, source(1), 0) is None


def test_a_flood_from_many_sources_is_answered_by_cookies_shorter_than_the_init(admission: Admission) -> None:
    assert flood(admission, 0) == UNPROVEN_RATE.burst
    init = initiator().init_datagram
    cookie = admission.judge(init, source(2), 0)
    assert cookie is not None
    assert len(cookie) < len(init)


def test_the_same_init_with_the_cookie_passes_beside_the_flood(admission: Admission) -> None:
    flood(admission, 0)
    client = initiator()
    cookie = admission.judge(client.init_datagram, source(7), 0)
    assert cookie is not None
    assert admission.judge(client.read_cookie(cookie), source(7), 1) is None


def test_a_cookie_is_worth_nothing_from_another_source(admission: Admission) -> None:
    flood(admission, 0)
    client = initiator()
    cookie = admission.judge(client.init_datagram, source(7), 0)
    assert cookie is not None
    proven = client.read_cookie(cookie)
    assert admission.judge(proven, source(8), 1) is not None
    other_port = Arrival(0, LOCAL, Endpoint(source(7).remote.address, 4001))
    assert admission.judge(proven, other_port, 1) is not None


def test_a_cookie_lives_for_two_slots_and_no_longer(admission: Admission) -> None:
    flood(admission, 0)
    client = initiator()
    cookie = admission.judge(client.init_datagram, source(7), 0)
    assert cookie is not None
    proven = client.read_cookie(cookie)
    flood(admission, COOKIE_SLOT_MS)
    assert admission.judge(proven, source(7), COOKIE_SLOT_MS) is None
    flood(admission, 2 * COOKIE_SLOT_MS)
    assert admission.judge(proven, source(7), 2 * COOKIE_SLOT_MS) is not None


def test_one_proven_source_cannot_have_more_than_its_bucket(admission: Admission) -> None:
    client = initiator()
    flood(admission, 0)
    cookie = admission.judge(client.init_datagram, source(3), 0)
    assert cookie is not None
    proven = client.read_cookie(cookie)
    for _ in range(int(SOURCE_RATE.burst)):
        assert admission.judge(proven, source(3), 0) is None
    with pytest.raises(HandshakeError, match="handshake_rate"):
        admission.judge(proven, source(3), 0)


def test_one_flooding_source_meets_its_own_bucket_and_then_cookies(admission: Admission) -> None:
    client = initiator()
    paid = sum(admission.judge(client.init_datagram, source(3), 0) is None for _ in range(10_000))
    assert paid == SOURCE_RATE.burst
    # Nobody else is asked for anything.
    assert admission.judge(client.init_datagram, source(4), 0) is None


def test_who_forges_an_address_does_not_shut_its_owner_out(admission: Admission) -> None:
    forged = initiator().init_datagram
    for _ in range(10_000):
        admission.judge(forged, source(3), 0)
    owner = initiator()
    cookie = admission.judge(owner.init_datagram, source(3), 0)
    assert cookie is not None
    assert admission.judge(owner.read_cookie(cookie), source(3), 0) is None


def test_a_wrong_mac1_costs_one_hash_and_is_named(admission: Admission) -> None:
    broken = bytearray(initiator().init_datagram)
    broken[-20] ^= 1
    with pytest.raises(HandshakeError, match="bad_mac1"):
        admission.judge(bytes(broken), source(5), 0)
