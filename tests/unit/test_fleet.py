"""A session whose owner is another node: who may take it, who is sent where, and how an owner gives it away."""

from dataclasses import replace

import msgspec
import pytest
from core_pair import CorePair, every_pair_is_sound
from test_store_addresses import pool_of
from test_takeover import attached_in_epoch, send_traffic

from jvpn.observability.events import OwnershipEvent, ReattachResult
from jvpn.session.record import SessionRecord
from jvpn.store.node_about import NodeAbout
from jvpn.supervisor.fleet import ASK_AGAIN_MS, MOST_REFERRED, OWNER_PATIENCE_MS, Fleet

__all__ = ["every_pair_is_sound"]

THERE = NodeAbout(advertise=("198.51.100.7:51820",))


def give(pair: CorePair, record: SessionRecord, to: str) -> None:
    """The owner of a stored session gives it away."""
    assert pair.store.claim(replace(record, owner_node=to), record.state_version, record.owner_node)


@pytest.fixture
def pair() -> CorePair:
    """The client's session is in the store as gw2's, and this node knows nothing of it."""
    pair = CorePair().attach()
    pair.advance(500)
    (record,) = pair.store.sessions()
    give(pair, record, "gw2")
    pair.restart_gateway()
    pair.context.fleet = Fleet("gw")
    send_traffic(pair)
    return pair


def nodes(pair: CorePair, **others: NodeAbout) -> None:
    assert pair.context.fleet is not None
    pair.context.fleet.nodes = {"gw": NodeAbout(), **others}


def requests_are_refused(pair: CorePair, count: int) -> None:
    pair.wait_for(lambda: pair.context.counters["not_owner"] >= count)


def test_while_the_owner_lives_its_sessions_are_not_taken(pair: CorePair) -> None:
    nodes(pair, gw2=THERE)
    requests_are_refused(pair, 3)
    assert pair.context.sessions == {}
    (record,) = pair.store.sessions()
    assert record.owner_node == "gw2"
    # The client neither gives up nor begins anew: it asks again under the same attempt.
    assert {e.result for e in pair.client_sink.events if isinstance(e, ReattachResult)} == set()
    nodes(pair)
    pair.wait_for(lambda: attached_in_epoch(pair, 2), ASK_AGAIN_MS + 200)
    assert pair.client.handshakes_done == 1


def test_nothing_is_taken_before_it_is_known_who_lives(pair: CorePair) -> None:
    requests_are_refused(pair, 2)
    assert pair.context.sessions == {}
    nodes(pair)
    pair.wait_for(lambda: attached_in_epoch(pair, 2))


def test_a_draining_owners_sessions_are_taken(pair: CorePair) -> None:
    nodes(pair, gw2=NodeAbout(draining=True))
    pair.wait_for(lambda: attached_in_epoch(pair, 2))
    assert pair.store.asked == []


def test_an_owner_that_the_client_does_not_reach_is_asked(pair: CorePair) -> None:
    nodes(pair, gw2=THERE)
    requests_are_refused(pair, 1)
    assert pair.store.asked == []
    pair.wait_for(lambda: pair.store.asked)
    session = pair.client.session
    assert session is not None
    assert session.requester.attempt is not None
    assert pair.store.asked == [(session.session_id, "gw2", "gw", session.requester.attempt.number)]
    # It is not asked with each of them, but again.
    pair.advance(OWNER_PATIENCE_MS - 2 * ASK_AGAIN_MS)
    assert len(pair.store.asked) == 1
    pair.wait_for(lambda: len(pair.store.asked) == 2, 4 * ASK_AGAIN_MS)


def test_what_an_owner_has_handed_over_is_taken(pair: CorePair) -> None:
    nodes(pair, gw2=THERE)
    pair.wait_for(lambda: pair.store.asked)
    (record,) = pair.store.sessions()
    give(pair, record, "gw")
    pair.wait_for(lambda: attached_in_epoch(pair, 2))


def test_a_client_that_is_sent_elsewhere_stays_where_it_has_tickets(pair: CorePair) -> None:
    """Whoever refuses it says nothing of what other nodes know: without a ticket they would never find the session."""
    nodes(pair, gw2=THERE)
    for _ in range(8):
        before = pair.context.counters["not_owner"]
        for up in (False, True):
            for uplink in (0, 1):
                pair.link(uplink, up)
            pair.advance(5)
        requests_are_refused(pair, before + 1)
    nodes(pair)
    pair.wait_for(lambda: attached_in_epoch(pair, 2))


def test_the_memory_of_who_was_sent_away_is_bounded() -> None:
    fleet = Fleet("gw")
    for number in range(MOST_REFERRED + 5):
        assert not fleet.referred(number.to_bytes(16, "big"), 1, number)
    first, last = bytes(16), (MOST_REFERRED + 4).to_bytes(16, "big")
    late_ms = MOST_REFERRED + ASK_AGAIN_MS + 5
    assert fleet.referred(last, 1, late_ms)
    assert not fleet.referred(first, 1, late_ms)


# The owner's side


def owned(pair: CorePair) -> list[tuple[str, str]]:
    return [(e.action, e.owner) for e in pair.events(OwnershipEvent)]


def test_an_owner_hands_a_session_over_whose_client_asks_elsewhere() -> None:
    pair = CorePair().attach()
    session_id = pair.live.session_id
    pair.gateway.others.asked_for(session_id, "gw2", pair.live.last_attempt + 1, pair.now_ms)
    pair.settle()
    assert pair.context.sessions == {}
    (record,) = pair.store.sessions()
    assert record.owner_node == "gw2"
    assert owned(pair)[-1] == ("transferred", "gw2")
    # What is under way is still delivered, both ways.
    assert pair.data_up(b"late")
    pair.wait_for(lambda: b"late" in [p for worker in pair.workers.values() for p in worker.delivered])
    (departed,) = pair.context.departing.values()
    assert pair.workers[departed.slot].send_data(departed.record, b"down", pair.now_ns)
    pair.wait_for(lambda: b"down" in pair.client_worker.delivered)
    # In the end nothing is left of it, in the maps or at a worker.
    pair.rules.append(lambda flight: [] if flight.up else None)
    pair.advance(2_000)
    assert pair.steered.ids == {}
    assert pair.steered.prefixes == {}
    assert sorted(pair.context.free_records) == list(range(pair.capacity))


def test_an_owner_hands_over_what_it_has_only_in_the_store() -> None:
    """It began anew, or let the session go when the store could not be told: its client may reach others alone."""
    pair = CorePair().attach()
    pair.advance(500)
    (record,) = pair.store.sessions()
    pair.restart_gateway()
    pair.gateway.others.asked_for(record.session_id, "gw2", 9, pair.now_ms)
    pair.settle()
    assert pair.store.sessions() == [replace(record, owner_node="gw2")]
    assert [(e.action, e.owner) for e in pair.events(OwnershipEvent)][-1] == ("transferred", "gw2")
    # It is not this node's to give any more.
    pair.gateway.others.asked_for(record.session_id, "gw3", 9, pair.now_ms)
    pair.settle()
    assert pair.store.sessions() == [replace(record, owner_node="gw2")]


def test_a_client_that_has_been_bound_meanwhile_stays() -> None:
    pair = CorePair().attach()
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    session = pair.live
    pair.gateway.others.asked_for(session.session_id, "gw2", session.last_attempt, pair.now_ms)
    pair.settle()
    assert pair.live is session
    assert pair.context.counters["not_handed_over"] == 1


def test_an_owner_that_was_overtaken_lets_go_without_a_word_to_the_store() -> None:
    pair = CorePair().attach()
    (record,) = pair.store.sessions()
    theirs = replace(record, owner_node="gw2", state_version=record.state_version + (1 << 40))
    pair.store.save(theirs, 0)
    pair.live.dirty_ms = pair.now_ms
    pair.context.touched.add(pair.live)
    pair.wait_for(lambda: not pair.context.sessions)
    assert pair.store.sessions() == [theirs]
    assert pair.context.counters["overtaken"] == 1


def test_a_session_may_come_back_before_its_traffic_has_drained() -> None:
    pair = CorePair().attach()
    session_id, attempt = pair.live.session_id, pair.live.last_attempt + 1
    pair.gateway.others.asked_for(session_id, "gw2", attempt, pair.now_ms)
    pair.settle()
    pair.context.fleet = Fleet("gw")
    nodes(pair)
    assert pair.client.session is not None
    pair.link(0, False)
    pair.wait_for(lambda: attached_in_epoch(pair, 2))
    pair.advance(2_000)
    assert list(pair.context.sessions) == [session_id]
    assert pair.context.departing == {}
    pair.data_up(b"again")
    pair.wait_for(lambda: b"again" in [p for worker in pair.workers.values() for p in worker.delivered])


def test_a_session_that_a_watch_says_is_lost_is_looked_up_first() -> None:
    pair = CorePair().attach()
    pair.context.fleet = Fleet("gw")
    session = pair.live
    pair.gateway.others.all_owners({})
    pair.gateway.others.doubt([session.session_id, bytes(16)])
    pair.settle()
    assert pair.live is session
    (record,) = pair.store.sessions()
    give(pair, record, "gw2")
    pair.gateway.others.all_owners({session.session_id: "gw"})
    pair.settle()
    assert pair.live is session
    pair.gateway.others.all_owners({session.session_id: "gw2"})
    pair.settle()
    assert pair.context.sessions == {}
    assert owned(pair)[-1] == ("transferred", "gw2")


def test_a_session_that_another_node_has_ended_ends() -> None:
    pair = CorePair().attach()
    session = pair.live
    pair.store.forget(session.session_id)
    pair.gateway.others.doubt([session.session_id])
    pair.settle()
    assert session.machine.terminated
    assert session.last_reason == "OWNERSHIP_CONFLICT"
    assert len(pair.context.worker_errors) == 1
    # Its client does not give up: nobody has asked for that.
    pair.wait_for(lambda: pair.attached and pair.live is not session)


def test_while_the_store_cannot_say_a_session_goes_on() -> None:
    pair = CorePair().attach()
    pair.store.broken = True
    pair.gateway.others.doubt([pair.live.session_id])
    pair.settle()
    assert not pair.live.machine.terminated


def test_nodes_with_another_pool_are_named_once(pair: CorePair) -> None:
    mine, other = pool_of("10.8.0.0/24"), pool_of("10.8.0.0/24", without=("10.8.0.7/32",))
    pair.context.facts = replace(pair.context.facts, pool=mine)
    others = pair.gateway.others
    same, apart = NodeAbout(pool=mine.fingerprint), NodeAbout(pool=other.fingerprint)
    others.alive({"gw": same, "gw2": same, "gw3": apart})
    others.announced("gw3", apart)
    others.announced("gw4", NodeAbout())
    third, fourth = pair.context.worker_errors
    assert third.startswith("node gw3 has another pool")
    assert fourth.startswith("node gw4 has another pool")
    others.announced("gw3", same)
    others.announced("gw4", None)
    others.announced("gw3", apart)
    assert len(pair.context.worker_errors) == 3


def test_who_lives_follows_what_nodes_say(pair: CorePair) -> None:
    others = pair.gateway.others
    others.announced("gw2", THERE)
    assert pair.context.fleet is not None
    assert pair.context.fleet.nodes is None
    others.alive({"gw": NodeAbout()})
    others.announced("gw2", THERE)
    assert pair.context.fleet.endpoint_of("gw2") == THERE.advertise[0]
    others.announced("gw2", None)
    assert pair.context.fleet.endpoint_of("gw2") == ""
    assert pair.context.fleet.nodes == {"gw": NodeAbout()}


def test_a_rekey_that_the_fleets_store_does_not_keep_is_none() -> None:
    """Who takes the session over has no other keys than the stored ones."""
    pair = CorePair().attach()
    pair.context.fleet = Fleet("gw")
    nodes(pair)
    pair.advance(11_000)
    session = pair.client.session
    assert session is not None
    before = session.rekeying.secrets.phase_number
    pair.store.broken = True
    session.rekeying.begin(pair.now_ms)
    pair.wait_for(lambda: pair.context.counters["rekey_not_kept"] >= 2, 10_000)
    assert session.rekeying.secrets.phase_number == pair.live.secrets.phase_number == before
    assert pair.data_up(b"under the old keys")
    pair.store.broken = False
    pair.wait_for(lambda: session.rekeying.secrets.phase_number == before + 1, 10_000)
    pair.advance(500)
    assert pair.live.secrets.phase_number == before + 1


def test_tickets_of_another_owner_lead_to_the_session_still() -> None:
    """It had installed higher indexes than the new owner has."""
    pair = CorePair().attach()
    pair.advance(500)
    session = pair.client.session
    assert session is not None
    before = dict(session.paths.tickets)
    highest = max(before)
    configs = []
    take = session.configuring.on_config
    session.configuring.on_config = lambda config, now_ms: configs.append(config)  # type: ignore[method-assign]
    pair.gateway._controlling.configure(pair.live, pair.now_ms, again=True)
    pair.context.flush(pair.live, pair.now_ms)
    pair.wait_for(lambda: configs)
    fewer = {index: ticket for index, ticket in configs[0].tickets.items() if int(index) < highest}
    take(msgspec.structs.replace(configs[0], tickets=fewer), pair.now_ms)
    assert session.paths.tickets[highest] == before[highest]
    assert max(session.paths.tickets) == highest


def test_only_a_bind_tells_a_client_what_is_installed(pair: CorePair) -> None:
    """Who answers that a REQUEST is pending may not have the session, and an owner may have installed less than the
    one before."""
    session = pair.client.session
    assert session is not None
    before = session.paths.highest_installed
    nodes(pair, gw2=THERE)
    requests_are_refused(pair, 2)
    assert pair.context.counters["takeover_pending"]
    assert session.paths.highest_installed == before
    session.paths.highest_installed = 60
    nodes(pair)
    pair.wait_for(lambda: attached_in_epoch(pair, 2))
    assert session.paths.highest_installed < 20
