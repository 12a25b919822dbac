"""What is joined, and how time passes.

    application ── client worker ═ ClientCore ── uplinks (network.py) ── GatewayCore ═ workers ── application

Nothing waits and nothing runs beside anything: the agenda holds what will happen, the cores say when they want to be
woken, and `step` makes the next of these happen and carries out all that follows at that instant. After every step the
`watchers` look.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from jvpn.lab.link_model import LinkParams
from jvpn.policy.model import Policy
from jvpn.sim.client import ClientNode, UplinkPlan
from jvpn.sim.clock import NS, Agenda
from jvpn.sim.gateway import GatewayNode
from jvpn.sim.network import Network

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
    """One client and one gateway. `draw` is the only source of randomness besides the network's own streams."""

    def __init__(
        self,
        seed: int,
        policy: Policy,
        uplinks: Sequence[UplinkSetup],
        *,
        deliver_up: Callable[[bytes], None],
        deliver_down: Callable[[bytes], None],
        suite_number: int = 1,
    ) -> None:
        self.agenda = Agenda()
        self.draw = random.Random(f"{seed}/world")
        self.steps = 0
        #: Of all policies that were ever in force.
        self.longest_window_ms = policy.recovery_window_ms
        self.longest_resend_ms = policy.resend_window_ms
        #: Called after every step that may have changed what a core has; they raise at what must not be.
        self.watchers: list[Callable[[], None]] = []
        self.network = Network(
            self.agenda,
            lambda flight: self.gateway.receive(flight),
            lambda flight: self.client.receive(flight),
        )
        plans = []
        for setup in uplinks:
            path = self.network.add(str(seed), setup.up, setup.down)
            plans.append(UplinkPlan(path.number, path.own, setup.preference))
        self.gateway = GatewayNode(self.agenda, self.draw, policy, self.network.send_down, deliver_up)
        self.client = ClientNode(
            self.agenda,
            self.draw,
            policy,
            plans,
            self.network.send_up,
            deliver_down,
            suite_number=suite_number,
        )
        self._gateway_ns: int | None = None
        self._client_ns: int | None = None

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
        due = [at for at in (self.agenda.next_ns, self._gateway_ns, self._client_ns) if at is not None]
        return min(due, default=None)

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
        if self._gateway_ns is not None and self._gateway_ns <= now_ns:
            self.gateway.handle_timer()
            self.after()
            busy = True
        if self._client_ns is not None and self._client_ns <= now_ns:
            self.client.handle_timer()
            self.after()
            busy = True
        return busy

    def after(self) -> bool:
        """Whatever has just happened: carry out what the cores want, see when they want to be woken, and look."""
        gateway, client = self.gateway, self.client
        busy = False
        self.steps += 1
        if not gateway.touched and not client.touched:
            # A datagram for a worker alone: what the cores decide has not changed.
            return False
        if gateway.touched:
            gateway.touched = False
            busy |= gateway.carry_out()
            self._gateway_ns = gateway.due_ns()
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

    @property
    def gateway_is_due(self) -> bool:
        """Its supervisor, perhaps one that has just been started, has deadlines to look at."""
        return self._gateway_ns is not None and self._gateway_ns <= self.agenda.now_ns

    @property
    def well(self) -> bool:
        """Both ends run, and at least one uplink carries nearly everything: the session has no excuse."""
        running = self.gateway.up and self.client.up and not self.client.over_for_good
        return running and any(path.usable for path in self.network.uplinks)

    @property
    def attached(self) -> bool:
        """Both ends agree on a session that delivers, and nothing is in flight."""
        core, gateway = self.client.core, self.gateway.core
        ours = None if core is None else core.session
        if ours is None or gateway is None or not ours.configured or ours.requester.attempt is not None:
            return False
        theirs = gateway.context.sessions.get(ours.session_id)
        path = ours.paths.active_path
        if theirs is None or path is None or theirs.bindings.active is None:
            return False
        return (
            ours.view.state_version == theirs.machine.state_version
            and ours.view.state is theirs.machine.state
            and theirs.bindings.active.index == path.index
        )
