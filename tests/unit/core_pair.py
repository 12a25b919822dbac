"""Both cores joined by a network in memory, on virtual time: no socket, no thread, no sleep.

    ClientCore ── worker ── uplinks 0, 1 … (delay, loss, duplicates by a rule) ── worker or supervisor ── GatewayCore

Workers are the real session table, judgement and probe answers on a real shared page; only what they read and write
(sockets, TUN) is replaced. So challenges, tags and replay windows are the product's, and a refused command shows.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pytest
from pair_worker import PairUdp, PairWorker

from jvpn.agent import effects as client_does
from jvpn.agent.core import ClientCore, Shell
from jvpn.agent.handshaking import Identity
from jvpn.agent.narrator import ClientNarrator
from jvpn.agent.paths import Uplink
from jvpn.agent.worker_side import RECORDS
from jvpn.observability.sink import MemorySink
from jvpn.observability.verify import audit
from jvpn.policy.model import Policy
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import DATA_KINDS, PacketType
from jvpn.protocol.keys import SessionSecrets
from jvpn.protocol.suites import suite, x25519_public
from jvpn.protocol.wire import Header, WireError
from jvpn.session.machine import split_version
from jvpn.session.pool import InnerPool
from jvpn.sim.worker import make_page
from jvpn.store.memory import MemoryStore
from jvpn.supervisor import effects as gateway_does
from jvpn.supervisor.arrival import Arrival
from jvpn.supervisor.context import GatewayContext, GatewayFacts
from jvpn.supervisor.core import GatewayCore
from jvpn.supervisor.keeping import Keeping
from jvpn.supervisor.live_session import LiveSession
from jvpn.supervisor.narrator import Narrator
from jvpn.supervisor.peers import Peer, PeerTable
from jvpn.supervisor.store_desk import Batch, DirectDesk
from workers import commands
from workers.commands import Endpoint
from workers.udp import UdpSocket

NS: Final = 1_000_000
START_MS: Final = 1_000_000
WALL_MS: Final = 1_700_000_000_000
GATEWAY: Final = Endpoint(to_bytes("203.0.113.1"), 51820)
GATEWAY_KEY: Final = b"\x11" * 32
CLIENT_KEY: Final = b"\x22" * 32
DELAY_MS: Final = 10
#: Turns of one core at one instant; more means that it spins.
MAX_TURNS: Final = 200


@dataclass(frozen=True, slots=True)
class Flight:
    """A datagram on the wire. `uplink` is None when it goes to or comes from somewhere else (a racer)."""

    up: bool
    uplink: int | None
    source: Endpoint
    destination: Endpoint
    data: bytes

    @property
    def kind(self) -> PacketType:
        return PacketType(self.data[0])


#: Delays in ms of the copies that arrive: [] loses the datagram, two values duplicate it; None: another rule's affair.
Rule = Callable[[Flight], "list[int] | None"]


@dataclass(slots=True)
class Steered:
    """What the steering maps would hold."""

    ids: dict[bytes, gateway_does.PutId] = field(default_factory=dict)
    prefixes: dict[str, int] = field(default_factory=dict)


def fast_policy(**changes: Any) -> Policy:
    """The default policy, with short deadlines where `changes` say so."""
    return replace(Policy.default(), **changes)


class RecordingDesk(DirectDesk):
    """Notes in the pair what its store is asked to change."""

    def __init__(self, pair: "CorePair") -> None:
        super().__init__(pair.store)
        self._pair = pair

    def ask(self, batch: Batch) -> None:
        self._pair.done += batch.writes
        self._pair.saved += [w for w in batch.writes if isinstance(w, gateway_does.SaveSession)]
        super().ask(batch)


class CorePair:
    """One gateway (two workers), one client with two uplinks. `advance` and `wait_for` make time pass."""

    node_id = "gw"
    endpoint = GATEWAY

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        seed: int = 1,
        uplinks: int = 2,
        slots: tuple[int, ...] = (0, 1),
        capacity: int = 64,
        pool: InnerPool | None = None,
    ) -> None:
        self.capacity = capacity
        self.pool = pool
        if _watched is not None:
            _watched.append(self)
        self.now_ns = START_MS * NS
        self.random = random.Random(seed)
        self.policy = policy or Policy.default()
        self.rules: list[Rule] = []
        self.sent: list[Flight] = []
        self.strangers: list[Flight] = []
        self.addresses = [Endpoint(to_bytes(f"10.201.{n + 1}.2"), 40_000 + n) for n in range(uplinks)]
        #: Phases and epochs whose keys each end says to have made, in order.
        self.gateway_keys: list[tuple[SessionSecrets, int]] = []
        self.client_keys: list[tuple[SessionSecrets, int]] = []
        self._order = itertools.count()
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._make_gateway(slots)
        self._make_client()

    # Building

    def _make_gateway(self, slots: tuple[int, ...]) -> None:
        self.gateway_page = make_page(self.capacity, self.random.randbytes(32))
        self.gateway_sink = getattr(self, "gateway_sink", MemorySink())
        self.steered = Steered()
        self.saved: list[gateway_does.SaveSession] = []
        self.store = getattr(self, "store", MemoryStore(b"\x77" * 32))
        self.done: list[gateway_does.Effect] = []
        self.worker_delay_ms = 0.0
        self._udp = PairUdp(
            0,
            self.endpoint.port,
            lambda data, to, local: self._send_down(data, local or self.endpoint, to),
        )
        self.workers = {slot: self._gateway_worker(slot) for slot in slots}
        facts = GatewayFacts(
            node_id=self.node_id,
            boot_id="boot",
            private_key=GATEWAY_KEY,
            public_key=x25519_public(GATEWAY_KEY),
            fleet_key=self.store.fleet_key,
            suites=frozenset({1, 2}),
            challenge_key=self.gateway_page.challenge_key,
            generation=1,
            slots=slots,
            capacity=self.capacity,
            mtu=1400,
            routes=("10.8.0.0/24",),
            default_policy=self.policy,
            pool=self.pool,
        )
        fixed = ("10.8.0.2/32",) if self.pool is None else ()
        laptop = Peer("laptop", x25519_public(CLIENT_KEY), fixed, self.policy)
        narrator = Narrator(self.gateway_sink, self.node_id, self.wall_ms)
        self.context = GatewayContext(
            facts,
            PeerTable({laptop.public_key: laptop}),
            narrator,
            self.random.randbytes,
            self.wall_ms,
            self.gateway_page,
            note_keys=lambda secrets, epoch: self.gateway_keys.append((secrets, epoch)),
        )
        self.gateway = GatewayCore(self.context)
        self.told: list[str] = []
        self.keep()

    def keep(self) -> None:
        """What this gateway core wants of the store is brought to it from now on."""
        self.keeping = Keeping(RecordingDesk(self), self.gateway, self.told.append)

    def _gateway_worker(self, slot: int) -> PairWorker:
        def say(report: commands.Report) -> None:
            self._later(self.worker_delay_ms, lambda: self._gateway_heard(slot, worker, report))

        worker = PairWorker(self.gateway_page, gateway=True, sockets={0: self._udp}, say=say)
        return worker

    def _gateway_heard(self, slot: int, worker: PairWorker, report: commands.Report) -> None:
        if self.workers[slot] is worker:
            self.gateway.worker_report(slot, report, self.now_ms)

    def restart_gateway(self) -> None:
        """The host of the gateway is back after a crash: another challenge key, nothing in memory, the same store."""
        for worker in self.workers.values():
            worker.alive = False
        self._make_gateway(tuple(self.workers))
        self.settle()

    def replace_worker(self, slot: int) -> PairWorker:
        """The worker of `slot` is dead; another process has its seat."""
        self.workers[slot].alive = False
        self.workers[slot] = self._gateway_worker(slot)
        self.gateway.worker_replaced(slot, self.now_ms)
        self.settle()
        return self.workers[slot]

    def _make_client(self) -> None:
        self.client_sink = MemorySink()
        self.client_page = make_page(RECORDS, bytes(32))
        self.configured: list[client_does.ConfigureTunnel] = []
        self.over: list[client_does.SessionOver] = []
        self.persisted_us = 0
        sockets: dict[int, UdpSocket] = {n: self._client_udp(n) for n in range(len(self.addresses))}
        self.client_worker = PairWorker(
            self.client_page, gateway=False, sockets=sockets, say=self._client_reported
        )
        self.client = self.new_client()

    def new_client(self, identity: Identity | None = None) -> ClientCore:
        """A client core as after a start: nothing remembered but the durable timestamp."""
        known = Identity(suite(1), CLIENT_KEY, x25519_public(GATEWAY_KEY), bytes(32), "default")
        return ClientCore(
            identity or known,
            self._new_uplinks(),
            self.policy,
            ClientNarrator(self.client_sink, "cl", self.wall_ms),
            Shell(
                self.random.randbytes,
                lambda: self.wall_ms() * 1000,
                self.client_page.read_activity,
                note_keys=lambda secrets, epoch: self.client_keys.append((secrets, epoch)),
            ),
            self.persisted_us,
            self.now_ns,
        )

    def _new_uplinks(self) -> list[Uplink]:
        return [Uplink(n, f"up{'ABCDEFGH'[n]}", 100, GATEWAY) for n in range(len(self.addresses))]

    def _client_udp(self, number: int) -> PairUdp:
        return PairUdp(
            number, self.addresses[number].port, lambda data, to, _local: self._send_up(number, to, data)
        )

    def _client_reported(self, report: commands.Report) -> None:
        self._later(0, lambda: self.client.worker_report(report, self.now_ns))

    # Clocks

    @property
    def now_ms(self) -> int:
        return self.now_ns // NS

    def wall_ms(self) -> int:
        return WALL_MS + self.now_ms - START_MS

    # Network

    def _send_up(self, uplink: int, to: Endpoint, data: bytes) -> None:
        self._fly(Flight(True, uplink, self.addresses[uplink], to, data))

    def _send_down(self, data: bytes, source: Endpoint, to: Endpoint) -> None:
        uplink = self.addresses.index(to) if to in self.addresses else None
        self._fly(Flight(False, uplink, source, to, data))

    def inject(self, data: bytes, source: Endpoint) -> None:
        """A datagram from anywhere reaches the gateway now."""
        self._arrive(Flight(True, None, source, GATEWAY, data))
        self.settle()

    def inject_down(self, data: bytes, uplink: int = 0) -> None:
        """A datagram that claims to be the gateway's reaches the client now."""
        self._arrive(Flight(False, uplink, GATEWAY, self.addresses[uplink], data))
        self.settle()

    def _fly(self, flight: Flight) -> None:
        self.sent.append(flight)
        delays = next((d for d in (rule(flight) for rule in self.rules) if d is not None), [DELAY_MS])
        for delay_ms in delays:
            self._later(delay_ms, lambda: self._arrive(flight))

    def _arrive(self, flight: Flight) -> None:
        if not flight.up:
            if flight.uplink is None:
                self.strangers.append(flight)
                return
            local = self.addresses[flight.uplink].address
            self.client_worker.receive(flight.uplink, flight.data, flight.source, local, self.now_ns)
            return
        kind = None
        with suppress(WireError):
            kind = Header.decode(flight.data).type
        if kind in DATA_KINDS or kind is PacketType.PATH:
            entry = self.steered.ids.get(flight.data[4:12])
            worker = self.workers[entry.slot if entry is not None else min(self.workers)]
            worker.receive(0, flight.data, flight.source, flight.destination.address, self.now_ns)
        else:
            arrival = Arrival(0, flight.destination, flight.source)
            self.gateway.receive_datagram(flight.data, arrival, self.now_ms)

    # Time

    def _later(self, delay_ms: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now_ns + round(delay_ms * NS), next(self._order), action))

    def settle(self) -> None:
        """Carry out what is due now, until nothing is."""
        for _ in range(MAX_TURNS):
            if not self._turn():
                return
        raise AssertionError("a core spins: it is busy without time passing")

    def _turn(self) -> bool:
        busy = self._carry_out()
        while self._agenda and self._agenda[0][0] <= self.now_ns:
            heapq.heappop(self._agenda)[2]()
            self._carry_out()
            busy = True
        for core, at_ms in ((self.gateway, self.gateway.get_timer()), (self.client, self.client.get_timer())):
            if (
                at_ms is not None
                and at_ms <= self.now_ms
                and not (core is self.client and self._client_is_over)
            ):
                core.handle_timer(self.now_ms if core is self.gateway else self.now_ns)
                self._carry_out()
                busy = True
        return busy

    @property
    def _client_is_over(self) -> bool:
        return self.client.stopped and self.client.closing_ms is None

    def _next_ns(self) -> int:
        due: list[float] = [self._agenda[0][0]] if self._agenda else []
        timers: list[float | None] = [*self._gateway_timers()]
        timers += [None if self._client_is_over else self.client.get_timer()]
        due += [-(-at_ms // 1) * NS for at_ms in timers if at_ms is not None]
        return int(min(due, default=self.now_ns + 1_000 * NS))

    def _gateway_timers(self) -> list[int | None]:
        return [self.gateway.get_timer(), self.keeping.get_timer()]

    def advance(self, ms: float) -> None:
        """Let `ms` pass."""
        self._run(self.now_ns + round(ms * NS), lambda: False)

    def wait_for(self, condition: Callable[[], object], within_ms: float = 60_000) -> None:
        """Let time pass until `condition` holds. AssertionError after `within_ms` of virtual time."""
        self._run(self.now_ns + round(within_ms * NS), condition)
        assert condition(), f"not within {within_ms:.0f} ms of virtual time"

    def _run(self, until_ns: int, condition: Callable[[], object]) -> None:
        self.settle()
        while not condition():
            following = self._next_ns()
            if following > until_ns:
                self.now_ns = max(self.now_ns, until_ns)
                return
            self.now_ns = max(self.now_ns, following)
            self.settle()

    # Effects

    def _carry_out(self) -> bool:
        before = len(self.done)
        self.keeping.settle(self._gateway_effects, self.now_ms)
        theirs = self.client.effects()
        for wanted in theirs:
            self._client_effect(wanted)
        return bool(len(self.done) > before or theirs)

    def _gateway_effects(self, effects: Iterable[gateway_does.Effect]) -> None:
        for effect in effects:
            self._gateway_effect(effect)

    def _gateway_effect(self, effect: gateway_does.Effect) -> None:
        self.done.append(effect)
        match effect:
            case gateway_does.SendDatagram(_listener, local, remote, data):
                self._send_down(data, local, remote)
            case gateway_does.TellWorker(slot, command):
                self.workers[slot].tell(command, self.now_ns)
            case gateway_does.WriteRow(record, row):
                self.gateway_page.write_row(record, row)
            case gateway_does.ClearRecord(record):
                self.gateway_page.clear_record(record)
            case gateway_does.PutId():
                self.steered.ids[effect.steering_id] = effect
            case gateway_does.RemoveId(steering_id):
                self.steered.ids.pop(steering_id, None)
            case gateway_does.PutPrefix(prefix, slot):
                self.steered.prefixes[prefix] = slot
            case gateway_does.RemovePrefix(prefix):
                self.steered.prefixes.pop(prefix, None)

    def _client_effect(self, effect: client_does.Effect) -> None:
        match effect:
            case client_does.SendDatagram(uplink, remote, data):
                if self.client.uplinks[uplink].link_up:
                    self._send_up(uplink, remote, data)
            case client_does.TellWorker(command):
                self.client_worker.tell(command, self.now_ns)
            case client_does.PersistTimestamp(timestamp_us):
                self.persisted_us = timestamp_us
            case client_does.ConfigureTunnel():
                self.configured.append(effect)
            case client_does.ClearRecord(record):
                self.client_page.clear_record(record)
            case client_does.SessionOver():
                self.over.append(effect)

    # What tests ask and do

    @property
    def live(self) -> LiveSession:
        """The gateway's only session."""
        (session,) = self.context.sessions.values()
        return session

    @property
    def attached(self) -> bool:
        ours = self.client.session
        return (
            ours is not None
            and ours.configured
            and ours.requester.attempt is None
            and ours.paths.active is not None
            and len(self.context.sessions) == 1
            and ours.view.state_version == self.live.machine.state_version
            and ours.view.state is self.live.machine.state
            and self.live.bindings.active is not None
            and self.live.bindings.active.index == ours.paths.paths[ours.paths.active].index
        )

    def attach(self) -> "CorePair":
        """Shake hands, get the configuration, and let every candidate be validated."""
        self.wait_for(lambda: self.attached and self._validated())
        return self

    def _validated(self) -> bool:
        session = self.client.session
        assert session is not None
        return all(path.validated(self.now_ms) for path in session.paths.paths.values())

    def link(self, uplink: int, up: bool) -> None:
        """The client's kernel reports a link event."""
        self.client.link_event(self.client.uplinks[uplink].name, up, self.now_ns)
        self.settle()

    def data_up(self, payload: bytes) -> bool:
        session = self.client_worker.table.route(bytes(4))
        sent = session is not None and self.client_worker.send_data(session.record, payload, self.now_ns)
        self.settle()
        return sent

    def data_down(self, payload: bytes) -> bool:
        live = self.live
        sent = self.workers[live.slot].send_data(live.record, payload, self.now_ns)
        self.settle()
        return sent

    def of_kind(self, kind: PacketType, *, up: bool) -> list[Flight]:
        return [flight for flight in self.sent if flight.kind is kind and flight.up is up]

    def events(self, kind: type[Any]) -> list[Any]:
        """What the gateway has told, of one kind."""
        return [event for event in self.gateway_sink.events if isinstance(event, kind)]

    @property
    def version(self) -> int:
        """The count of the gateway's state version."""
        return split_version(self.live.machine.state_version).count

    def refusals(self) -> list[str]:
        """Commands that any worker refused: there must be none, ever."""
        return [text for worker in (*self.workers.values(), self.client_worker) for text in worker.refused]


#: Only while somebody looks at them afterwards: a pair that is kept keeps its pages' descriptors, too.
_watched: list[CorePair] | None = None


@pytest.fixture(autouse=True)
def every_pair_is_sound() -> Iterator[None]:
    """Whatever a test does: no worker may have refused a command, and the auditor must accept both streams.

    Import it into the test module to have it there.
    """
    global _watched
    _watched = made = []
    yield
    _watched = None
    for pair in made:
        assert pair.refusals() == []
        assert [str(finding) for finding in audit(pair.gateway_sink.lines())] == []
        # A client that is still asking when the test ends has an attempt without a result: that is no finding.
        found = [finding for finding in audit(pair.client_sink.lines()) if finding.code != "NO_RESULT"]
        assert [str(finding) for finding in found] == []


# Rules of loss


def silent(uplink: int, *, up: bool | None = None) -> Rule:
    """Everything on this uplink is lost, in one direction or both."""

    def rule(flight: Flight) -> list[int] | None:
        return [] if flight.uplink == uplink and up in (None, flight.up) else None

    return rule


def lose(kind: PacketType, times: int, *, up: bool | None = None) -> Rule:
    """The first `times` datagrams of a type are lost."""
    left = itertools.count(times, -1)

    def rule(flight: Flight) -> list[int] | None:
        if flight.kind is not kind or up not in (None, flight.up):
            return None
        return [] if next(left) > 0 else None

    return rule
