"""A gateway's supervisor core with all that it waits for, but no sockets: its store and its events are real files, its
page real memory, its commands go into real socket pairs and are taken for carried out.

What clients would send comes from `Client`, whose own work is not to be measured.
"""

import os
import select
import socket
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from jvpn.clocks import wall_ms
from jvpn.entropy import RandomPool
from jvpn.observability.sink import open_sink
from jvpn.policy.model import Policy
from jvpn.protocol import paths, reattach
from jvpn.protocol.constants import Direction, PacketType, Transport
from jvpn.protocol.control import ControlChannel, ControlType
from jvpn.protocol.handshake import NO_PSK, HandshakeResult, Initiator
from jvpn.protocol.keys import SessionSecrets, steering_id
from jvpn.protocol.messages import Health
from jvpn.protocol.reattach import Cause, Request
from jvpn.protocol.sealed_control import SealedControl
from jvpn.protocol.suites import suite, x25519_public
from jvpn.protocol.tickets import NO_TICKET, seal_ticket
from jvpn.session.machine import Origin
from jvpn.sim.worker import make_page
from jvpn.store.sqlite import SqliteStore
from jvpn.supervisor.arrival import Arrival
from jvpn.supervisor.context import GatewayContext, GatewayFacts
from jvpn.supervisor.core import GatewayCore
from jvpn.supervisor.effects import ClearRecord, Effect, PutId, SendDatagram, TellWorker, WriteRow
from jvpn.supervisor.keeping import Keeping
from jvpn.supervisor.narrator import Narrator
from jvpn.supervisor.peers import Peer, PeerTable
from jvpn.supervisor.store_desk import DirectDesk, ThreadDesk
from workers import commands
from workers.commands import Done, Endpoint

LOCAL = Endpoint(bytes(10) + b"\xff\xff" + bytes((203, 0, 113, 1)), 51820)
NODE = "gw"
PRIVATE_KEY = b"g" * 32
#: Datagrams that are there when the supervisor looks: as many as it reads in one turn.
TURN = 64
STORE = "sessions.db"
POLICY = replace(Policy.default(), kem="none")


def private_key(number: int) -> bytes:
    return (number + 1).to_bytes(4, "big") * 8


def source(number: int, port: int) -> Endpoint:
    """Each client comes from an address of its own: no source's bucket is measured."""
    return Endpoint(bytes(10) + b"\xff\xff" + (0x64000000 + number).to_bytes(4, "big"), port)


class Clock:
    """CLOCK_BOOTTIME to begin with, then some ms for each turn."""

    def __init__(self) -> None:
        self.now_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    def turn(self, turn_ms: int = 1) -> int:
        self.now_ms += turn_ms
        return self.now_ms


class Client:
    """One client's side of a handshake, and REQUESTs of its session."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.attempts = 0
        public, ephemeral = x25519_public(PRIVATE_KEY), os.urandom(32)
        self._initiator = Initiator(
            suite(1), private_key(number), public, NO_PSK, ephemeral, os.urandom(8), 1, 0, "default"
        )
        self.result: HandshakeResult

    def init(self) -> bytes:
        return self._initiator.init_datagram

    def confirm(self, response: bytes) -> bytes:
        """The first CONTROL."""
        self.result = self._initiator.read_response(response)
        self._channel = ControlChannel()
        self._channel.send(ControlType.HEALTH, Health(0).encode(), 0)
        self._control = SealedControl(self.result.secrets, self.result.epoch, Direction.CLIENT_TO_GATEWAY)
        return self._sealed()[0]

    def acknowledge(self, datagram: bytes, index: int = 0) -> list[bytes]:
        """CONTROL on `index`: what acknowledges it, if anything has to."""
        self._channel.receive(self._control.open(index, datagram).plaintext)
        return self._sealed(index)

    def _sealed(self, index: int = 0) -> list[bytes]:
        steering, plaintexts = steering_id(self.result.secrets, index), self._channel.plaintexts_to_send(0)
        return [self._control.seal(index, steering, plaintext) for plaintext in plaintexts]

    def request(self, index: int, version: int, challenge: bytes, fleet_key: bytes | None = None) -> bytes:
        """Another attempt's REQUEST; with a ticket when `fleet_key` is given."""
        self.attempts += 1
        secrets, session_id = self.result.secrets, self.result.session_id
        return ticketed_request(secrets, session_id, self.attempts, index, version, challenge, fleet_key)


def ticketed_request(
    secrets: SessionSecrets,
    session_id: bytes,
    attempt: int,
    index: int,
    version: int,
    challenge: bytes,
    fleet_key: bytes | None,
) -> bytes:
    """A client's REQUEST, with a ticket if there is a key to make one."""
    steering, ticket = steering_id(secrets, index), NO_TICKET
    if fleet_key is not None:
        ticket = seal_ticket(fleet_key, steering, session_id, os.urandom(12))
    asked = Request(attempt, index, version, Cause.TRANSPORT_DEAD, Transport.UDP, 0, challenge)
    return reattach.seal_request(secrets, steering, attempt, asked, ticket)


class LoneGateway:
    """`work`: a folder for store and events, which a second gateway finds there. The core's clock is the caller's.

    `threaded`: the store is asked in a thread of its own, as by the supervisor; else it answers at once."""

    def __init__(self, work: Path, clients: int, generation: int = 1, *, threaded: bool = False) -> None:
        self.store = SqliteStore(work / STORE)
        self.page = make_page(clients + 64, os.urandom(32))
        self._sink = open_sink(work / f"events-{generation}.jsonl", NODE, Origin.GATEWAY)
        ours, self._worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = ours
        self._worker.setblocking(False)
        facts = GatewayFacts(
            node_id=NODE,
            boot_id=f"boot {generation}",
            private_key=PRIVATE_KEY,
            public_key=x25519_public(PRIVATE_KEY),
            fleet_key=self.store.fleet_key,
            suites=frozenset({1, 2}),
            challenge_key=self.page.challenge_key,
            generation=generation,
            slots=(0,),
            capacity=clients + 64,
            mtu=1400,
            routes=("10.0.0.0/8",),
            default_policy=POLICY,
        )
        peers = {}
        for number in range(clients):
            public = x25519_public(private_key(number))
            inner = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}/32"
            peers[public] = Peer(f"client{number}", public, (inner,), POLICY)
        narrator = Narrator(self._sink, NODE, wall_ms)
        self.context = GatewayContext(
            facts,
            PeerTable(peers),
            narrator,
            RandomPool().take,
            wall_ms,
            self.page,
        )
        self.core = GatewayCore(self.context)
        self._desk = ThreadDesk(self.store) if threaded else DirectDesk(self.store)
        if isinstance(self._desk, ThreadDesk):
            self._desk.start()
        self._keeping = Keeping(self._desk, self.core, lambda _text: None)
        self.answers: list[tuple[Endpoint, bytes]] = []
        self._told: list[int] = []

    def serve(self, datagrams: Iterable[tuple[Endpoint, bytes]], now_ms: int) -> None:
        """One turn of the supervisor's loop: these datagrams are there, and the worker carries out what it is told."""
        for remote, data in datagrams:
            self.core.receive_datagram(data, Arrival(0, LOCAL, remote), now_ms)
            self._keeping.carry_out(self._do)
        self._keeping.settle(self._do, now_ms)
        while self._told:
            told, self._told = self._told, []
            for seq in told:
                self.core.worker_report(0, Done(seq), now_ms)
                self._keeping.carry_out(self._do)
            self._keeping.settle(self._do, now_ms)
        self.core.get_timer()
        self._sink.wake()

    def finish(self, now_ms: int) -> None:
        """Wait for the store, until it has answered all that it was asked."""
        self.serve([], now_ms)
        while self._keeping.get_timer() is not None and isinstance(self._desk, ThreadDesk):
            select.select([self._desk], [], [], 1.0)
            self.serve([], now_ms)

    def keep(self, session_ids: Iterable[bytes], now_ms: int) -> None:
        """What deadlines bring to the store within 50 ms of a bind, here at once and in one transaction."""
        for session_id in session_ids:
            session = self.context.sessions[session_id]
            session.dirty_ms = None
            self.context.save(session, now_ms, 0, lambda _kept, _done_ms: None)
        self._keeping.settle(self._do, now_ms)
        self.core.get_timer()

    def _do(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            # In the supervisor's order (jvpn/supervisor/process.py).
            if isinstance(effect, PutId):
                continue
            if isinstance(effect, TellWorker):
                self._channel.send(commands.encode(effect.command))
                self._worker.recv(1 << 17)
                self._told.append(effect.command.seq)
            elif isinstance(effect, WriteRow):
                self.page.write_row(effect.record, effect.row)
            elif isinstance(effect, SendDatagram):
                self.answers.append((effect.remote, effect.data))
            elif isinstance(effect, ClearRecord):
                self.page.clear_record(effect.record)

    def catch_up(self, now_ms: int) -> None:
        """All deadlines until now: above all, the store has what binds have changed."""
        while (due_ms := self.core.get_timer()) is not None and due_ms <= now_ms:
            self.core.handle_timer(now_ms)
            self.serve([], now_ms)

    def acknowledged(self, clients: Iterable[Client], port: int, index: int, now_ms: int) -> None:
        """The clients acknowledge what CONTROL they were sent to `port`, on `index`."""
        by_source, acknowledged = {source(c.number, port): c for c in clients}, []
        for remote, data in self.taken_answers():
            if data[0] == PacketType.CONTROL:
                acknowledged += [(remote, ack) for ack in by_source[remote].acknowledge(data, index)]
        self.serve(acknowledged, now_ms)
        self.taken_answers()

    def taken_answers(self) -> list[tuple[Endpoint, bytes]]:
        answers, self.answers = self.answers, []
        return answers

    def challenge(self, client: Client, remote: Endpoint, now_ms: int) -> bytes:
        """What an ACK(pending) would tell the client."""
        return self.challenge_of(client.result.session_id, remote, now_ms)

    def challenge_of(self, session_id: bytes, remote: Endpoint, now_ms: int) -> bytes:
        slot = paths.challenge_slot(now_ms * 1_000_000)
        ends = (remote.address, remote.port, LOCAL.address, LOCAL.port)
        return paths.challenge(self.page.challenge_key, session_id, *ends, Transport.UDP, slot)

    def close(self) -> None:
        self._sink.close(10.0)
        if isinstance(self._desk, ThreadDesk):
            self._desk.close()
        else:
            self.store.close()
        self._channel.close()
        self._worker.close()
