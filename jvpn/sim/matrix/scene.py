"""One scenario of the failure matrix: what is set up, what happens when, and what must hold afterwards.

A scenario is data. Its seed draws what it leaves open: the round trip of each uplink, how long workers take, and at
which moment of all the periods (probes, traffic, rekeys) it begins. It runs with every invariant of the simulator on;
what its row asks for beyond them is judged at the end, from payloads and events alone.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeVar

from jvpn.agent.session import ClientSession
from jvpn.lab.link_model import LinkParams
from jvpn.observability.events import AnyEvent
from jvpn.policy.model import Policy
from jvpn.protocol.constants import PacketType
from jvpn.sim.clock import NS, Agenda
from jvpn.sim.network import Flight
from jvpn.sim.plan import Plan
from jvpn.sim.run import Result, Run
from jvpn.sim.traffic import Traffic
from jvpn.sim.violation import Violation
from jvpn.sim.world import UplinkSetup
from jvpn.supervisor.live_session import LiveSession

#: From the first ATTACHED until the row begins: candidates have been validated by then.
WARM_MS: Final = 2_500
#: Traffic flows this long before the row begins.
LEAD_MS: Final = 400
#: After the end, for what is under way.
CALM_MS: Final = 1_500
BIRTH_MS: Final = 10_000
#: Datagrams of each kind that are recorded.
KEPT: Final = 400

Act = Callable[["Scene"], None]
#: What is wrong; empty: it holds.
Hold = Callable[["Scene"], str]


@dataclass(frozen=True, slots=True)
class At:
    """`ms` counts from the row's beginning and may be negative; `mark` gives the moment a name."""

    ms: int
    act: Act
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Flow:
    """A packet one way every `period_ms`, while the row lasts or within it."""

    up: bool
    period_ms: int = 20
    size: int = 120
    from_ms: int = -LEAD_MS
    until_ms: int | None = None


BOTH: Final = (Flow(True), Flow(False))
QUICK: Final = (Flow(True, 5), Flow(False, 5))
SLOW: Final = (Flow(True, 100), Flow(False, 100))
NONE: Final[tuple[Flow, ...]] = ()


@dataclass(frozen=True, slots=True)
class Scenario:
    """`id` is the row's, with a word behind it when the row has several. `usual`: links beside their delays."""

    id: str
    title: str
    timeline: tuple[At, ...]
    holds: tuple[Hold, ...]
    lasts_ms: int = 4_000
    uplinks: int = 2
    policy: Mapping[str, Any] = field(default_factory=dict)
    flows: tuple[Flow, ...] = BOTH
    rtts_ms: tuple[int, ...] = (10, 20, 50, 100)
    usual: Mapping[str, Any] = field(default_factory=dict)
    warm_ms: int = WARM_MS

    @property
    def row(self) -> str:
        return self.id.partition("-")[0]


class Load(Traffic):
    """Steady streams instead of drawn phases, and what came of every packet."""

    def __init__(self, agenda: Agenda, draw: random.Random) -> None:
        super().__init__(agenda, draw)
        #: (number, sent, delivered), ns, in the order of delivery.
        self.log: dict[bool, list[tuple[int, int, int]]] = {True: [], False: []}
        self.came = self._note

    def connect(self, send_up: Callable[[bytes], None], send_down: Callable[[bytes], None]) -> None:
        self._send = {True: send_up, False: send_down}

    def _note(self, up: bool, number: int, sent_ns: int) -> None:
        self.log[up].append((number, sent_ns, self._agenda.now_ns))


Event = TypeVar("Event")


class Scene(Run):
    """A scenario under one seed."""

    traffic: Load

    def __init__(self, scenario: Scenario, seed: int, mutate: Callable[[Run], None] | None = None) -> None:
        self.scenario = scenario
        draw = random.Random(f"{seed}/{scenario.id}")
        chosen = _plan(scenario, seed, draw)
        super().__init__(chosen, mutate)
        self.result.scenario = scenario.id
        self.draw = draw
        self.traffic = Load(self.world.agenda, draw)
        self.marks: dict[str, int] = {}
        self.begin_ns = 0
        #: Uplinks in the order that the row counts them in: the active one first.
        self.order = list(range(scenario.uplinks))
        #: What reaches an end: a filter that answers False loses the datagram.
        self.filters: list[Callable[[Flight], bool]] = []
        #: Datagrams held back on their way, to arrive at once.
        self.held: list[Flight] | None = None
        #: What has arrived and when, by kind.
        self.seen: dict[PacketType, list[tuple[int, Flight]]] = {}
        #: Bytes that an end got from sources that are no uplink's.
        self.heard_of_strangers = 0
        #: What acts found at their time, for the end.
        self.findings: list[str] = []
        network = self.world.network
        network.to_gateway = partial(self._pass, network.to_gateway)
        network.to_client = partial(self._pass, network.to_client)

    def _record(self, flight: Flight) -> None:
        known = self.seen.setdefault(flight.kind, [])
        if flight.genuine and len(known) < KEPT:
            known.append((self.world.agenda.now_ns, flight))

    def _pass(self, deliver: Callable[[Flight], None], flight: Flight) -> None:
        if not all(passes(flight) for passes in self.filters):
            return
        if self.held is not None and flight.up:
            self.held.append(flight)
            return
        deliver(flight)
        self._record(flight)

    # What acts and holds ask

    @property
    def policy(self) -> Policy:
        return self.plan.policy

    def uplink(self, place: int) -> int:
        """The number of the uplink that the row calls `place`."""
        return self.order[place]

    def rtt_ms(self, place: int = 0) -> float:
        path = self.world.network.uplinks[self.uplink(place)]
        return path.up.usual.delay_ms + path.down.usual.delay_ms

    @property
    def slack_ms(self) -> float:
        """What rounding to milliseconds and slow workers add to every bound."""
        return 3 + 6 * self.plan.worker_delay_ms

    @property
    def client(self) -> ClientSession:
        core = self.world.client.core
        if core is None or core.session is None:
            raise Violation("ROW", "the client has no session")
        return core.session

    @property
    def live(self) -> LiveSession:
        sessions = list(self.world.gateway.context.sessions.values())
        if not sessions:
            raise Violation("ROW", "the gateway has no session")
        return sessions[0]

    def ms_since(self, mark: str, at_ns: int) -> float:
        return (at_ns - self.marks[mark]) / NS

    def told(self, end: str, kind: type[Event], mark: str = "begin") -> list[tuple[int, Event]]:
        """What that end has told since, and when (agenda's ns)."""
        sink = self.world.gateway.sink if end == "gateway" else self.world.client.sink
        since_ns = self.marks[mark]
        stream: list[tuple[int, AnyEvent]] = list(zip(sink.times_ns, sink.events, strict=True))
        return [(at, event) for at, event in stream if at >= since_ns and isinstance(event, kind)]

    # The life of a scenario

    def _live(self) -> None:
        world, agenda = self.world, self.world.agenda
        self.traffic.connect(world.client.packet, world.gateway.packet)
        if not world.run(agenda.now_ns + BIRTH_MS * NS, lambda: world.attached):
            raise Violation("ROW", "no session was born")
        active = self.client.paths.active
        self.order.sort(key=lambda number: number != active)
        self.begin_ns = agenda.now_ns + (self.scenario.warm_ms + self.draw.randrange(1_000)) * NS
        self.begin_ns += self.draw.randrange(NS)
        for at in self.scenario.timeline:
            agenda.at(self.begin_ns + at.ms * NS, partial(self._act, at))
        self.marks["begin"] = self.begin_ns
        for flow in self.scenario.flows:
            first_ns = self.begin_ns + flow.from_ms * NS + self.draw.randrange(flow.period_ms * NS)
            agenda.at(first_ns, partial(self._flow, flow))
        world.run(self.begin_ns + self.scenario.lasts_ms * NS)
        self.traffic.stop()
        world.advance(CALM_MS)
        self.checks.finish()
        self._judge()

    def _act(self, at: At) -> None:
        if at.mark:
            self.marks[at.mark] = self.world.agenda.now_ns
        at.act(self)

    def _flow(self, flow: Flow) -> None:
        now_ns = self.world.agenda.now_ns
        lasts_ms = self.scenario.lasts_ms if flow.until_ms is None else flow.until_ms
        if now_ns < self.begin_ns + lasts_ms * NS:
            self.traffic.one(flow.up, flow.size)
            self.world.agenda.later(flow.period_ms, partial(self._flow, flow))

    def _judge(self) -> None:
        findings = self.findings + [found for hold in self.scenario.holds if (found := hold(self))]
        if findings:
            raise Violation("ROW", "; ".join(findings))


def _plan(scenario: Scenario, seed: int, draw: random.Random) -> Plan:
    policy = Policy.from_wire(replace(Policy.default(), **scenario.policy).to_wire())
    uplinks = []
    for _ in range(scenario.uplinks):
        link = LinkParams(delay_ms=draw.choice(scenario.rtts_ms) / 2, **scenario.usual)
        uplinks.append(UplinkSetup(link, link))
    delay_ms = draw.choice((0.0, 0.0, 1.0))
    return Plan(seed, policy, draw.choice((1, 2)), tuple(uplinks), delay_ms, (), scenario.lasts_ms)


def run_scenario(scenario: Scenario, seed: int, mutate: Callable[[Run], None] | None = None) -> Result:
    """A violation's code is ROW for what this row asks for, and an invariant's for the rest."""
    return Scene(scenario, seed, mutate).run()
