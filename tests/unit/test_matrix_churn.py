"""Sessions that come, move all at once, lose their gateway, come back all at once, and go: nothing is left of them."""

from dataclasses import dataclass, field

from core_pair import GATEWAY, CorePair, Flight, every_pair_is_sound, fast_policy
from test_thousand_sessions import acknowledge, add_peer, shake

from jvpn.protocol import paths, reattach, tickets
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import Direction, PacketType, Transport
from jvpn.protocol.control import ControlChannel
from jvpn.protocol.keys import SessionSecrets, steering_id
from jvpn.protocol.reattach import Cause, Request, Result
from jvpn.protocol.sealed_control import SealedControl
from jvpn.session.machine import Reason, State, split_version
from workers.commands import Endpoint

__all__ = ["every_pair_is_sound"]

CLIENTS = 250
SPARE = 8
#: A gateway answers 100 INITs a second without a cookie.
BETWEEN_INITS_MS = 11


@dataclass
class ClientEnd:
    """What a client has of its session. `versions`: those that it was told of, in that order."""

    number: int
    session_id: bytes
    secrets: SessionSecrets
    attempt: int = 0
    versions: list[int] = field(default_factory=lambda: [0])
    control: dict[int, tuple[SealedControl, ControlChannel]] = field(default_factory=dict)

    @property
    def source(self) -> Endpoint:
        """Another one for each attempt."""
        return Endpoint(to_bytes(f"100.{65 + self.attempt}.{self.number >> 8}.{self.number & 255}"), 5_000)

    def request(self, pair: CorePair, ticket: bool) -> bytes:
        """Of the next attempt, on the next index."""
        self.attempt += 1
        steering, source = steering_id(self.secrets, self.attempt), self.source
        slot = paths.challenge_slot(pair.now_ns)
        ends = (source.address, source.port, GATEWAY.address, GATEWAY.port)
        challenge = paths.challenge(
            pair.context.facts.challenge_key, self.session_id, *ends, Transport.UDP, slot
        )
        asked = Request(
            self.attempt,
            self.attempt,
            self.versions[-1],
            Cause.TRANSPORT_DEAD,
            Transport.UDP,
            0,
            challenge,
        )
        if not ticket:
            return reattach.seal_request(self.secrets, steering, self.attempt, asked)
        sealed = tickets.seal_ticket(pair.store.fleet_key, steering, self.session_id, bytes(12))
        return reattach.seal_request(self.secrets, steering, self.attempt, asked, sealed)

    def hear(self, flight: Flight) -> None:
        ack = reattach.open_ack(self.secrets, flight.data)
        assert (ack.result, ack.bound_index) == (Result.BOUND, self.attempt)
        assert ack.state_version > self.versions[-1]
        self.versions.append(ack.state_version)

    def acknowledge(self, pair: CorePair, said: list[Flight]) -> None:
        epoch = split_version(self.versions[-1]).epoch
        fresh = SealedControl(self.secrets, epoch, Direction.CLIENT_TO_GATEWAY), ControlChannel()
        control, channel = self.control.setdefault(epoch, fresh)
        acknowledge(pair, said, control, channel, self.attempt, steering_id(self.secrets, self.attempt))


def come(pair: CorePair, number: int, round_number: int = 0) -> ClientEnd:
    result = shake(pair, number, round_number)
    pair.advance(BETWEEN_INITS_MS)
    return ClientEnd(number, result.session_id, result.secrets)


def all_at_once(pair: CorePair, clients: list[ClientEnd], *, ticket: bool = False) -> None:
    """Each asks once, all within a second, and each has its answer within another."""
    mark, told = len(pair.sent), [len(client.versions) for client in clients]
    for client in clients:
        pair.inject(client.request(pair, ticket), client.source)
        pair.advance(900 / len(clients))
    pair.advance(1_000)
    by_source = {client.source: client for client in clients}
    said: dict[Endpoint, list[Flight]] = {client.source: [] for client in clients}
    for flight in pair.sent[mark:]:
        if flight.kind is PacketType.REATTACH_ACK:
            by_source[flight.destination].hear(flight)
        said.setdefault(flight.destination, []).append(flight)
    for client in clients:
        client.acknowledge(pair, said[client.source])
    assert [len(client.versions) for client in clients] == [before + 1 for before in told]


def check_apart(pair: CorePair, count: int) -> None:
    """Each session has what it needs, and nothing is anybody else's or nobody's."""
    context = pair.context
    assert len(context.sessions) == count
    assert {session.machine.state for session in context.sessions.values()} <= {State.ATTACHED}
    records = {session.record for session in context.sessions.values()}
    assert records.isdisjoint(context.free_records)
    assert len(records) + len(set(context.free_records)) == pair.capacity == CLIENTS + SPARE
    installed = sum(len(session.indexes.ids) for session in context.sessions.values())
    assert len(context.by_steering_id) == len(pair.steered.ids) == installed
    assert len(pair.steered.prefixes) == len(context.by_peer) == count
    assert sum(len(worker.table.by_record) for worker in pair.workers.values()) == count
    assert sum(context.load.values()) == count
    assert (context.awaiting, context.confirming, context.departing, context.unforgotten) == ({}, {}, {}, {})
    assert {record.session_id for record in pair.store.sessions()} == set(context.sessions)


def test_f32_hundreds_of_sessions_move_die_come_back_and_leave_nothing() -> None:
    policy = fast_policy(kem="none")
    pair = CorePair(policy, capacity=CLIENTS + SPARE)
    pair.client.stopped = True

    def peers() -> None:
        for number in range(1, CLIENTS + 1):
            add_peer(pair, number, policy)

    peers()
    clients = [come(pair, number) for number in range(1, CLIENTS + 1)]
    check_apart(pair, CLIENTS)

    # Some end, and some of those come back; others shake hands again while they have a session.
    for client in clients[::5]:
        pair.gateway.terminate(
            pair.context.sessions[client.session_id], Reason.OPERATOR_TERMINATED, pair.now_ms
        )
    pair.advance(2_000)
    check_apart(pair, CLIENTS - CLIENTS // 5)
    for at in (*range(0, CLIENTS, 5), *range(1, CLIENTS, 10)):
        clients[at] = come(pair, clients[at].number, 1)
    pair.advance(2_000)
    check_apart(pair, CLIENTS)

    all_at_once(pair, clients)
    all_at_once(pair, clients)
    check_apart(pair, CLIENTS)

    pair.restart_gateway()
    peers()
    all_at_once(pair, clients, ticket=True)
    check_apart(pair, CLIENTS)
    assert {split_version(client.versions[-1]).epoch for client in clients} == {2}
    assert pair.context.counters["takeovers"] == CLIENTS

    for session in list(pair.context.sessions.values()):
        pair.gateway.terminate(session, Reason.OPERATOR_TERMINATED, pair.now_ms)
    pair.advance(5_000)
    check_apart(pair, 0)
    assert pair.context.farewells == []
    assert pair.gateway.get_timer() is None
