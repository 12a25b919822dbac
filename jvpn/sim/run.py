"""One seed, from its plan to its verdict."""

import hashlib
import random
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from jvpn.lab.link_model import LinkParams
from jvpn.observability.events import AnyEvent
from jvpn.protocol.constants import HEADER_SIZE
from jvpn.sim.attacker import Attacker
from jvpn.sim.checks import Checks
from jvpn.sim.clock import NS, START_MS
from jvpn.sim.cluster import LEASE_TTL_MS
from jvpn.sim.faults import FAULTS, FLEET_FAULTS, Fault, Stage
from jvpn.sim.guard import Guard
from jvpn.sim.network import Flight
from jvpn.sim.nonces import Nonces
from jvpn.sim.ownership import Ownership
from jvpn.sim.plan import Plan, plan
from jvpn.sim.promises import Promises
from jvpn.sim.traffic import Traffic
from jvpn.sim.violation import Violation
from jvpn.sim.world import Spins, World

#: How soon a client that was told to stop is started again by its owner.
RESTART_MS = 700
CALM = LinkParams(delay_ms=10.0)


@dataclass(slots=True)
class Result:
    """`notes`: (ms since the beginning, what a fault did). `at_ms`: when the violation was seen."""

    seed: int
    steps: int = 0
    datagrams: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    notes: list[tuple[int, str]] = field(default_factory=list)
    setting: str = ""
    #: The id of the failure matrix's scenario, if it was one.
    scenario: str = ""
    #: What the gateway told and what the client told, and when, as the agenda counts.
    told: tuple[list[tuple[int, AnyEvent]], ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    digest: str = ""
    code: str = ""
    text: str = ""
    at_ms: int = 0
    trace: str = ""

    @property
    def again(self) -> str:
        """The command that shows it again."""
        scenario = f"--scenario {self.scenario} " if self.scenario else ""
        return f"jvpn sim run {scenario}--seed {self.seed} --seeds 1"


class Run:
    """`mutate` may change the world before it begins to move: to plant a bug, to add an attacker."""

    def __init__(self, chosen: Plan, mutate: Callable[["Run"], None] | None = None) -> None:
        self.plan = chosen
        self.result = Result(chosen.seed)
        self._digest = hashlib.blake2b(digest_size=16)
        self.traffic = Traffic.__new__(Traffic)
        self.world = World(
            chosen.seed,
            chosen.policy,
            chosen.uplinks,
            deliver_up=lambda inner: self.traffic.delivered_up(inner),
            deliver_down=lambda inner: self.traffic.delivered_down(inner),
            suite_number=chosen.suite,
            nodes=chosen.nodes,
        )
        world = self.world
        self.traffic = Traffic(world.agenda, random.Random(f"{chosen.seed}/traffic"))
        self.checks = Checks(world)
        self.nonces = Nonces(world)
        self.guard = Guard(world)
        world.network.taps += [self.nonces, self._count]
        self.attacker = Attacker(world, self.guard)
        self.promises = Promises(world)
        self.ownership = None if world.cluster is None else Ownership(world, world.cluster)
        self.traffic.oldest_ms = self._oldest_ms
        world.watchers.append(self.checks)
        for end in world.ends:
            end.reports.delay_ms = chosen.worker_delay_ms
        self._undo: dict[int, Callable[[], None]] = {}
        if mutate is not None:
            mutate(self)

    @property
    def now_ms(self) -> int:
        """Since the run began."""
        return self.world.agenda.now_ns // NS - START_MS

    def note(self, text: str) -> None:
        self.result.notes.append((self.now_ms, text))

    def _count(self, flight: Flight) -> None:
        data = flight.data
        uplink = -1 if flight.uplink is None else flight.uplink
        self._digest.update(b"%d %d %d %d " % (self.world.agenda.now_ns, flight.up, uplink, len(data)))
        # What follows the header depends on keys, and those of ML-KEM on the operating system's randomness.
        self._digest.update(data[:HEADER_SIZE])

    # The life of a run

    def run(self) -> Result:
        result, world = self.result, self.world
        try:
            self._live()
        except Violation as violation:
            result.code, result.text = violation.code, violation.text
        except Spins as spins:
            result.code, result.text = "SPINS", str(spins)
        except Exception as error:  # noqa: BLE001 – whatever a core raises is a finding
            result.code, result.text = "CRASHED", f"{type(error).__name__}: {error}"
            result.trace = traceback.format_exc()
        result.at_ms = self.now_ms
        result.steps, result.datagrams = world.steps, world.network.sent
        sinks = [end.sink for end in world.ends]
        for sink in sinks:
            for line in sink.lines():
                self._digest.update(line)
        if result.code:
            result.told = tuple(list(zip(sink.times_ns, sink.events, strict=True)) for sink in sinks)
            result.setting = self.plan.text
        ways = self.traffic.ways
        result.counts.update(
            offered=sum(way.offered for way in ways.values()),
            delivered=sum(way.delivered for way in ways.values()),
            events=sum(len(sink.events) for sink in sinks),
            unproven=self.guard.tried,
            attacks=self.attacker.sent,
            nonces=self.nonces.watched,
        )
        if self.ownership is not None:
            result.counts.update(fleets=1, claims=self.ownership.claims, taken=self.ownership.taken)
        self._digest.update(repr((result.code, result.text, sorted(result.counts.items()))).encode())
        result.digest = self._digest.hexdigest()
        return result

    def _live(self) -> None:
        world, chosen = self.world, self.plan
        begin_ns = world.agenda.now_ns
        for fault in chosen.faults:
            world.agenda.at(begin_ns + fault.at_ms * NS, partial(self._begin, fault))
        self.traffic.connect(world.client.packet, world.packet_down)
        self._mind_the_client()
        if chosen.fair:
            world.run(begin_ns + chosen.chaos_ms * NS, lambda: world.attached)
            self.traffic.fair_since_ns = world.agenda.now_ns + NS
        world.run(begin_ns + chosen.chaos_ms * NS)
        self._heal()
        if world.cluster is not None:
            # A lease that could not be renewed lasts a while yet.
            world.advance(2 * LEASE_TTL_MS)
        world.run(world.agenda.now_ns + chosen.heal_ms * NS, lambda: world.attached)
        world.run(world.agenda.now_ns + 20_000 * NS, lambda: world.attached)
        self._carries()
        self.checks.finish()
        if self.ownership is not None:
            self.ownership.finish()

    def _begin(self, fault: Fault) -> None:
        stage = Stage(self.world, fault, random.Random(fault.draw), self.note, self.unproven, self.attacker)
        self.result.faults[fault.name] += 1
        undo = (FAULTS | FLEET_FAULTS)[fault.name].begin(stage)
        if undo is not None:
            self._undo[fault.number] = undo
            self.world.agenda.later(fault.lasts_ms, partial(self._end, fault))

    def _end(self, fault: Fault) -> None:
        undo = self._undo.pop(fault.number, None)
        if undo is not None:
            undo()
            self.note(f"{fault.name.replace('_', ' ')} is over")

    def unproven(self, flight: Flight) -> None:
        """A datagram that proves nothing arrives now."""
        (self.guard.receive_up if flight.up else self.guard.receive_down)(flight)

    def _mind_the_client(self) -> None:
        """A client that was told to stop is started again."""
        client = self.world.client
        if client.over_for_good and not client.asleep:
            self.note("the client has stopped; its owner starts it again")
            client.start()
        self.world.agenda.later(RESTART_MS, self._mind_the_client)

    def _heal(self) -> None:
        for number in list(self._undo):
            self._undo.pop(number)()
        for path in self.world.network.uplinks:
            path.up.calm(CALM)
            path.down.calm(CALM)
        self.note("everything is healed")

    def _oldest_ms(self) -> float | None:
        """How old a payload may be when it comes out: kept at one end, under way, held at the other. None: who records
        datagrams and sends them later can make any of them old."""
        if self.attacker.sent:
            return None
        # What waits in the sockets of a machine that is stopped does not know how long it waits.
        stopped_ms = max(node.pausing.longest_ms for node in self.world.gateways)
        return 2 * self.world.longest_resend_ms + self.world.network.longest_ms + stopped_ms + 100

    def _carries(self) -> None:
        """At the end, what goes in at one end comes out at the other."""
        traffic, world = self.traffic, self.world
        traffic.stop()
        # A NAT that rebound while all was silent shows at the first packet, which the policy may not have kept.
        traffic.one(True)
        world.advance(2_000)
        traffic.look_for_lost()
        delivered = [way.delivered for way in traffic.ways.values()]
        for _ in range(3):
            traffic.one(True)
            traffic.one(False)
            world.advance(100)
        world.advance(1_000)
        for before, way in zip(delivered, traffic.ways.values(), strict=True):
            if way.delivered - before != 3:
                name = "up" if way.up else "down"
                raise Violation(
                    "NOT_CARRIED", f"of 3 packets {name} on a good network {way.delivered - before} came"
                )
        self._can_be_asked()

    def _can_be_asked(self) -> None:
        """At the end each way out is on an index that its owner has installed and that leads others to the session."""
        core = self.world.client.core
        session = None if core is None else core.session
        if session is None or not self.world.attached:
            return
        for path in session.paths.paths.values():
            if not path.uplink.link_up:
                continue
            node = self.world.nodes.get(path.uplink.remote)
            owns = node is not None and session.session_id in node.context.sessions
            known = node is not None and path.steering_id in node.context.by_steering_id
            if path.index not in session.paths.tickets or (owns and not known):
                raise Violation("LEFT_BEHIND", f"{path.id} is on #{path.index}, which nobody knows any more")


def run_seed(seed: int, mutate: Callable[[Run], None] | None = None) -> Result:
    return Run(plan(seed), mutate).run()
