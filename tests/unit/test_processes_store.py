"""A store that cannot be written under a gateway that goes on: what is marked, what ends, what is made good later."""

from core_pair import CorePair, every_pair_is_sound
from forge import NEW, Forge, forge
from msgspec import UNSET

from jvpn.observability.events import Event, StateChange
from jvpn.session.machine import Reason, State

__all__ = ["every_pair_is_sound", "forge"]


def marked(events: list[Event]) -> list[bool]:
    return [event.non_durable is not UNSET for event in events]


def test_a_running_session_goes_on_and_its_events_say_that_they_are_not_durable(forge: Forge) -> None:
    pair = forge.pair
    assert not any(marked(pair.gateway_sink.events))
    pair.store.broken = True
    forge.send(NEW, 1, 2, forge.challenge(NEW))
    pair.advance(200)  # the store is asked, and refuses
    assert pair.live.machine.state is State.ATTACHED
    mark = len(pair.gateway_sink.events)
    forge.send(NEW, 2, 3, forge.challenge(NEW))
    later = pair.gateway_sink.events[mark:]
    assert later
    assert all(marked(later))


def test_what_the_store_missed_is_brought_to_it_when_it_is_back(forge: Forge) -> None:
    pair = forge.pair
    pair.store.broken = True
    forge.send(NEW, 1, 2, forge.challenge(NEW))
    pair.advance(5_000)
    (said,) = pair.told  # once, however often it is tried
    pair.store.broken = False
    pair.advance(5_000)
    (stored,) = pair.store.sessions()
    assert (stored.state_version, stored.last_bound_attempt) == (pair.live.machine.state_version, 1)
    assert pair.told == [said, "the store can be written again"]
    mark = len(pair.gateway_sink.events)
    forge.send(NEW, 2, 3, forge.challenge(NEW))
    assert not any(marked(pair.gateway_sink.events[mark:]))


def test_without_the_store_nobody_is_attached() -> None:
    pair = CorePair()
    pair.store.broken = True
    pair.advance(2_000)
    assert pair.client.session is None or not pair.client.session.configured
    assert pair.context.counters["handshakes"] == 0
    assert all(event.to is not State.ATTACHED for event in pair.events(StateChange))
    pair.store.broken = False
    pair.client = pair.new_client()
    pair.attach()
    assert pair.live.machine.state is State.ATTACHED


def test_a_session_that_ended_meanwhile_does_not_come_back_out_of_the_store() -> None:
    pair = CorePair().attach()
    ended = pair.live
    pair.store.broken = True
    # The client is not told: it goes on asking for a session that the store has, once it can be read again.
    pair.rules.append(lambda flight: None if flight.up else [])
    pair.gateway.terminate(ended, Reason.OPERATOR_TERMINATED, pair.now_ms)
    pair.advance(500)
    pair.rules.clear()
    pair.store.broken = False
    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
    pair.wait_for(lambda: pair.context.counters["resets_sent"] or pair.context.counters["takeovers"])
    assert pair.context.counters["takeovers"] == 0
    pair.wait_for(lambda: all(kept.session_id != ended.session_id for kept in pair.store.sessions()))
    pair.wait_for(lambda: pair.attached)
    assert pair.live.session_id != ended.session_id


def test_a_session_that_ended_meanwhile_does_not_stay_in_the_store(forge: Forge) -> None:
    pair, ended = forge.pair, forge.live
    pair.store.broken = True
    pair.gateway.terminate(ended, Reason.OPERATOR_TERMINATED, pair.now_ms)
    pair.settle()
    pair.store.broken = False
    assert [record.session_id for record in pair.store.sessions()] == [ended.session_id]
    # Whatever is kept next takes it away.
    pair.rules.clear()
    pair.client_worker.table.remove(0)
    pair.client = pair.new_client()
    pair.attach()
    assert [record.session_id for record in pair.store.sessions()] == [pair.live.session_id]
