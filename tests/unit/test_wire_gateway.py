"""Rules of the wire that the gateway's core keeps: whom it answers, what it reads first, what is durable when."""

from collections.abc import Callable, Sequence

import pytest
from core_pair import (
    CLIENT_KEY,
    DELAY_MS,
    GATEWAY_KEY,
    CorePair,
    Flight,
    every_pair_is_sound,
    fast_policy,
    lose,
    silent,
)
from forge import NEW, RACER, Forge, forge

from jvpn.agent.handshaking import Identity
from jvpn.protocol import messages, reattach, tickets
from jvpn.protocol.constants import MAX_CONTROL_DATAGRAM, PacketType
from jvpn.protocol.control import ControlType
from jvpn.protocol.handshake import Kem
from jvpn.protocol.keys import SessionSecrets, steering_id
from jvpn.protocol.reattach import Result
from jvpn.protocol.suites import suite, x25519_public
from jvpn.session.machine import State, split_version
from jvpn.session.record import SessionRecord
from workers import commands

__all__ = ["every_pair_is_sound", "forge"]


@pytest.fixture
def pair() -> CorePair:
    return CorePair().attach()


def on(pair: CorePair, uplink: int) -> Callable[[], bool]:
    def bound() -> bool:
        session = pair.client.session
        return pair.attached and session is not None and session.paths.active == uplink

    return bound


def _bound(pair: CorePair) -> int:
    assert pair.live.bindings.active is not None
    return pair.live.bindings.active.index


def wander(pair: CorePair) -> None:
    """Change the network three times, which takes as many indexes."""
    for lost in (0, 1, 0):
        change_network(pair, lost)


def change_network(pair: CorePair, lost: int) -> None:
    pair.link(lost, False)
    pair.wait_for(on(pair, 1 - lost))
    pair.link(lost, True)
    pair.advance(1_000)


# Handshake


@pytest.mark.parametrize("kem", ["mlkem768", "none"])
def test_what_confirms_the_keys_is_repeated_until_it_is_answered(kem: str) -> None:
    pair = CorePair(fast_policy(kem=kem))
    if kem == "none":
        identity = Identity(suite(1), CLIENT_KEY, x25519_public(GATEWAY_KEY), bytes(32), "default", Kem.NONE)
        pair.client = pair.new_client(identity)
    pair.wait_for(lambda: pair.of_kind(PacketType.HANDSHAKE_RESPONSE, up=False))
    deaf = silent(0, up=True)
    pair.rules.append(deaf)
    pair.advance(DELAY_MS + 500)
    assert len(pair.of_kind(PacketType.CONTROL, up=True)) > 3
    assert pair.context.sessions == {}
    pair.rules.remove(deaf)
    pair.wait_for(lambda: pair.attached)
    assert pair.client.handshakes_done == 1


def test_a_client_whose_clock_was_set_back_goes_on_above_its_last_timestamp(pair: CorePair) -> None:
    ahead_us = pair.persisted_us = pair.persisted_us + 3_600_000_000
    (key,) = pair.context.peers.peers
    pair.context.peers.accept(key, ahead_us)
    first = pair.live
    pair.client = pair.new_client()
    pair.client_worker.table.remove(0)
    pair.wait_for(lambda: pair.attached and pair.live is not first)
    assert pair.persisted_us == ahead_us + 1
    assert pair.context.counters["stale_timestamp"] == 0


def test_a_client_that_demands_a_kem_takes_no_session_without() -> None:
    pair = CorePair(fast_policy(kem="none"))
    pair.advance(2_000)
    assert pair.client.counters["kem_refused"] == 1
    assert (pair.client.session, pair.client.stopped) == (None, True)
    assert [(over.reason, over.again) for over in pair.over] == [("HANDSHAKE_FAIL", False)]
    assert pair.context.sessions == {}


def test_a_pending_session_hears_the_source_of_its_init_only() -> None:
    pair = CorePair()
    pair.rules.append(lose(PacketType.CONTROL, 1_000, up=True))
    pair.wait_for(lambda: len(pair.of_kind(PacketType.CONTROL, up=True)) >= 2)
    proofs = [flight.data for flight in pair.of_kind(PacketType.CONTROL, up=True)[:2]]
    answered = len([flight for flight in pair.sent if not flight.up])
    for data in proofs:
        pair.inject(data, RACER)
    assert pair.context.counters["wrong_source"] == 2
    assert len([flight for flight in pair.sent if not flight.up]) == answered
    for data in proofs:
        pair.inject(data, pair.addresses[0])
    assert len(pair.context.sessions) == 1


def test_a_pending_entry_is_replaced_by_a_higher_timestamp_only() -> None:
    pair = CorePair()
    pair.rules.append(silent(0, up=False))
    pair.rules.append(silent(1, up=False))
    pair.wait_for(lambda: len(pair.of_kind(PacketType.HANDSHAKE_INIT, up=True)) == 3)
    pair.advance(DELAY_MS)
    ids = set(pair.steered.ids)
    assert len(ids) == 1  # of three INITs of one key: one entry
    for flight in pair.of_kind(PacketType.HANDSHAKE_INIT, up=True):
        pair.inject(flight.data, RACER)
    assert set(pair.steered.ids) == ids
    assert pair.context.counters["stale_timestamp"] == 3
    assert pair.strangers == []


def test_the_tunnel_keeps_its_mtu_and_addresses_for_the_sessions_life(pair: CorePair) -> None:
    wander(pair)
    pair.restart_gateway()
    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
    pair.wait_for(lambda: pair.attached and split_version(pair.live.machine.state_version).epoch == 2)
    pair.advance(2_000)
    (tunnel,) = pair.configured
    assert (tunnel.mtu, tunnel.addresses) == (1400, ("10.8.0.2/32",))


# Indexes


def test_an_id_that_another_session_has_is_not_installed(pair: CorePair) -> None:
    live = pair.live
    highest = live.indexes.highest_installed
    taken = steering_id(live.secrets, highest + 1)
    owner = (live, 0)
    pair.context.by_steering_id[taken] = owner
    wander(pair)
    assert live.indexes.highest_installed > highest + 1
    assert highest + 1 not in live.indexes.ids
    assert pair.context.by_steering_id[taken] == owner
    assert taken not in pair.steered.ids
    assert pair.context.counters["steering_id_collision"] >= 1


def test_a_handshake_whose_first_id_is_taken_gets_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = CorePair()
    taken = b"\x05" * 8
    pair.context.by_steering_id[taken] = None  # type: ignore[assignment]

    def collides(secrets: SessionSecrets, indexes: Sequence[int]) -> dict[int, bytes]:
        return {n: steering_id(secrets, n) if n else taken for n in indexes}

    monkeypatch.setattr("jvpn.protocol.indexes.steering_ids", collides)
    pair.wait_for(lambda: pair.context.counters["steering_id_collision"] > 1)
    assert pair.of_kind(PacketType.HANDSHAKE_RESPONSE, up=False) == []
    monkeypatch.undo()
    pair.wait_for(lambda: pair.attached)


# CONTROL


def test_control_from_anywhere_is_answered_to_the_bound_source_only(forge: Forge) -> None:
    pair = forge.pair
    before = len(pair.sent)
    outdated = messages.Health(0).encode()
    pair.inject(forge.control(ControlType.HEALTH, outdated), RACER)
    answers = [flight for flight in pair.sent[before:] if not flight.up]
    assert [flight.kind for flight in answers] == [PacketType.CONTROL]
    assert {flight.destination for flight in answers} == {pair.addresses[0]}
    assert pair.strangers == []


def test_control_is_taken_on_the_draining_index_and_answered_on_the_active_one(pair: CorePair) -> None:
    session = pair.client.session
    assert session is not None
    assert pair.client.switch("upB", pair.now_ns)
    pair.wait_for(lambda: pair.live.bindings.draining is not None)
    draining, active = pair.live.bindings.draining, pair.live.bindings.active
    assert draining is not None
    assert active is not None
    frame = bytes((ControlType.HEALTH, 0, 0, 28, 0, 0, 0, 9, 0, 1)) + messages.Health(0).encode()
    datagram = session.control.seal(draining.index, steering_id(pair.live.secrets, draining.index), frame)
    before = len(pair.sent)
    pair.inject(datagram, pair.addresses[0])
    answers = [flight for flight in pair.sent[before:] if flight.kind is PacketType.CONTROL and not flight.up]
    assert answers
    assert {flight.data[4:12] for flight in answers} == {steering_id(pair.live.secrets, active.index)}
    assert {flight.destination for flight in answers} == {pair.addresses[1]}


def test_state_is_said_each_second_until_the_client_shows_its_version(forge: Forge) -> None:
    pair, live = forge.pair, forge.live
    version = live.machine.state_version
    pair.advance(pair.policy.volatility_hold_ms)
    lossy = messages.Health(version, 2, 400_000, 40_000, 45_000, 5_000).encode()
    pair.inject(forge.control(ControlType.HEALTH, lossy), pair.addresses[0])
    assert live.machine.state is State.VOLATILE
    before = len(pair.of_kind(PacketType.CONTROL, up=False))
    pair.advance(3_500)
    assert len(pair.of_kind(PacketType.CONTROL, up=False)) - before == 3
    shown = messages.Health(live.machine.state_version).encode()
    pair.inject(forge.control(ControlType.HEALTH, shown), pair.addresses[0])
    before = len(pair.of_kind(PacketType.CONTROL, up=False))
    pair.advance(3_500)
    assert len(pair.of_kind(PacketType.CONTROL, up=False)) == before


def test_chunks_of_one_message_may_come_on_different_indexes(pair: CorePair) -> None:
    session = pair.client.session
    assert session is not None
    pair.advance(6_000)
    phase = session.rekeying.secrets.phase_number

    def first_chunk(flight: Flight) -> list[int] | None:
        whole = flight.kind is PacketType.CONTROL and len(flight.data) == MAX_CONTROL_DATAGRAM
        return [] if whole and flight.uplink == 0 else None

    pair.rules.append(first_chunk)
    session.rekeying.begin(pair.now_ms)
    session.send_health(pair.now_ms)
    pair.advance(DELAY_MS)
    assert pair.client.switch("upB", pair.now_ns)
    pair.wait_for(on(pair, 1))
    # Before the same value is said again as a new message, which is whole on one path.
    pair.wait_for(lambda: pair.live.secrets.phase_number == phase + 1, 900)


# Reattach


def test_whoever_relays_request_and_challenge_becomes_the_path(forge: Forge) -> None:
    """A challenge proves a return path and nothing else: this is not defended, and the page says so."""
    pending = forge.ack(forge.send(RACER, 1, 1))
    assert pending.result is Result.PENDING
    assert forge.ack(forge.send(RACER, 1, 1, pending.challenge)).result is Result.BOUND
    active = forge.live.bindings.active
    assert active is not None
    assert active.source == ("198.51.100.7", RACER.port)


def test_a_cold_path_takes_two_round_trips(pair: CorePair) -> None:
    pair.rules.append(lambda flight: [] if flight.kind is PacketType.PATH and flight.uplink == 1 else None)
    pair.advance(70_000)  # its challenge is too old now
    pair.link(0, False)
    began_ms = pair.now_ms
    pair.wait_for(on(pair, 1))
    assert pair.now_ms - began_ms == 4 * DELAY_MS
    assert pair.context.counters["reattach_pending"] == 1
    first, again = pair.of_kind(PacketType.REATTACH_REQUEST, up=True)
    secrets, index = pair.live.secrets, _bound(pair)
    asked, repeated = (reattach.open_request(secrets, index, flight.data) for flight in (first, again))
    assert (asked.challenge, repeated.attempt) == (reattach.NO_CHALLENGE, asked.attempt)
    assert repeated.challenge != reattach.NO_CHALLENGE


def test_the_store_knows_of_a_bind_within_50_ms_and_its_ack_does_not_wait_for_that(forge: Forge) -> None:
    pair = forge.pair
    saved = len(pair.saved)
    (flight,) = forge.send(NEW, 1, 1, forge.challenge(NEW))
    assert flight.kind is PacketType.REATTACH_ACK
    assert len(pair.saved) == saved
    pair.advance(50)
    record = pair.saved[-1].record
    assert (record.last_bound_attempt, record.state_version) == (1, pair.live.machine.state_version)
    assert record.state is State.ATTACHED


def test_an_ack_and_a_probe_ack_tell_the_highest_installed_index(forge: Forge) -> None:
    pair = forge.pair
    ack = forge.ack(forge.send(NEW, 1, 1, forge.challenge(NEW)))
    told = pair.workers[pair.live.slot].table.by_record[pair.live.record].highest_installed()
    assert ack.highest_installed == pair.live.indexes.highest_installed == told == 1 + 3 + 2


# Tickets


def test_forged_tickets_cost_no_look_into_the_store(pair: CorePair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.link(0, False)
    pair.wait_for(on(pair, 1))
    request = pair.of_kind(PacketType.REATTACH_REQUEST, up=True)[-1].data
    pair.restart_gateway()
    asked: list[bytes] = []
    load = pair.store.load

    def note(session_id: bytes) -> SessionRecord | None:
        asked.append(session_id)
        return load(session_id)

    monkeypatch.setattr(pair.store, "load", note)
    answered = len(pair.strangers)
    # One source has no more than a burst of 200 looked at.
    for number in range(60):
        pair.inject(request[:20] + bytes((number, 1)) * 22 + request[64:], RACER)
        pair.inject(request[:4] + bytes((number + 1,)) * 8 + request[12:], RACER)
        pair.inject(request[:20] + bytes(44) + request[64:], RACER)
    assert asked == []
    assert len(pair.strangers) == answered
    pair.inject(request, RACER)
    assert len(asked) == 1


def test_config_has_a_ticket_for_each_installed_index_and_comes_again_when_one_has_none(
    pair: CorePair,
) -> None:
    session = pair.client.session
    assert session is not None

    def tickets_are_whole() -> bool:
        return session.paths.tickets.keys() >= pair.live.indexes.ids.keys()

    pair.wait_for(tickets_are_whole)
    first, configured, lost = max(session.paths.tickets), pair.live.config_id, 0
    while pair.live.indexes.highest_installed <= first:
        assert pair.live.config_id == configured
        change_network(pair, lost)
        lost = 1 - lost
    assert pair.live.config_id != configured
    pair.wait_for(tickets_are_whole)
    assert max(session.paths.tickets) > first
    for index, ticket in session.paths.tickets.items():
        its_id = steering_id(pair.live.secrets, index)
        assert tickets.open_ticket(pair.store.fleet_key, its_id, ticket) == pair.live.session_id
        assert tickets.open_ticket(pair.store.fleet_key, bytes(8), ticket) is None


# Takeover


def test_after_a_takeover_nothing_is_sent_again(pair: CorePair) -> None:
    for number in range(3):
        pair.data_up(bytes(8) + bytes((number,)) * 40)
        pair.data_down(bytes(8) + bytes((number,)) * 40)
    told = len(pair.client_worker.commands)
    pair.restart_gateway()
    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
    pair.wait_for(lambda: pair.attached and split_version(pair.live.machine.state_version).epoch == 2)
    since = pair.client_worker.commands[told:]
    bound = [c for c in since if isinstance(c, commands.Rebind) and c.binding is not None]
    assert bound
    assert all(not command.resend for command in bound)
    # The gateway's workers began with it: they keep nothing of what was sent before.
    assert not pair.workers[pair.live.slot].table.by_record[pair.live.record].sent_lately


def test_the_claim_is_durable_before_the_first_packet_of_the_new_owner(pair: CorePair) -> None:
    pair.restart_gateway()
    claims: list[tuple[int, int]] = []
    claim = pair.store.claim

    def note(record: SessionRecord, *expected: object, **how: bool) -> bool:
        claims.append((record.epoch, sum(not flight.up for flight in pair.sent)))
        return claim(record, *expected, **how)  # type: ignore[arg-type]

    pair.store.claim = note
    sent = sum(not flight.up for flight in pair.sent)
    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
    pair.wait_for(lambda: pair.attached and split_version(pair.live.machine.state_version).epoch == 2)
    ((epoch, before),) = claims
    assert epoch == 2
    # Until the claim there was nothing but the one challenge that proves the client's source.
    down = [flight for flight in pair.sent if not flight.up][sent:before]
    assert {flight.kind for flight in down} <= {PacketType.REATTACH_ACK}


def test_who_loses_the_claim_binds_nothing(pair: CorePair) -> None:
    pair.restart_gateway()
    pair.store.claim = lambda *_claimed, **_how: False
    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
    pair.wait_for(lambda: pair.context.counters["claim_lost"] > 1)
    assert pair.context.sessions == {}
    assert len(pair.context.free_records) == pair.context.facts.capacity
    assert all(worker.commands == [] for worker in pair.workers.values())
