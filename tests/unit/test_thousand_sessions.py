"""A thousand clients of one gateway: each has its own session, worker and addresses, and none costs the others."""

import pytest
from core_pair import CorePair, Flight, fast_policy

from jvpn.policy.model import Policy
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import Direction, PacketType
from jvpn.protocol.control import ControlChannel, ControlType
from jvpn.protocol.handshake import NO_PSK, HandshakeResult, Initiator
from jvpn.protocol.keys import steering_id
from jvpn.protocol.messages import Health
from jvpn.protocol.sealed_control import SealedControl
from jvpn.protocol.suites import suite, x25519_public
from jvpn.session.machine import Reason, State
from jvpn.supervisor.peers import Peer
from workers.commands import Endpoint

CLIENTS = 1_000


def private_key(number: int) -> bytes:
    return number.to_bytes(4, "big") * 8


def source(number: int) -> Endpoint:
    return Endpoint(to_bytes(f"100.64.{number >> 8}.{number & 255}"), 5_000)


@pytest.fixture(scope="module")
def crowd() -> CorePair:
    """A gateway with CLIENTS sessions, all shaken by hand."""
    policy = fast_policy(kem="none")
    pair = CorePair(policy, capacity=CLIENTS + 8)
    for number in range(1, CLIENTS + 1):
        add_peer(pair, number, policy)
        shake(pair, number)
        pair.advance(15)
    pair.advance(100)
    return pair


def add_peer(pair: CorePair, number: int, policy: Policy) -> None:
    public = x25519_public(private_key(number))
    inner = f"10.9.{number >> 8}.{number & 255}/32"
    pair.context.peers.peers[public] = Peer(f"peer-{number}", public, (inner,), policy)


def shake(pair: CorePair, number: int, round_number: int = 0) -> HandshakeResult:
    """The handshake of client `number`; each one of its has a round of its own."""
    gateway_public = pair.context.facts.public_key
    unique = number + CLIENTS * round_number
    ephemeral = (unique + CLIENTS).to_bytes(4, "big") * 8
    random8 = unique.to_bytes(8, "big")
    initiator = Initiator(
        suite(1), private_key(number), gateway_public, NO_PSK, ephemeral, random8, unique, 0, "default"
    )
    mark = len(pair.sent)
    pair.inject(initiator.init_datagram, source(number))
    (response,) = [flight.data for flight in pair.sent[mark:] if flight.destination == source(number)]
    result = initiator.read_response(response)
    control = SealedControl(result.secrets, result.epoch, Direction.CLIENT_TO_GATEWAY)
    channel = ControlChannel()
    channel.send(ControlType.HEALTH, Health(0).encode(), 0)
    (plaintext,) = channel.plaintexts_to_send(0)
    first_id = steering_id(result.secrets, 0)
    mark = len(pair.sent)
    pair.inject(control.seal(0, first_id, plaintext), source(number))
    said = [flight for flight in pair.sent[mark:] if flight.destination == source(number)]
    acknowledge(pair, said, control, channel, 0, first_id)
    return result


def acknowledge(
    pair: CorePair,
    said: list[Flight],
    control: SealedControl,
    channel: ControlChannel,
    index: int,
    first_id: bytes,
) -> None:
    """Take what the gateway has said to a client by CONTROL: otherwise it would be said again and again."""
    for flight in said:
        if flight.kind is PacketType.CONTROL and flight.data[4:12] == first_id:
            channel.receive(control.open(index, flight.data).plaintext)
    for plaintext in channel.plaintexts_to_send(pair.now_ms):
        pair.inject(control.seal(index, first_id, plaintext), said[0].destination)


def test_every_client_has_a_session_of_its_own(crowd: CorePair) -> None:
    sessions = list(crowd.context.sessions.values())
    assert len(sessions) >= CLIENTS
    assert {session.machine.state for session in sessions} == {State.ATTACHED}
    assert len({session.record for session in sessions}) == len(sessions)
    ids = [steering_id for session in sessions for steering_id in session.indexes.ids.values()]
    assert len(set(ids)) == len(ids)


def test_they_are_spread_evenly_over_the_workers(crowd: CorePair) -> None:
    load = [0, 0]
    for session in crowd.context.sessions.values():
        load[session.slot] += 1
    assert abs(load[0] - load[1]) <= 1


def test_one_that_ends_leaves_the_others_alone(crowd: CorePair) -> None:
    before = dict(crowd.context.sessions)
    victim = next(iter(before.values()))
    crowd.gateway.terminate(victim, Reason.OPERATOR_TERMINATED, crowd.now_ms)
    crowd.settle()
    del before[victim.session_id]
    assert crowd.context.sessions == before
    assert all(session.machine.state is State.ATTACHED for session in before.values())


def test_a_lost_worker_raises_the_generation_of_its_own_sessions_only(crowd: CorePair) -> None:
    before = {session.session_id: session.generation for session in crowd.context.sessions.values()}
    crowd.replace_worker(0)
    for session in crowd.context.sessions.values():
        raised = session.generation > before[session.session_id]
        assert raised == (session.slot == 0)
