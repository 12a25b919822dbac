"""Limits of the gateway: each holds one session, source or client key back and nobody else, and says until when."""

import random

import pytest
from core_pair import CLIENT_KEY, DELAY_MS, GATEWAY, CorePair, every_pair_is_sound, fast_policy

from jvpn.agent.switching import RETRY_AFTER_MAX_MS
from jvpn.observability.events import ReattachResult, TransportSwitch
from jvpn.protocol import reattach
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import PacketType
from jvpn.protocol.handshake import Initiator
from jvpn.protocol.suites import suite, x25519_public
from jvpn.protocol.wire import Header
from jvpn.session.bucket import BIND_RATE, Buckets, Rate
from jvpn.supervisor import handshakes, takeover
from jvpn.supervisor.admission import SOURCE_RATE, source_of
from jvpn.supervisor.arrival import Arrival
from jvpn.supervisor.peers import Peer
from workers.commands import Endpoint

__all__ = ["every_pair_is_sound"]

ELSEWHERE = Endpoint(to_bytes("198.51.100.66"), 6666)
OTHER_KEY = b"\x44" * 32
REQUEST, RESPONSE = PacketType.REATTACH_REQUEST, PacketType.HANDSHAKE_RESPONSE


def init_of(pair: CorePair, private: bytes, timestamp_us: int) -> bytes:
    public = x25519_public(pair.context.facts.private_key)
    dice = random.Random(timestamp_us)
    return Initiator(
        suite(1),
        private,
        public,
        bytes(32),
        dice.randbytes(32),
        dice.randbytes(8),
        timestamp_us,
        0,
        "default",
    ).init_datagram


def answers(pair: CorePair) -> list[PacketType]:
    """What the gateway has said to others than the client."""
    return [flight.kind for flight in pair.sent if not flight.up and flight.uplink is None]


# Buckets


def test_a_table_of_buckets_keeps_the_newest_and_gives_each_its_own():
    table = Buckets(Rate(1, 2), 3)
    assert [table.take("flood", 0) for _ in range(5)] == [True, True, False, False, False]
    assert table.take("other", 0)
    for key in range(100):
        table.take(key, 0)
    assert len(table) == 3


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
    ],
)
def test_a_source_is_an_address_or_the_64_that_its_holder_has(one: str, other: str, same: bool):
    found = [source_of(Arrival(0, GATEWAY, Endpoint(to_bytes(text), 1))) for text in (one, other)]
    assert (found[0] == found[1]) is same


# Client keys


def test_a_key_that_shakes_hands_all_the_time_is_held_back_and_no_other_key():
    pair = CorePair()
    other = Peer("other", x25519_public(OTHER_KEY), ("10.8.0.3/32",), pair.policy)
    pair.context.peers.peers[other.public_key] = other
    for n in range(40):
        # Each from another address: no bucket of a source sees a flood.
        pair.inject(init_of(pair, OTHER_KEY, 1_000 + n), Endpoint(to_bytes(f"198.51.100.{n}"), 1))
    answered = len(answers(pair))
    assert answered == handshakes.KEY_RATE.burst
    assert pair.context.counters["handshake_key_rate"] == 40 - answered
    began_ms = pair.now_ms
    pair.wait_for(lambda: pair.attached)
    assert pair.now_ms - began_ms < 10 * DELAY_MS
    pair.advance(1_000 / handshakes.KEY_RATE.per_s)
    pair.inject(init_of(pair, OTHER_KEY, 5_000), ELSEWHERE)
    assert len([kind for kind in answers(pair) if kind is RESPONSE]) == answered + 1


def test_copies_of_a_clients_inits_use_up_nothing_of_its_key():
    pair = CorePair().attach()
    (init, *_others) = pair.of_kind(PacketType.HANDSHAKE_INIT, up=True)
    for n in range(100):
        pair.inject(init.data, Endpoint(to_bytes(f"198.51.100.{n}"), 1))
    assert pair.context.counters["handshake_key_rate"] == 0
    assert pair.context.counters["stale_timestamp"] == 100


# Sources


def test_a_flood_of_requests_by_ticket_from_one_source_delays_nobody_elses_takeover():
    pair = CorePair().attach()
    pair.advance(500)
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    genuine = pair.of_kind(REQUEST, up=True)[-1].data
    pair.restart_gateway()
    flood = bytearray(genuine)
    for n in range(3_000):
        flood[4:12] = n.to_bytes(8, "big")
        pair.inject(bytes(flood), ELSEWHERE)
    assert pair.context.counters["bad_ticket"] == takeover.SOURCE_RATE.burst
    pair.advance(50)
    pair.data_up(b"traffic")
    began_ms = pair.now_ms
    pair.wait_for(lambda: pair.context.sessions and pair.live.epoch == 2, 2_000)
    assert pair.now_ms - began_ms < 500
    assert pair.client.handshakes_done == 1


def test_a_recorded_request_by_ticket_is_looked_up_a_few_times_from_however_many_sources():
    pair = CorePair().attach()
    pair.advance(500)
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    recorded = pair.of_kind(REQUEST, up=True)[-1].data
    pair.restart_gateway()
    before = pair.context.counters["takeover_pending"]
    for n in range(1_000):
        pair.inject(recorded, Endpoint(to_bytes(f"198.18.{n >> 8}.{n & 255}"), 1))
    pair.advance(1)
    counters = pair.context.counters
    assert 0 < counters["takeover_pending"] - before <= takeover.SESSION_RATE.burst
    assert counters["ticket_rate"] >= 1_000 - takeover.SESSION_RATE.burst


def test_inits_from_all_of_one_64_are_one_source():
    pair = CorePair()
    for n in range(50):
        pair.inject(init_of(pair, CLIENT_KEY, 1_000 + n), Endpoint(to_bytes(f"2001:db8:1:2::{n + 1:x}"), 1))
    assert answers(pair).count(RESPONSE) == SOURCE_RATE.burst
    assert answers(pair)[-1] is PacketType.COOKIE


# Sessions


def test_a_flood_on_one_index_leaves_the_client_the_others():
    pair = CorePair(uplinks=2).attach()
    pair.advance(500)
    session = pair.client.session
    assert session is not None
    candidate = session.paths.paths[1]
    known = session.paths.paths[0].steering_id
    for n in range(1_000):
        pair.inject(Header(REQUEST, known, n, 0).encode() + bytes(236), ELSEWHERE)
    assert pair.context.counters["reattach_rate"] > 900
    pair.link(0, False)
    began_ms = pair.now_ms
    pair.wait_for(lambda: pair.attached, 1_000)
    assert pair.now_ms - began_ms <= 2 * DELAY_MS + 5
    assert session.paths.active_path is candidate


def test_recoveries_in_a_row_wait_for_their_bucket_and_no_longer():
    pair = CorePair(uplinks=1).attach()
    took: list[int] = []
    for n in range(20):
        # Another NAT binding each time, while DATA flows.
        pair.addresses[0] = Endpoint(pair.addresses[0].address, 41_000 + n)
        switches, began_ms = len(pair.events(TransportSwitch)), pair.now_ms
        while len(pair.events(TransportSwitch)) == switches:
            pair.data_up(b"traffic")
            pair.advance(5)
            assert pair.now_ms - began_ms < 2_000
        pair.wait_for(lambda: pair.attached)
        took.append(pair.now_ms - began_ms)
    alone_ms = max(took[: int(BIND_RATE.burst) - 1])
    assert alone_ms <= 4 * DELAY_MS + 30
    assert max(took) <= alone_ms + 1_000 / BIND_RATE.per_s + 2 * DELAY_MS
    assert pair.client.handshakes_done == 1


def test_the_gateway_names_the_moment_when_its_bucket_has_room():
    pair = CorePair(uplinks=1).attach()
    live = pair.live
    while live.binds.take(pair.now_ms):
        pass
    wait_ms = live.binds.wait_ms(pair.now_ms)
    pair.link(0, False)
    pair.link(0, True)
    pair.wait_for(lambda: pair.of_kind(PacketType.REATTACH_FAIL, up=False), 1_000)
    fails = [e for e in pair.events(ReattachResult) if e.result == "failed"]
    assert fails[0].reason_code == "RATE_LIMITED"
    assert 0 < fails[0].retry_after_ms <= wait_ms
    failed_ms = pair.now_ms
    pair.wait_for(lambda: pair.attached, 1_000)
    assert len([e for e in pair.events(ReattachResult) if e.result == "failed"]) == 1, (
        "it waits as it is told"
    )
    assert pair.now_ms - failed_ms <= fails[0].retry_after_ms + 4 * DELAY_MS + 5


def test_a_gateway_cannot_make_a_client_without_a_path_wait_for_ever():
    pair = CorePair(uplinks=1).attach()
    session = pair.client.session
    assert session is not None
    pair.rules.append(lambda flight: [] if flight.kind is PacketType.REATTACH_ACK else None)
    pair.link(0, False)
    pair.link(0, True)
    pair.wait_for(lambda: pair.of_kind(REQUEST, up=True))
    attempt = session.requester.attempt
    assert attempt is not None
    fail = reattach.Fail(attempt.number, session.view.state_version, 0xFFFFFFFF, "RATE_LIMITED")
    path = session.paths.paths[0]
    pair.inject_down(reattach.seal_fail(session.secrets, bytes(16), path.steering_id, fail), 0)
    pair.rules.clear()
    began_ms = pair.now_ms
    pair.wait_for(lambda: pair.attached, RETRY_AFTER_MAX_MS + 200)
    assert pair.now_ms - began_ms > RETRY_AFTER_MAX_MS / 2, "honoured"


def test_the_limit_of_choices_holds_no_recovery_back():
    pair = CorePair(fast_policy(max_switches_per_minute=1, switch_cooldown_ms=60_000), uplinks=2).attach()
    pair.advance(500)
    assert pair.client.switch("upB", pair.now_ns)
    pair.wait_for(lambda: pair.attached)
    pair.advance(500)
    pair.link(1, False)
    began_ms = pair.now_ms
    pair.wait_for(lambda: pair.attached, 500)
    assert pair.now_ms - began_ms <= 2 * DELAY_MS + 5
