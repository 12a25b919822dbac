"""The gateway of a simulation: the real core, store and workers, and everything of it that can die.

worker      killed; the holder seats another process, which knows nothing
supervisor  killed; workers and page go on, another one adopts what it finds
host        killed; only the store is left, and the clock begins anew
"""

import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Final

from jvpn.policy.model import Policy
from jvpn.protocol.constants import DATA_KINDS, PacketType
from jvpn.protocol.suites import x25519_public
from jvpn.protocol.wire import Header, WireError
from jvpn.session.pool import AddressPool, InnerPool, ranges_of
from jvpn.sim.clock import Agenda, MachineClock, Reports, TimedSink
from jvpn.sim.network import GATEWAY, Flight
from jvpn.sim.worker import SimWorker, make_page
from jvpn.store.memory import MemoryStore
from jvpn.supervisor import effects as does
from jvpn.supervisor.adoption import Adoption, Found
from jvpn.supervisor.context import GatewayContext, GatewayFacts
from jvpn.supervisor.core import GatewayCore
from jvpn.supervisor.keeping import Keeping
from jvpn.supervisor.live_session import Arrival
from jvpn.supervisor.narrator import Narrator
from jvpn.supervisor.peers import Peer, PeerTable
from jvpn.supervisor.store_desk import DirectDesk
from workers import commands
from workers.commands import Endpoint
from workers.page import TornRow

GATEWAY_KEY: Final = b"\x11" * 32
CLIENT_KEY: Final = b"\x22" * 32
INNER_ADDRESS: Final = "10.8.0.2"
#: The one address that there is for the client: whoever loses it, or keeps it from the client, is found out.
POOL: Final = InnerPool((AddressPool(4, ranges_of(ip_network("10.8.0.0/30"), [ip_network("10.8.0.1/32")])),))
#: Datagrams that the supervisor's sockets hold while nobody reads them.
BACKLOG: Final = 256


@dataclass(slots=True)
class Steered:
    """What the steering maps would hold."""

    ids: dict[bytes, does.PutId] = field(default_factory=dict)
    prefixes: dict[str, int] = field(default_factory=dict)


class GatewayNode:
    """`core` is None while there is no supervisor. `send(datagram, from, to)` and `deliver(packet)` are the world's."""

    def __init__(
        self,
        agenda: Agenda,
        draw: random.Random,
        policy: Policy,
        send: Callable[[bytes, Endpoint, Endpoint], None],
        deliver: Callable[[bytes], None],
        *,
        slots: tuple[int, ...] = (0, 1),
        capacity: int = 8,
    ) -> None:
        self.clock = MachineClock(agenda)
        self.sink = TimedSink(agenda)
        self.store = MemoryStore(b"\x77" * 32)
        self.policy = policy
        self.slots = slots
        self.reports = Reports(agenda)
        #: The core may have effects to carry out, or another deadline.
        self.touched = True
        self._agenda = agenda
        self._draw = draw
        self._send = send
        self._deliver = deliver
        self._capacity = capacity
        self._waiting: list[Callable[[], None]] = []
        self.host_up = False
        #: How often the data plane has been brought up.
        self.boots = 0
        self.core: GatewayCore | None = None
        self.boot()

    # Coming up

    def boot(self) -> None:
        """A host that has just come up: nothing but the store is left of whatever was before."""
        self.host_up = True
        self.boots += 1
        self.page = make_page(self._capacity, self._draw.randbytes(32))
        self.steered = Steered()
        self.generation = 0
        self._waiting = []
        self.workers = {slot: self._worker(slot) for slot in self.slots}
        self._supervise()

    def _supervise(self) -> None:
        self.generation += 1
        public = x25519_public(GATEWAY_KEY)
        facts = GatewayFacts(
            node_id="gw",
            boot_id=self.clock.boot_id,
            private_key=GATEWAY_KEY,
            public_key=public,
            fleet_key=self.store.fleet_key,
            suites=frozenset({1, 2}),
            challenge_key=self.page.challenge_key,
            generation=self.generation,
            slots=self.slots,
            capacity=self._capacity,
            mtu=1400,
            routes=("10.8.0.0/24",),
            default_policy=self.policy,
            pool=POOL,
        )
        laptop = Peer("laptop", x25519_public(CLIENT_KEY), (), self.policy)
        self.context = GatewayContext(
            facts,
            PeerTable({laptop.public_key: laptop}, self.store.timestamps_us()),
            Narrator(self.sink, "gw", self.clock.wall_ms),
            self._draw.randbytes,
            self.clock.wall_ms,
            self.page,
        )
        self.core = GatewayCore(self.context)
        self.keeping = Keeping(DirectDesk(self.store), self.core, lambda _text: None)
        self.touched = True

    def _worker(self, slot: int) -> SimWorker:
        def say(report: commands.Report) -> None:
            self.reports.say(lambda: self._heard(slot, worker, report))

        worker = SimWorker(
            self.page,
            self.clock,
            self._agenda,
            slot=slot,
            gateway=True,
            sockets={0: GATEWAY},
            send=lambda _number, to, data: self._send(data, GATEWAY, to),
            say=say,
            deliver=self._deliver,
        )
        return worker

    def _heard(self, slot: int, worker: SimWorker, report: commands.Report) -> None:
        if self.workers[slot] is worker:
            self._to_core(lambda core: core.worker_report(slot, report, self.clock.now_ms))

    def _to_core(self, tell: Callable[[GatewayCore], None]) -> None:
        """Now, or when there is a supervisor again: sockets and channels outlive it."""
        if self.core is not None:
            tell(self.core)
            self.touched = True
        elif len(self._waiting) < BACKLOG:
            self._waiting.append(lambda: self._to_core(tell))

    # Dying

    def kill_worker(self, slot: int) -> None:
        self.workers[slot].alive = False

    def seat_worker(self, slot: int) -> SimWorker:
        """The holder has another process in the seat of `slot`."""
        self.workers[slot].alive = False
        self.workers[slot] = self._worker(slot)
        if self.core is not None:
            self.core.worker_replaced(slot, self.clock.now_ms)
            self.touched = True
        return self.workers[slot]

    def kill_supervisor(self) -> None:
        self.core = None
        self.touched = True

    def start_supervisor(self) -> None:
        """Another supervisor finds page, store, maps and workers."""
        self._supervise()
        assert self.core is not None
        rows, torn = {}, []
        for record in range(self.page.capacity):
            try:
                rows[record] = self.page.read_row(record)
            except TornRow:
                torn.append(record)
        left = Found(rows, torn, self.store.sessions(), list(self.steered.ids), list(self.steered.prefixes))
        Adoption(self.core, self.clock.now_ms).run(left)
        self.carry_out()
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one()

    def kill_host(self) -> None:
        self.core = None
        self.host_up = False
        self.touched = True
        for worker in self.workers.values():
            worker.alive = False

    @property
    def up(self) -> bool:
        return self.core is not None and all(worker.alive for worker in self.workers.values())

    # What comes in

    def receive(self, flight: Flight) -> None:
        """A datagram reached the host: the steering maps decide who reads it."""
        if not self.host_up:
            return
        kind = None
        with suppress(WireError):
            kind = Header.decode(flight.data).type
        if kind in DATA_KINDS or kind is PacketType.PATH:
            entry = self.steered.ids.get(flight.data[4:12])
            slot = entry.slot if entry is not None else min(self.workers)
            self.workers[slot].receive(0, flight.data, flight.source)
        else:
            arrival = Arrival(0, flight.destination, flight.source)
            self._to_core(lambda core: core.receive_datagram(flight.data, arrival, self.clock.now_ms))

    def packet(self, packet: bytes) -> None:
        """A packet for the client's inner address: the TUN's steering chooses the worker."""
        slot = self.steered.prefixes.get(f"{INNER_ADDRESS}/32")
        if slot is not None:
            self.workers[slot].packet(packet)

    # Time and effects

    def due_ns(self) -> int | None:
        """When `handle_timer` is due, as the agenda counts."""
        due = () if self.core is None else (self.core.get_timer(), self.keeping.get_timer())
        return min((self.clock.agenda_ns(at_ms) for at_ms in due if at_ms is not None), default=None)

    def handle_timer(self) -> None:
        assert self.core is not None
        self.core.handle_timer(self.clock.now_ms)
        self.touched = True

    def carry_out(self) -> bool:
        """Do what the core asks for; False when that was nothing."""
        if self.core is None:
            return False
        self._done = 0
        self.keeping.settle(self._do, self.clock.now_ms)
        return self._done > 0

    def _do(self, effects: Iterable[does.Effect]) -> None:
        for effect in effects:
            self._done += 1
            self._do_one(effect)

    def _do_one(self, effect: does.Effect) -> None:
        match effect:
            case does.SendDatagram(_listener, local, remote, data):
                self._send(data, local, remote)
            case does.TellWorker(slot, command):
                self.workers[slot].tell(command)
            case does.WriteRow(record, row):
                self.page.write_row(record, row)
            case does.ClearRecord(record):
                self.page.clear_record(record)
            case does.PutId(steering_id):
                self.steered.ids[steering_id] = effect
            case does.RemoveId(steering_id):
                self.steered.ids.pop(steering_id, None)
            case does.PutPrefix(prefix, slot):
                self.steered.prefixes[prefix] = slot
            case does.RemovePrefix(prefix):
                self.steered.prefixes.pop(prefix, None)
