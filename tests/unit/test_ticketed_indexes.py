"""What a client asks a node that does not have its session on: indexes that it has tickets for, whatever has moved."""

from core_pair import GATEWAY, CorePair, every_pair_is_sound
from fleet_pair import SECOND, FleetPair

from jvpn.protocol.constants import PacketType
from jvpn.session.machine import Reason, State

__all__ = ["every_pair_is_sound"]


def test_a_way_that_nobody_asked_for_long_leads_to_another_node_all_the_same() -> None:
    """Its index was left behind by the others', as they came and went: no CONFIG has a ticket for it any more."""
    pair = FleetPair(ways=((GATEWAY,), (GATEWAY,), (SECOND,)), uplinks=3)
    pair.wait_for(lambda: pair.owned_by(pair))
    pair.advance(500)
    session = pair.client.session
    assert session is not None
    for number in (1, 0) * 3:
        assert pair.client.switch(pair.client.uplinks[number].name, pair.now_ns)
        pair.wait_for(lambda number=number: session.paths.active == number and pair.owned_by(pair))
        pair.advance(1_500)
    pair.drains("gw")
    pair.advance(50)
    pair.gateway.switch(pair.session_at(pair), Reason.NODE_DRAIN, pair.now_ms)
    pair.advance(1_000)
    assert pair.owned_by(pair.second)


def test_a_candidate_that_comes_and_goes_leaves_no_session_without_tickets() -> None:
    """Each time it answers on another index, and no CONFIG comes with tickets for these."""
    pair = CorePair(uplinks=2)
    pair.attach()
    pair.advance(500)
    session = pair.client.session
    assert session is not None
    pair.rules.append(lambda flight: [] if flight.kind is PacketType.CONTROL and not flight.up else None)
    for _ in range(8):
        pair.link(1, False)
        pair.advance(100)
        pair.link(1, True)
        pair.advance(1_000)
    pair.rules.append(lambda _flight: [])
    pair.wait_for(lambda: session.view.state is State.RECOVERING)
    pair.rules.clear()
    pair.restart_gateway()
    pair.wait_for(lambda: session.epoch == 2 and session.view.state is State.ATTACHED)
    assert pair.client.session is session


def test_a_candidate_that_is_never_chosen_answers_as_long_as_it_lives() -> None:
    pair = CorePair(uplinks=3)
    pair.attach()
    session = pair.client.session
    assert session is not None
    for number in (1, 0) * 3:
        assert pair.client.switch(pair.client.uplinks[number].name, pair.now_ns)
        pair.wait_for(
            lambda number=number: session.paths.active == number and session.requester.attempt is None
        )
        pair.advance(1_500)
    pair.advance(10_000)
    assert session.paths.paths[2].health.answering(pair.now_ns)
