"""A gateway that knows nothing finds its sessions by their tickets; one that is gone is said to be gone."""

from dataclasses import replace

import pytest
from core_pair import GATEWAY, CorePair, Flight, fast_policy

from jvpn.observability.events import OwnershipEvent
from jvpn.protocol import tickets
from jvpn.protocol.constants import PacketType
from jvpn.session.machine import State, split_version
from jvpn.store.base import StoreError
from jvpn.supervisor.arrival import Arrival
from workers.commands import Endpoint


@pytest.fixture
def pair() -> CorePair:
    pair = CorePair()
    pair.wait_for(lambda: pair.client.session is not None and pair.client.session.configured)
    pair.advance(500)
    return pair


def attached_in_epoch(pair: CorePair, epoch: int) -> bool:
    session = pair.client.session
    return (
        session is not None
        and session.view.state is State.ATTACHED
        and split_version(session.view.state_version).epoch == epoch
    )


def send_traffic(pair: CorePair) -> None:
    """User traffic is what makes the client notice; the page says that DATA was sent."""
    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)


def restart(pair: CorePair) -> None:
    pair.restart_gateway()
    send_traffic(pair)


def requests(pair: CorePair) -> list[Flight]:
    return [flight for flight in pair.sent if flight.kind is PacketType.REATTACH_REQUEST]


def test_a_restarted_gateway_has_its_session_back_in_a_new_epoch(pair: CorePair) -> None:
    session = pair.client.session
    assert session is not None
    restart(pair)
    pair.wait_for(lambda: attached_in_epoch(pair, 2))
    assert pair.client.session is session
    assert list(pair.context.sessions) == [session.session_id]
    assert pair.client.handshakes_done == 1
    assert pair.over == []


def test_keys_of_the_new_epoch_carry_control_and_probes(pair: CorePair) -> None:
    restart(pair)
    pair.wait_for(lambda: attached_in_epoch(pair, 2))
    pair.advance(3_000)
    (session,) = pair.context.sessions.values()
    assert session.client_version == session.machine.state_version
    assert session.channel.unacknowledged == 0
    client = pair.client.session
    assert client is not None
    active = client.paths.active_path
    assert active is not None
    assert active.health.snapshot(pair.now_ns).answering


def test_the_session_can_be_taken_over_again_and_again(pair: CorePair) -> None:
    for epoch in (2, 3, 4):
        restart(pair)
        pair.wait_for(lambda epoch=epoch: attached_in_epoch(pair, epoch))
        pair.advance(1_000)
    assert pair.client.handshakes_done == 1


def test_a_client_stays_on_an_index_that_it_has_a_ticket_for_while_nobody_answers() -> None:
    pair = CorePair(uplinks=1)
    pair.wait_for(lambda: pair.client.session is not None and pair.client.session.configured)
    pair.advance(500)
    session = pair.client.session
    assert session is not None
    # The gateway installs indexes, and the CONFIG with their tickets is lost.
    pair.rules.append(lambda flight: [] if flight.kind is PacketType.CONTROL and not flight.up else None)
    while max(session.paths.tickets) >= session.paths.highest_installed:
        pair.link(0, False)
        pair.link(0, True)
        pair.wait_for(lambda: session.view.state is State.ATTACHED)
    pair.rules.append(lambda _flight: [])
    for _ in range(2 * session.paths.highest_installed):
        pair.link(0, False)
        pair.advance(100)
        pair.link(0, True)
        pair.advance(100)
    pair.restart_gateway()
    pair.rules.clear()
    pair.wait_for(lambda: attached_in_epoch(pair, 2))
    assert pair.client.session is session


def test_without_a_challenge_a_request_changes_nothing(pair: CorePair) -> None:
    pair.restart_gateway()
    pair.rules.append(lambda flight: [] if flight.kind is PacketType.REATTACH_ACK else None)
    stored = pair.store.sessions()
    send_traffic(pair)
    pair.wait_for(lambda: pair.context.counters["takeover_pending"] > 2)
    assert not pair.context.sessions
    assert pair.store.sessions() == stored
    assert len(pair.context.free_records) == pair.context.facts.capacity


def test_a_session_that_the_store_lost_is_reset_and_shaken_anew(pair: CorePair) -> None:
    session = pair.client.session
    assert session is not None
    pair.store.forget(session.session_id)
    restart(pair)
    pair.wait_for(lambda: pair.client.session is not None and pair.client.session is not session)
    assert [over.again for over in pair.over] == [True]
    assert pair.context.counters["resets_sent"] >= 1


def test_a_reset_with_another_token_is_refused(pair: CorePair) -> None:
    session = pair.client.session
    assert session is not None
    active = session.paths.active_path
    assert active is not None
    pair.inject_down(tickets.reset_datagram(active.steering_id, b"x" * 16))
    assert pair.client.session is session
    assert pair.client.counters["bad_proof"] == 1


def test_a_true_reset_is_ignored_while_the_path_lives(pair: CorePair) -> None:
    session = pair.client.session
    assert session is not None
    active = session.paths.active_path
    assert active is not None
    token = tickets.reset_token(pair.store.fleet_key, session.session_id)
    pair.inject_down(tickets.reset_datagram(active.steering_id, token))
    assert pair.client.session is session
    assert pair.over == []


def test_while_the_store_is_silent_so_is_the_gateway(pair: CorePair) -> None:
    pair.restart_gateway()
    pair.store.broken = True
    send_traffic(pair)
    pair.wait_for(lambda: pair.context.counters["store_errors"] > 2)
    assert not any(flight.kind is PacketType.RESET for flight in pair.sent)
    pair.store.broken = False
    pair.wait_for(lambda: attached_in_epoch(pair, 2))


def test_a_ticket_of_another_fleet_or_id_is_worth_nothing(pair: CorePair) -> None:
    restart(pair)
    pair.wait_for(lambda: len(requests(pair)) > 0)
    request = requests(pair)[0]
    forged = request.data[:20] + b"\x01" * 44 + request.data[64:]
    elsewhere = request.data[:4] + bytes(8) + request.data[12:]
    pair.restart_gateway()
    before = len(pair.strangers)
    for data in (forged, elsewhere):
        pair.inject(data, Endpoint(request.source.address, 9))
    assert pair.context.counters["bad_ticket"] == 2
    assert len(pair.strangers) == before


def test_an_expired_session_fails_and_leaves_the_store() -> None:
    pair = CorePair(fast_policy(session_ttl_ms=60_000, transport_loss_ttl_ms=60_000))
    pair.wait_for(lambda: pair.client.session is not None and pair.client.session.configured)
    pair.advance(200)
    (record,) = pair.store.sessions()
    pair.store.save(replace(record, expires_boot_ms=pair.now_ms + 1), 0)
    restart(pair)
    pair.wait_for(lambda: not pair.store.sessions())
    pair.wait_for(lambda: pair.over != [])
    assert pair.over[0].reason == "SESSION_TTL_EXPIRED"
    assert [(e.session_id, e.reason_code) for e in released(pair)] == [
        (record.session_id.hex(), "SESSION_TTL_EXPIRED")
    ]


def test_a_claim_that_another_node_was_faster_with_changes_nothing_here(
    pair: CorePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair.store, "claim", lambda *_seen, **_more: False)
    stored = pair.store.sessions()
    restart(pair)
    pair.wait_for(lambda: pair.context.counters["claim_lost"] > 1)
    assert not pair.context.sessions
    assert pair.store.sessions() == stored
    assert len(pair.context.free_records) == pair.context.facts.capacity
    monkeypatch.undo()
    pair.wait_for(lambda: attached_in_epoch(pair, 2))
    assert pair.client.handshakes_done == 1


def test_a_claim_that_the_store_cannot_keep_changes_nothing_and_is_made_again(
    pair: CorePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_seen: object, **_more: object) -> bool:
        raise StoreError("full")

    monkeypatch.setattr(pair.store, "claim", fails)
    restart(pair)
    pair.wait_for(lambda: pair.context.counters["store_errors"] > 1)
    assert not pair.context.sessions
    assert len(pair.context.free_records) == pair.context.facts.capacity
    assert pair.told == ["full"]
    monkeypatch.undo()
    pair.wait_for(lambda: attached_in_epoch(pair, 2))
    assert pair.client.handshakes_done == 1


def test_copies_that_come_while_a_session_is_claimed_are_answered_after_it() -> None:
    pair = CorePair(uplinks=1)
    pair.wait_for(lambda: pair.client.session is not None and pair.client.session.configured)
    asked = last_request_before_a_claim(pair)
    for _ in range(3):
        pair.gateway.receive_datagram(asked.data, Arrival(0, GATEWAY, asked.source), pair.now_ms)
    mark = len(pair.sent)
    pair.settle()
    (session,) = pair.context.sessions.values()
    assert session.machine.state is State.ATTACHED
    answers = [flight.kind for flight in pair.sent[mark:] if not flight.up]
    assert PacketType.REATTACH_ACK in answers
    assert pair.context.counters["takeovers"] == 1
    assert pair.context.counters["reattach_bind"] == 1


def last_request_before_a_claim(pair: CorePair) -> Flight:
    """A REQUEST whose challenge is that of the restarted gateway, and which has not reached it."""
    restart(pair)
    pair.wait_for(lambda: pair.context.counters["takeover_pending"])
    pair.rules.append(lambda flight: [] if flight.kind is PacketType.REATTACH_REQUEST else None)
    pair.advance(500)
    return requests(pair)[-1]


def asked_in_vain(pair: CorePair) -> Flight:
    """The gateway's host restarts, and the client's REQUEST gets no further than that; the client is gone then."""
    restart(pair)
    pair.rules.append(lambda flight: [] if flight.kind is PacketType.REATTACH_ACK else None)
    before = len(requests(pair))
    pair.wait_for(lambda: len(requests(pair)) > before)
    asked = requests(pair)[-1]
    pair.client = pair.new_client()
    pair.client_worker.table.remove(0)
    pair.wait_for(lambda: pair.attached)
    pair.rules.clear()
    return asked


def released(pair: CorePair) -> list[OwnershipEvent]:
    return [event for event in pair.events(OwnershipEvent) if event.action == "released"]


def test_what_is_stored_of_an_earlier_session_is_over_when_its_client_has_another(pair: CorePair) -> None:
    (earlier,) = pair.store.sessions()
    asked = asked_in_vain(pair)
    newer = pair.live.session_id
    assert [record.session_id for record in pair.store.sessions()] == [newer]
    (told,) = released(pair)
    assert told.session_id == earlier.session_id.hex()
    assert (told.reason_code, told.details) == ("SUPERSEDED", {"by": newer.hex()})
    resets = pair.context.counters["resets_sent"]
    pair.inject(asked.data, asked.source)
    assert pair.context.counters["resets_sent"] == resets + 1
    assert list(pair.context.sessions) == [newer]


def test_an_earlier_session_that_the_store_could_not_forget_stays_over(pair: CorePair) -> None:
    (earlier,) = pair.store.sessions()
    asked = asked_in_vain(pair)
    newer = pair.live.session_id
    pair.store.save(earlier, 0)
    pair.inject(asked.data, asked.source)
    assert list(pair.context.sessions) == [newer]
    assert [record.session_id for record in pair.store.sessions()] == [newer]
    ends = [(event.session_id, event.reason_code) for event in released(pair)]
    assert ends == [(earlier.session_id.hex(), "SUPERSEDED")] * 2


def test_a_rekey_whose_answer_was_lost_with_the_gateway_has_one_outcome(pair: CorePair) -> None:
    session = pair.client.session
    assert session is not None
    pair.advance(6_000)
    pair.rules.append(lambda flight: [] if not flight.up and flight.kind is PacketType.CONTROL else None)
    phase = session.rekeying.secrets.phase_number
    session.rekeying.begin(pair.now_ms)
    pair.advance(300)
    pair.rules.clear()
    restart(pair)
    pair.wait_for(lambda: attached_in_epoch(pair, 2))
    pair.wait_for(lambda: session.rekeying.secrets.phase_number == phase + 1)
    (live,) = pair.context.sessions.values()
    pair.wait_for(lambda: live.secrets.phase_number == phase + 1)
    assert live.secrets.phase == session.rekeying.secrets.phase


def test_an_idle_session_outlives_its_host_however_long_it_was_idle() -> None:
    """Nothing changes for longer than the transport-loss TTL, but the session had a path all the time."""
    pair = CorePair(fast_policy(transport_loss_ttl_ms=12_000, rekey_interval_ms=600_000)).attach()
    pair.advance(60_000)
    restart(pair)
    pair.wait_for(lambda: attached_in_epoch(pair, 2), 5_000)


def test_a_host_that_dies_gives_a_session_without_a_path_no_more_time() -> None:
    pair = CorePair(fast_policy(transport_loss_ttl_ms=12_000, rekey_interval_ms=600_000)).attach()
    pair.rules.append(lambda flight: [] if flight.up else None)
    pair.wait_for(lambda: not pair.live.machine.active_bindings)
    left_ms = pair.live.ttl.loss_deadline_ms
    assert left_ms is not None
    pair.advance(8_000)
    (record,) = pair.store.sessions()
    assert record.state is State.RECOVERING
    pair.restart_gateway()
    pair.rules.clear()
    pair.now_ns = max(pair.now_ns, left_ms * 1_000_000)
    send_traffic(pair)
    pair.wait_for(lambda: pair.store.sessions() == [] or pair.context.sessions)
    assert pair.context.counters["takeovers"] == 0


def test_a_store_that_has_lost_an_epoch_brings_nothing_back(pair: CorePair) -> None:
    """A backup of the store was restored: the session's keys of its next epoch have been used before."""
    old = pair.store.sessions()
    restart(pair)
    pair.wait_for(lambda: attached_in_epoch(pair, 2))
    pair.advance(1_000)
    pair.store.forget(old[0].session_id)
    pair.store.save(old[0], 0)
    restart(pair)
    pair.wait_for(lambda: pair.context.counters["store_behind"])
    assert pair.context.counters["takeovers"] == 0
    assert all(kept.session_id != old[0].session_id for kept in pair.store.sessions())
    # Its client is told that it is over, and shakes hands anew.
    pair.wait_for(lambda: pair.attached and pair.live.session_id != old[0].session_id)
    assert [over.again for over in pair.over] == [True]
