"""How an owner gives a session to the node at which its client asks, whatever else is on its way to the store."""

from dataclasses import replace

from core_pair import CorePair, every_pair_is_sound
from test_adoption import restart

from jvpn.observability.events import OwnershipEvent
from jvpn.session.record import SessionRecord
from jvpn.supervisor.fleet import Fleet

__all__ = ["every_pair_is_sound"]


def moved_pair() -> CorePair:
    """Its session has just taken another path, which the store has not heard of yet."""
    pair = CorePair().attach()
    pair.context.fleet = Fleet("gw")
    pair.advance(500)
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    assert kept(pair).state_version < pair.live.machine.state_version
    return pair


def kept(pair: CorePair) -> SessionRecord:
    (record,) = pair.store.sessions()
    return record


def ask(pair: CorePair) -> None:
    """Its client asks at gw2."""
    session_id, attempt = kept(pair).session_id, kept(pair).last_bound_attempt + 9
    pair.gateway.others.asked_for(session_id, "gw2", attempt, pair.now_ms)
    pair.settle()


def transferred(pair: CorePair) -> list[str]:
    return [e.owner for e in pair.events(OwnershipEvent) if e.action == "transferred"]


def test_it_goes_as_it_was_let_go() -> None:
    pair = moved_pair()
    session = pair.live
    ask(pair)
    assert kept(pair).owner_node == "gw2"
    assert kept(pair).state_version == session.machine.state_version
    assert kept(pair).last_bound_attempt == session.last_attempt
    assert pair.context.counters["handed_over"] == 1
    assert transferred(pair) == ["gw2"]


def test_what_comes_to_the_store_in_between_does_not_stop_it() -> None:
    pair = moved_pair()
    version = pair.live.machine.state_version
    pair.context.save_changes(pair.live, pair.now_ms)
    ask(pair)
    assert (kept(pair).owner_node, kept(pair).state_version) == ("gw2", version)
    assert pair.context.counters["handed_over"] == 1
    assert transferred(pair) == ["gw2"]


def test_a_save_that_comes_late_does_not_take_it_back() -> None:
    pair = moved_pair()
    pair.context.save_changes(pair.live, pair.now_ms)
    pair.settle()
    late = kept(pair)
    ask(pair)
    pair.store.save(replace(late, stored_wall_ms=late.stored_wall_ms + 1), 0)
    assert kept(pair).owner_node == "gw2"
    assert pair.store.overtaken() == [late.session_id]


def test_while_the_store_cannot_be_told_it_stays_this_nodes() -> None:
    pair = moved_pair()
    before = kept(pair)
    pair.store.broken = True
    pair.gateway.others.asked_for(before.session_id, "gw2", before.last_bound_attempt + 9, pair.now_ms)
    pair.settle()
    assert pair.context.sessions == {}
    pair.store.broken = False
    assert kept(pair) == before
    assert pair.context.counters["handed_over"] == 0
    ask(pair)
    assert kept(pair) == replace(before, owner_node="gw2")
    assert pair.context.counters["handed_over"] == 1


def test_a_gateway_without_a_fleet_may_have_another_name() -> None:
    pair = CorePair().attach()
    pair.advance(500)
    pair.context.facts = replace(pair.context.facts, node_id="another")
    assert restart(pair, records=pair.store.sessions()).sessions == 1
    session = pair.live
    pair.link(0, False)
    pair.wait_for(lambda: kept(pair).owner_node == "another")
    pair.advance(500)
    assert pair.live is session
    assert kept(pair).state_version == session.machine.state_version
    assert pair.context.counters["overtaken"] == 0
