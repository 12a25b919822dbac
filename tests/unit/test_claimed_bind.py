"""A claim is written as its bind will leave the session: the record is written once for both, and again only where the
bind did not come like that."""

from core_pair import CorePair, fast_policy

from jvpn.observability.events import TransportSwitch
from jvpn.protocol.constants import PacketType
from jvpn.session.machine import State, split_version
from jvpn.supervisor.effects import TellWorker
from jvpn.supervisor.live_session import LiveSession
from workers.commands import AddSession, Rebind

#: Longer than a change waits for the store, shorter than until a living session is stored anew.
SOON_MS = 500


def taken_over(pair: CorePair) -> LiveSession:
    """The host has been restarted, and the session is back."""
    pair.restart_gateway()
    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
    pair.wait_for(lambda: pair.context.counters["takeovers"])
    return pair.live


def test_the_store_has_the_bind_with_the_claim() -> None:
    pair = CorePair(uplinks=1)
    pair.wait_for(lambda: pair.client.session is not None and pair.client.session.configured)
    pair.advance(500)
    session = taken_over(pair)
    (stored,) = pair.store.sessions()
    assert stored.state is session.machine.state is State.ATTACHED
    assert stored.state_version == session.machine.state_version
    assert stored.last_bound_attempt == session.last_attempt > 0
    assert session.dirty_ms is None
    pair.saved.clear()
    pair.advance(SOON_MS)
    assert pair.saved == []


def test_its_worker_is_given_the_session_as_it_is_bound() -> None:
    pair = CorePair(uplinks=1)
    pair.wait_for(lambda: pair.client.session is not None and pair.client.session.configured)
    pair.advance(500)
    session = taken_over(pair)
    told = [effect.command for effect in pair.done if isinstance(effect, TellWorker)]
    (added,) = [command for command in told if isinstance(command, AddSession)]
    assert added.binding is not None
    assert added.binding.index == session.pinned_indexes()[0]
    assert not [command for command in told if isinstance(command, Rebind)]
    acks = [flight for flight in pair.sent if flight.kind is PacketType.REATTACH_ACK]
    assert acks


def test_what_its_record_said_of_another_session_is_not_taken_for_its_own() -> None:
    pair = CorePair(uplinks=1)
    pair.wait_for(lambda: pair.client.session is not None and pair.client.session.configured)
    pair.advance(500)
    pair.restart_gateway()
    for record in range(pair.capacity):
        pair.gateway_page.write_activity(record, pair.now_ns, 0, 100, 0, 1, 0)
    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
    pair.wait_for(lambda: pair.context.counters["takeovers"])
    (switched,) = [event for event in pair.gateway_sink.events if isinstance(event, TransportSwitch)]
    assert switched.gap_ms is None
    assert pair.live.last_switch is not None
    assert pair.live.last_switch.gap_ms is None


def test_a_bind_that_is_refused_after_all_is_told_to_the_store() -> None:
    pair = CorePair(fast_policy(reauthenticate_on=("network",))).attach()
    pair.advance(500)
    pair.restart_gateway()
    pair.rules.append(lambda flight: [] if flight.kind is PacketType.HANDSHAKE_INIT else None)
    pair.link(0, False)
    pair.wait_for(lambda: pair.context.counters["takeovers"])
    session = pair.live
    assert session.machine.state is State.RECOVERING
    assert session.given_to_worker
    pair.advance(SOON_MS)
    (stored,) = pair.store.sessions()
    assert stored.state is State.RECOVERING
    assert split_version(stored.state_version).count == 0
    assert stored.last_bound_attempt == 0
