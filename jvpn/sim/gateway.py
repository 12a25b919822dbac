"""The gateway of a simulation: the real core, store and workers, and everything of it that can die.

worker      killed; the holder seats another process, which knows nothing
supervisor  killed; workers and page go on, another one adopts what it finds
host        killed; only the store is left, and the clock begins anew
processes   paused, all at once: what comes meanwhile waits for them

Alone it has a store of its own, which answers at once unless a fault says otherwise. In a fleet it shares the cluster,
and belongs to it by `member.py`.
"""

import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from jvpn.policy.model import Policy
from jvpn.protocol.addresses import to_text
from jvpn.protocol.constants import DATA_KINDS, PacketType
from jvpn.protocol.wire import Header, WireError
from jvpn.sim.clock import NS, Agenda, MachineClock, Reports, TimedSink
from jvpn.sim.cluster import Cluster
from jvpn.sim.member import Member
from jvpn.sim.network import GATEWAY, Flight
from jvpn.sim.pausing import BACKLOG, Pausing
from jvpn.sim.store_way import StoreWay, WayDesk
from jvpn.sim.supervising import CAPACITY, INNER_ADDRESS, Seat, context_of
from jvpn.sim.worker import SimWorker, make_page
from jvpn.store.base import StoreError
from jvpn.store.memory import MemoryStore
from jvpn.store.node_about import NodeAbout
from jvpn.supervisor import effects as does
from jvpn.supervisor.adoption import Adoption, Found
from jvpn.supervisor.arrival import Arrival
from jvpn.supervisor.core import GatewayCore
from jvpn.supervisor.fleet import Fleet
from jvpn.supervisor.keeping import Keeping
from jvpn.supervisor.narrator import Narrator
from jvpn.supervisor.store_desk import Answers, Batch, serve
from workers import commands
from workers.commands import Endpoint
from workers.page import TornRow

#: As `fence` in the page: traffic has ended.
_LONG_AGO_NS: Final = 1

#: A supervisor that could not read the store when it had joined the fleet is started again after this.
JOIN_AGAIN_MS: Final = 500


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
        node_id: str = "gw",
        endpoint: Endpoint = GATEWAY,
        cluster: Cluster | None = None,
    ) -> None:
        self.node_id = node_id
        self.endpoint = endpoint
        self.clock = MachineClock(agenda)
        self.sink = TimedSink(agenda)
        self.cluster = cluster
        self.store = MemoryStore(b"\x77" * 32) if cluster is None else cluster
        self.way = StoreWay(agenda, draw)
        self.member: Member | None = None
        self.about = NodeAbout(advertise=(f"{to_text(endpoint.address)}:{endpoint.port}",))
        self.watch_lag_ms = 0.0
        self.pausing = Pausing(agenda)
        self.when_awake = self.pausing.when_awake
        #: When return traffic was last led here.
        self.led_ns = -1
        self.policy = policy
        self.slots = slots
        self.reports = Reports(agenda)
        #: The core may have effects to carry out, or another deadline.
        self.touched = True
        self._agenda = agenda
        self._draw = draw
        self._send = send
        self._deliver = deliver
        self._waiting: list[Callable[[], None]] = []
        #: What it has told its operator.
        self.said: list[str] = []
        self.host_up = False
        #: How often the data plane has been brought up.
        self.boots = 0
        self.core: GatewayCore | None = None
        self.boot()
        if cluster is not None:
            self.way.delay_ms = (0.1, draw.choice((0.5, 2.0, 10.0)))
            self.watch_lag_ms = draw.choice((1.0, 5.0, 50.0))
            self.clock.skew_ms = draw.choice((0, -80, 40, 300))
            self.clock.drift_ppm = draw.choice((0, -100, 200))

    @property
    def paused(self) -> bool:
        """SIGSTOP."""
        return self.pausing.now

    @property
    def name(self) -> str:
        """For people."""
        return "the gateway" if self.cluster is None else self.node_id

    # Coming up

    def boot(self) -> None:
        """A host that has just come up: nothing but the store is left of whatever was before. Raises StoreError."""
        self._must_reach_the_store()
        self.host_up = True
        self.boots += 1
        self.page = make_page(CAPACITY, self._draw.randbytes(32))
        if self.cluster is not None:
            self.page.write_fence(_LONG_AGO_NS)
        self.steered = Steered()
        self.generation = 0
        self._waiting = []
        self.workers = {slot: self._worker(slot) for slot in self.slots}
        self._start(self._supervise)

    def _start(self, begin: Callable[[], None]) -> None:
        """Have a supervisor `begin`; that of a fleet's node as soon as there is a lease."""
        if self.cluster is None:
            begin()
            return

        def joined() -> None:
            try:
                self._must_reach_the_store()
            except StoreError:
                self.kill_supervisor()
                self._agenda.later(JOIN_AGAIN_MS, again)
                return
            begin()
            assert self.member is not None
            self.member.caught_up()

        boots = self.boots

        def again() -> None:
            if self.boots == boots and self.host_up and self.member is None:
                self._start(begin)

        self.member = Member(self, self.cluster, self._agenda, joined)
        self.member.start()

    def _must_reach_the_store(self) -> None:
        if self.way.cut or self.store.broken:
            raise StoreError("the store is not reached")

    def _serve(self, batch: Batch) -> Answers:
        return serve(self.store, batch) if self.cluster is None else self.cluster.serve(batch, self.node_id)

    def _supervise(self) -> None:
        self.generation += 1
        seat = Seat(self.node_id, self.clock, self.page, self.generation, self.slots, self.policy)
        self.context = context_of(
            seat, self.store, Narrator(self.sink, self.node_id, self.clock.wall_ms), self._draw
        )
        self.context.fenced = self.fenced
        core = self.core = GatewayCore(self.context)

        def wake() -> None:
            self.touched = self.touched or self.core is core

        self.keeping = Keeping(WayDesk(self.way, self._serve, wake), core, self._say)
        self.touched = True
        if self.cluster is not None:
            assert self.member is not None
            self.context.fleet = Fleet(self.node_id)
            self.context.doubt_lease = self.member.renew

    def _say(self, text: str) -> None:
        self.said.append(text)

    def fenced(self, now_ms: int) -> bool:
        """Whether its sessions may be another's by now."""
        until_ns = self.page.read_fence()
        return 0 < until_ns <= now_ms * NS

    def _worker(self, slot: int) -> SimWorker:
        def say(report: commands.Report) -> None:
            self.reports.say(lambda: self.when_awake(lambda: self._heard(slot, worker, report)))

        worker = SimWorker(
            self.page,
            self.clock,
            self._agenda,
            slot=slot,
            gateway=True,
            sockets={0: self.endpoint},
            send=lambda _number, to, data: self._send(data, self.endpoint, to),
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

    def to_core(self, tell: Callable[[GatewayCore], None]) -> None:
        """Now, if there is a supervisor."""
        if self.core is not None:
            tell(self.core)
            self.touched = True

    def pause(self) -> None:
        """All processes of the node stop where they are."""
        self.pausing.begin()
        self.touched = True
        for worker in self.workers.values():
            worker.paused = True

    def go_on(self) -> None:
        """They do what they were at, then what has waited for them."""
        self.touched = True
        self.pausing.end([worker.go_on for worker in self.workers.values()])

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
        self._leave()
        self.touched = True

    def _leave(self) -> None:
        if self.member is not None:
            self.member.stop()
            self.member = None

    def start_supervisor(self) -> None:
        """Another supervisor finds page, store, maps and workers. Raises StoreError."""
        if self.member is None:
            self._must_reach_the_store()
            self._start(self._adopt)

    def _adopt(self) -> None:
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
        self._leave()
        self.host_up = False
        self.pausing.forget()
        self.touched = True
        for worker in self.workers.values():
            worker.alive = False

    @property
    def up(self) -> bool:
        working = self.core is not None and not self.paused
        return working and all(worker.alive for worker in self.workers.values())

    # What comes in

    def receive(self, flight: Flight) -> None:
        """A datagram reached the host: the steering maps decide who reads it."""
        if not self.host_up:
            return
        if self.paused:
            self.pausing.queue(lambda: self.receive(flight))
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
        if self.paused:
            self.pausing.queue(lambda: self.packet(packet))
            return
        slot = self.steered.prefixes.get(f"{INNER_ADDRESS}/32")
        if slot is not None:
            self.workers[slot].packet(packet)

    # Time and effects

    def due_ns(self) -> int | None:
        """When `handle_timer` is due, as the agenda counts."""
        due = () if self.core is None or self.paused else (self.core.get_timer(), self.keeping.get_timer())
        return min((self.clock.agenda_ns(at_ms) for at_ms in due if at_ms is not None), default=None)

    def handle_timer(self) -> None:
        assert self.core is not None
        self.core.handle_timer(self.clock.now_ms)
        self.touched = True

    def carry_out(self) -> bool:
        """Do what the core asks for; False when that was nothing."""
        if self.core is None or self.paused:
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
                self.led_ns = self._agenda.now_ns
            case does.RemovePrefix(prefix):
                self.steered.prefixes.pop(prefix, None)
