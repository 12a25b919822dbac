"""What is joined, and how time passes.

    application ── client worker ═ ClientCore ── uplinks (network.py) ── GatewayCore ═ workers ── application

There is one gateway, with a store of its own, or a fleet of them, which share one (cluster.py).

Nothing waits and nothing runs beside anything: the agenda holds what will happen, the cores say when they want to be
woken, and `step` makes the next of these happen and carries out all that follows at that instant. After every step the
`watchers` look.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from jvpn.lab.link_model import LinkParams
from jvpn.policy.model import Policy
from jvpn.sim.client import ClientNode, UplinkPlan
from jvpn.sim.clock import NS, Agenda
from jvpn.sim.cluster import LEASE_TTL_MS, Cluster
from jvpn.sim.gateway import GatewayNode
from jvpn.sim.network import GATEWAYS, Flight, Network
from workers.commands import Endpoint

#: An endpoint that is silent is left after 3 s, then after 6 s (agent/reach.py).
_TURNS_MS: Final = 9_000
#: Turns of the cores at one instant; more means that one spins.
MAX_TURNS: Final = 200


class Spins(Exception):
    """A core is busy without time passing."""


@dataclass(frozen=True, slots=True)
class UplinkSetup:
    """How one uplink usually is."""

    up: LinkParams
    down: LinkParams
    preference: int = 100


class World:
    """One client and its gateways. `draw` is the only source of randomness besides the network's own streams."""

    def __init__(
        self,
        seed: int,
        policy: Policy,
        uplinks: Sequence[UplinkSetup],
        *,
        deliver_up: Callable[[bytes], None],
        deliver_down: Callable[[bytes], None],
        suite_number: int = 1,
        nodes: int = 1,
    ) -> None:
        self.agenda = Agenda()
        self.draw = random.Random(f"{seed}/world")
        self.steps = 0
        #: Of all policies that were ever in force.
        self.longest_window_ms = policy.recovery_window_ms
        self.longest_resend_ms = policy.resend_window_ms
        #: Called after every step that may have changed what a core has; they raise at what must not be.
        self.watchers: list[Callable[[], None]] = []
        self.network = Network(self.agenda, self.receive_up, lambda flight: self.client.receive(flight))
        plans = []
        for setup in uplinks:
            path = self.network.add(str(seed), setup.up, setup.down)
            plans.append(UplinkPlan(path.number, path.own, setup.preference))
        self.cluster = Cluster(self.agenda, b"\x77" * 32) if nodes > 1 else None
        #: By endpoint.
        self.nodes = {
            endpoint: GatewayNode(
                self.agenda,
                self.draw,
                policy,
                self.network.send_down,
                partial(self._delivered, deliver_up, endpoint),
                node_id=f"gw{number}" if nodes > 1 else "gw",
                endpoint=endpoint,
                cluster=self.cluster,
            )
            for number, endpoint in enumerate(GATEWAYS[:nodes])
        }
        #: Told of each payload that a node delivers.
        self.on_delivery: Callable[[GatewayNode], None] = lambda node: None
        self.client = ClientNode(
            self.agenda,
            self.draw,
            policy,
            plans,
            self.network.send_up,
            deliver_down,
            suite_number=suite_number,
            gateways=tuple(self.nodes),
        )
        self._gateway_ns: dict[Endpoint, int | None] = dict.fromkeys(self.nodes)
        self._client_ns: int | None = None

    # Nodes

    @property
    def gateways(self) -> list[GatewayNode]:
        return list(self.nodes.values())

    @property
    def gateway(self) -> GatewayNode:
        """The one that there always is."""
        return self.nodes[GATEWAYS[0]]

    @property
    def ends(self) -> list[GatewayNode | ClientNode]:
        return [*self.nodes.values(), self.client]

    def receive_up(self, flight: Flight) -> None:
        """A datagram has come to the gateway that it is for."""
        self.nodes[flight.destination].receive(flight)

    def _delivered(self, deliver: Callable[[bytes], None], endpoint: Endpoint, packet: bytes) -> None:
        self.on_delivery(self.nodes[endpoint])
        deliver(packet)

    def packet_down(self, packet: bytes) -> None:
        """A packet for the client: its route leads to the node that took it last, of those that run and have it."""
        leading = [node for node in self.gateways if node.host_up and node.steered.prefixes]
        if leading:
            max(leading, key=lambda node: node.led_ns).packet(packet)

    # Time

    @property
    def now_ms(self) -> int:
        return self.agenda.now_ns // NS

    def run(self, until_ns: int, condition: Callable[[], object] = lambda: False) -> bool:
        """Let time pass until `condition` holds, which is returned, or the agenda's clock reads `until_ns`."""
        agenda = self.agenda
        self._settle()
        while not condition():
            following = self._next_ns()
            if following is None or following > until_ns:
                agenda.now_ns = max(agenda.now_ns, until_ns)
                return bool(condition())
            agenda.now_ns = max(agenda.now_ns, following)
            self._settle()
        return True

    def advance(self, ms: float) -> None:
        self.run(self.agenda.now_ns + round(ms * NS))

    def _next_ns(self) -> int | None:
        due = (self.agenda.next_ns, self._client_ns, *self._gateway_ns.values())
        return min((at for at in due if at is not None), default=None)

    def _settle(self) -> None:
        """Carry out what is due now, until nothing is. Raises Spins."""
        for _ in range(MAX_TURNS):
            if not self._turn():
                return
        raise Spins(f"{MAX_TURNS} turns at one instant")

    def _turn(self) -> bool:
        """Everything that is due at this instant, once. False when nothing was."""
        busy = self.after()
        while (action := self.agenda.take_due()) is not None:
            action()
            self.after()
            busy = True
        now_ns = self.agenda.now_ns
        for endpoint, due_ns in list(self._gateway_ns.items()):
            if due_ns is not None and due_ns <= now_ns:
                self.nodes[endpoint].handle_timer()
                self.after()
                busy = True
        if self._client_ns is not None and self._client_ns <= now_ns:
            self.client.handle_timer()
            self.after()
            busy = True
        return busy

    def after(self) -> bool:
        """Whatever has just happened: carry out what the cores want, see when they want to be woken, and look."""
        client = self.client
        busy = False
        self.steps += 1
        touched = [node for node in self.nodes.values() if node.touched]
        if not touched and not client.touched:
            # A datagram for a worker alone: what the cores decide has not changed.
            return False
        for node in touched:
            node.touched = False
            busy |= node.carry_out()
            self._gateway_ns[node.endpoint] = node.due_ns()
        if client.touched:
            client.touched = False
            busy |= client.carry_out()
            self._client_ns = client.due_ns()
        for watch in self.watchers:
            watch()
        return busy

    # What everybody asks

    @property
    def client_is_due(self) -> bool:
        """It sleeps, or has just woken up and not looked at its deadlines yet."""
        late = self._client_ns is not None and self._client_ns <= self.agenda.now_ns
        return late or self.client.asleep

    def is_due(self, node: GatewayNode) -> bool:
        """The node's supervisor, perhaps one that has just been started or goes on, has deadlines to look at."""
        due_ns = self._gateway_ns[node.endpoint]
        return node.paused or (due_ns is not None and due_ns <= self.agenda.now_ns)

    @property
    def serving(self) -> frozenset[str]:
        """Nodes that may own sessions and that the client reaches, while it runs: none has an excuse then."""
        client_runs = self.client.up and not self.client.over_for_good
        if not client_runs or not any(path.usable for path in self.network.uplinks):
            return frozenset()
        return frozenset(node.node_id for node in self.gateways if self._serves(node))

    def _serves(self, node: GatewayNode) -> bool:
        if not node.up or self.network.cut_off[node.endpoint]:
            return False
        return self.cluster is None or (node.way.good and not node.fenced(node.clock.now_ms))

    @property
    def patience_ms(self) -> int:
        """What it may cost besides that there are other nodes: a lease has to end, and endpoints are tried by turns."""
        return 0 if self.cluster is None else LEASE_TTL_MS + _TURNS_MS

    @property
    def attached(self) -> bool:
        """Both ends agree on a session that delivers, and nothing is in flight."""
        core = self.client.core
        ours = None if core is None else core.session
        if ours is None or not ours.configured or ours.requester.attempt is not None:
            return False
        path = ours.paths.active_path
        if path is None:
            return False
        node = self.nodes[path.uplink.remote]
        theirs = None if node.core is None else node.context.sessions.get(ours.session_id)
        if theirs is None or theirs.bindings.active is None or node.fenced(node.clock.now_ms):
            return False
        return (
            ours.view.state_version == theirs.machine.state_version
            and ours.view.state is theirs.machine.state
            and theirs.bindings.active.index == path.index
        )
