"""The client of a simulation: the real core and worker, links that come and go, and a machine that sleeps."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from jvpn.agent import effects as does
from jvpn.agent.core import ClientCore, Shell
from jvpn.agent.handshaking import Identity
from jvpn.agent.narrator import ClientNarrator
from jvpn.agent.paths import Uplink
from jvpn.agent.worker_side import RECORDS
from jvpn.policy.model import Policy
from jvpn.protocol.handshake import Kem
from jvpn.protocol.suites import suite, x25519_public
from jvpn.sim.clock import Agenda, MachineClock, Reports, TimedSink
from jvpn.sim.network import GATEWAY, Flight
from jvpn.sim.reaching import Reaching
from jvpn.sim.supervising import CLIENT_KEY, GATEWAY_KEY
from jvpn.sim.worker import SimWorker, make_page
from workers import commands
from workers.commands import Endpoint


@dataclass(frozen=True, slots=True)
class UplinkPlan:
    """One uplink as the agent knows it."""

    number: int
    own: Endpoint
    preference: int

    @property
    def name(self) -> str:
        return f"up{'ABCDEFGH'[self.number]}"


class ClientNode:
    """`core` is None while the agent is dead. `send(uplink, to, datagram)` and `deliver(packet)` are the world's."""

    def __init__(
        self,
        agenda: Agenda,
        draw: random.Random,
        policy: Policy,
        uplinks: list[UplinkPlan],
        send: Callable[[int, Endpoint, bytes], None],
        deliver: Callable[[bytes], None],
        *,
        suite_number: int = 1,
        gateways: tuple[Endpoint, ...] = (GATEWAY,),
    ) -> None:
        """`gateways`: where the nodes of a fleet are reached, or the one that there is."""
        self.clock = MachineClock(agenda)
        self.sink = TimedSink(agenda)
        self.plans = uplinks
        self.policy = policy
        self.persisted_us = 0
        self.asleep = False
        self.reports = Reports(agenda)
        self.configured: list[does.ConfigureTunnel] = []
        self.over: list[does.SessionOver] = []
        self.starts = 0
        self.touched = True
        #: What netlink would say of each uplink.
        self.links = {plan.number: True for plan in uplinks}
        self._suite = suite_number
        self._gateways = gateways
        #: Which endpoint each uplink leads to; None with one gateway: there is no choice.
        self._reaching: Reaching | None = None
        self._agenda = agenda
        self._draw = draw
        self._send = send
        self._deliver = deliver
        self._waiting: list[Callable[[], None]] = []
        self.core: ClientCore | None = None
        self.start()

    # Coming up, dying, sleeping

    def start(self, identity: Identity | None = None) -> None:
        """An agent that has just been started: nothing remembered but the durable timestamp."""
        self.starts += 1
        self._waiting = []
        kem = Kem.MLKEM768 if self.policy.kem == "mlkem768" else Kem.NONE
        known = Identity(
            suite(self._suite), CLIENT_KEY, x25519_public(GATEWAY_KEY), bytes(32), self.policy.name, kem
        )
        self.page = make_page(RECORDS, bytes(32))
        self.worker = self._worker()
        self.uplinks = self._ways()
        self.core = ClientCore(
            identity or known,
            self.uplinks,
            self.policy,
            ClientNarrator(self.sink, f"cl-{self.starts}", self.clock.wall_ms),
            Shell(self._draw.randbytes, lambda: self.clock.wall_ms() * 1000, self.page.read_activity),
            self.persisted_us,
            self.clock.now_ns,
        )
        if self._reaching is not None:
            self._reaching.begin(self.core, self.clock.now_ns)
        self.touched = True

    def _ways(self) -> list[Uplink]:
        if len(self._gateways) == 1:
            return [
                Uplink(plan.number, plan.name, plan.preference, GATEWAY, self.links[plan.number])
                for plan in self.plans
            ]
        self._reaching = Reaching(
            [(plan.name, plan.preference) for plan in self.plans],
            [plan.own for plan in self.plans],
            [self.links[plan.number] for plan in self.plans],
            self._gateways,
            self.policy.max_candidates + 1,
        )
        return self._reaching.ways

    def _worker(self) -> SimWorker:
        def say(report: commands.Report) -> None:
            self.reports.say(lambda: self._heard(worker, report))

        worker = SimWorker(
            self.page,
            self.clock,
            self._agenda,
            slot=0,
            gateway=False,
            sockets={plan.number: plan.own for plan in self.plans},
            send=self._send,
            say=say,
            deliver=self._deliver,
        )
        return worker

    def _heard(self, worker: SimWorker, report: commands.Report) -> None:
        if worker is not self.worker or self.core is None:
            return
        if self.asleep:
            self._waiting.append(lambda: self._heard(worker, report))
            return
        self.core.worker_report(report, self.clock.now_ns)
        self.touched = True

    def kill(self) -> None:
        """The agent dies without a word, its worker with it."""
        self.core = None
        self.worker.alive = False
        self.touched = True

    def kill_worker(self) -> None:
        self.worker.alive = False

    def seat_worker(self) -> None:
        """The agent has started another worker."""
        if self.core is None:
            return
        self.worker.alive = False
        self.worker = self._worker()
        self.core.worker_replaced()
        self.touched = True

    def sleep(self) -> None:
        """The machine is suspended: nothing runs, what arrives is lost, CLOCK_BOOTTIME goes on."""
        self.asleep = True
        self.worker.alive = False
        self.touched = True

    def wake(self) -> None:
        self.asleep = False
        self.worker.alive = self.core is not None
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one()
        self.touched = True

    @property
    def up(self) -> bool:
        return self.core is not None and not self.asleep and self.worker.alive

    @property
    def over_for_good(self) -> bool:
        """It has stopped, and has said all its farewells."""
        return self.core is not None and self.core.stopped and self.core.closing_ms is None

    # What comes in

    def receive(self, flight: Flight) -> None:
        assert flight.uplink is not None
        if not self.asleep:
            self.worker.receive(flight.uplink, flight.data, flight.source)

    def packet(self, packet: bytes) -> None:
        if not self.asleep:
            self.worker.packet(packet)

    def link(self, number: int, up: bool) -> None:
        """Netlink says that an uplink's link came or went."""
        self.links[number] = up
        if self.asleep:
            self._waiting.append(lambda: self._link(number, up))
        else:
            self._link(number, up)

    def _link(self, number: int, up: bool) -> None:
        if self.core is None:
            return
        if self._reaching is not None:
            self._reaching.link(self.plans[number].name, up, self.clock.now_ns)
        else:
            self.core.link_event(self.plans[number].name, up, self.clock.now_ns)
        self.touched = True

    # Time and effects

    def due_ns(self) -> int | None:
        """When `handle_timer` is due, as the agenda counts; None while nothing is."""
        if self.core is None or self.asleep or self.over_for_good:
            return None
        due_ms = self.core.get_timer()
        if self._reaching is not None:
            due_ms = min(due_ms, self._reaching.next_ms)
        return self.clock.agenda_ns(due_ms)

    def handle_timer(self) -> None:
        assert self.core is not None
        self.core.handle_timer(self.clock.now_ns)
        if self._reaching is not None:
            self._reaching.look(self.clock.now_ns)
        self.touched = True

    def carry_out(self) -> bool:
        """Do what the core asks for; False when that was nothing."""
        if self.core is None:
            return False
        due = self.core.effects()
        for effect in due:
            self._do(effect)
        return bool(due)

    def _do(self, effect: does.Effect) -> None:
        match effect:
            case does.SendDatagram(uplink, remote, data):
                if any(way.link_up for way in self.uplinks if way.socket == uplink):
                    self._send(uplink, remote, data)
            case does.TellWorker(command):
                self.worker.tell(command)
            case does.PersistTimestamp(timestamp_us):
                self.persisted_us = timestamp_us
            case does.ConfigureTunnel():
                self.configured.append(effect)
            case does.ClearRecord(record):
                self.page.clear_record(record)
            case does.SessionOver():
                self.over.append(effect)
