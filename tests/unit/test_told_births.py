"""A birth that fails is told of once, also where the supervisor dies soon afterwards."""

from core_pair import DELAY_MS, CorePair, every_pair_is_sound
from test_adoption import restart
from test_keeping import SlowDesk

from jvpn.observability.events import StateChange
from jvpn.protocol.constants import PacketType
from jvpn.session.machine import State
from jvpn.supervisor.keeping import STORE_PATIENCE_MS, Keeping

__all__ = ["every_pair_is_sound"]


def ends(pair: CorePair) -> list[str]:
    changes = [event for event in pair.gateway_sink.events if isinstance(event, StateChange)]
    return [event.reason_code for event in changes if event.to is State.TERMINATED]


def said(pair: CorePair) -> int:
    return sum(flight.up and flight.kind is PacketType.CONTROL for flight in pair.sent)


def unborn() -> CorePair:
    """Its session waits for a store that does not answer, and what the client has repeated meanwhile has come."""
    pair, desk = CorePair(uplinks=1), SlowDesk()
    pair.keeping = Keeping(desk, pair.gateway, pair.told.append)
    # It repeats what it has no word of.
    pair.rules.append(lambda flight: [] if not flight.up and flight.kind is PacketType.CONTROL else None)
    pair.wait_for(lambda: desk.asked and pair.context.confirming)
    before = said(pair)
    pair.wait_for(lambda: said(pair) > before)
    pair.advance(2 * DELAY_MS)
    assert pair.context.confirming
    return pair


def test_the_next_supervisor_does_not_tell_of_it_again() -> None:
    pair = unborn()
    pair.rules.append(lambda _flight: [])
    pair.wait_for(lambda: ends(pair), STORE_PATIENCE_MS + 100)
    assert ends(pair) == ["HANDSHAKE_FAIL"]
    result = restart(pair, records=[])
    assert (result.sessions, result.ended) == (0, [])
    assert ends(pair) == ["HANDSHAKE_FAIL"]


def test_what_the_store_has_not_kept_is_in_nobodys_page() -> None:
    pair = unborn()
    assert [
        record for record in range(pair.capacity) if any(pair.gateway_page.read_row(record).session_id)
    ] == []
    assert restart(pair, records=[]).ended == []
