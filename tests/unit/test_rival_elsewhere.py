"""Somebody with the session's keys asks another node for it, on an index that the client has at its own node."""

from core_pair import GATEWAY, Flight, every_pair_is_sound
from fleet_pair import SECOND, FleetPair

from jvpn.observability.events import TransportSwitch
from jvpn.protocol import paths, reattach
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import PacketType, Transport
from jvpn.protocol.keys import steering_id
from jvpn.protocol.reattach import Cause, Request
from workers.commands import Endpoint

__all__ = ["every_pair_is_sound"]

RIVAL = Endpoint(to_bytes("192.0.2.99"), 4000)


def rivals_request(pair: FleetPair, attempt: int, index: int) -> bytes:
    """As the client's own there, from another address, with that node's challenge for it."""
    session = pair.client.session
    assert session is not None
    slot = paths.challenge_slot(pair.now_ns)
    ends = (RIVAL.address, RIVAL.port, SECOND.address, SECOND.port)
    key = pair.second.context.facts.challenge_key
    challenge = paths.challenge(key, session.session_id, *ends, Transport.UDP, slot)
    version = session.view.state_version
    request = Request(attempt, index, version, Cause.TRANSPORT_DEAD, Transport.UDP, 0, challenge)
    ticket = session.paths.tickets[index]
    return reattach.seal_request(
        session.secrets, steering_id(session.secrets, index), pair.now_ns, request, ticket
    )


def test_a_client_takes_no_path_to_one_node_for_another_ones() -> None:
    pair = FleetPair(ways=((GATEWAY,), (GATEWAY,), (SECOND,)), uplinks=3)
    pair.wait_for(lambda: pair.attached)
    pair.advance(500)
    asked: list[Flight] = []

    def held_back(flight: Flight) -> list[int] | None:
        if not flight.up or flight.uplink is None or flight.kind is not PacketType.REATTACH_REQUEST:
            return None
        asked.append(flight)
        return [] if flight.destination == GATEWAY or not pair.second.context.sessions else None

    pair.rules.append(held_back)
    session = pair.client.session
    assert session is not None
    index = session.paths.paths[1].index
    pair.link(0, False)
    pair.wait_for(lambda: asked)
    for _ in range(10):
        if pair.second.context.sessions:
            break
        pair._arrive(Flight(True, None, RIVAL, SECOND, rivals_request(pair, 1, index)))
        pair.settle()
        pair.advance(100)
    assert pair.session_at(pair.second).bindings.active is not None
    pair.wait_for(lambda: pair.owned_by(pair.second))
    switches = [e for e in pair.client_sink.events if isinstance(e, TransportSwitch)]
    assert [switch.new.index for switch in switches] == [session.paths.paths[2].index]
    assert pair.client.handshakes_done == 1
