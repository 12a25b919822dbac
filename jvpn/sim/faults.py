"""What goes wrong, by name. Each begins at its time, and what it returns ends it.

Here are the network's; `breaking.py` has those of processes. A fault says in one line what it has drawn (`say`); a
timeline shows that. To add one: a function under `@fault` in a module that plan.py imports.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from jvpn.protocol.constants import PacketType
from jvpn.sim.attacker import Attacker
from jvpn.sim.gateway import GatewayNode
from jvpn.sim.network import DOWN, GATEWAY, UP, Flight, Network, flip
from jvpn.sim.world import World
from workers.commands import Endpoint

Undo = Callable[[], None]
_LATE_NEWS_MS: Final = (0, 0, 20, 200)


@dataclass(frozen=True, slots=True)
class Fault:
    """`uplink`: the one it is about, where it is about one. `draw`: seeds what it decides itself."""

    number: int
    at_ms: int
    lasts_ms: int
    name: str
    uplink: int
    draw: int


@dataclass(frozen=True, slots=True)
class Stage:
    """What a fault may use."""

    world: World
    fault: Fault
    draw: random.Random
    say: Callable[[str], None]
    #: Something without a proof reaches an end now: nothing may move (guard.py).
    unproven: Callable[[Flight], None]
    attacker: Attacker

    @property
    def gateway(self) -> GatewayNode:
        """The one that the fault is about."""
        gateways = self.world.gateways
        return gateways[self.fault.draw % len(gateways)]


@dataclass(frozen=True, slots=True)
class Kind:
    """`weight`: how often it is drawn; `lasts_ms`: shortest and longest."""

    begin: Callable[[Stage], Undo | None]
    weight: float
    lasts_ms: tuple[int, int]


FAULTS: Final[dict[str, Kind]] = {}
#: What can go wrong besides where there are several gateways.
FLEET_FAULTS: Final[dict[str, Kind]] = {}


def fault(
    weight: float, lasts_ms: tuple[int, int] = (100, 8_000), *, fleet: bool = False
) -> Callable[[Callable[[Stage], Undo | None]], Callable[[Stage], Undo | None]]:
    def register(begin: Callable[[Stage], Undo | None]) -> Callable[[Stage], Undo | None]:
        (FLEET_FAULTS if fleet else FAULTS)[begin.__name__] = Kind(begin, weight, lasts_ms)
        return begin

    return register


def _overlay(stage: Stage, ways: tuple[bool, ...], changes: dict[str, Any], uplinks: list[int]) -> Undo:
    number = stage.fault.number
    directions = [stage.world.network.uplinks[n].direction(up) for n in uplinks for up in ways]
    for direction in directions:
        direction.overlay(number, changes)

    def undo() -> None:
        for direction in directions:
            direction.lift(number)

    return undo


def _shape(stage: Stage, **changes: Any) -> Undo:
    """Other properties for one uplink, one way or both."""
    ways = stage.draw.choice(((True, False), (True, False), (True,), (False,)))
    way = "both ways" if len(ways) == 2 else "up" if ways[0] else "down"
    text = ", ".join(f"{name} {value:g}" for name, value in changes.items())
    stage.say(f"uplink {stage.fault.uplink}: {text} {way}")
    return _overlay(stage, ways, changes, [stage.fault.uplink])


# Links


@fault(3)
def link_down(stage: Stage) -> Undo:
    """The link goes, and netlink says so; later it is back."""
    world, number = stage.world, stage.fault.uplink
    path, news_ms = world.network.uplinks[number], stage.draw.choice(_LATE_NEWS_MS)
    path.link_up = False
    stage.say(f"uplink {number} has no link, told after {news_ms} ms")
    world.agenda.later(news_ms, lambda: world.client.link(number, path.link_up))

    def undo() -> None:
        path.link_up = True
        world.agenda.later(news_ms, lambda: world.client.link(number, path.link_up))

    return undo


@fault(1, (500, 6_000))
def flapping(stage: Stage) -> Undo:
    """A link that comes and goes."""
    world, number, draw = stage.world, stage.fault.uplink, stage.draw
    path, ended = world.network.uplinks[number], False
    stage.say(f"uplink {number} flaps")

    def flap() -> None:
        path.link_up = ended or not path.link_up
        world.client.link(number, path.link_up)
        if not ended:
            world.agenda.later(draw.randrange(20, 400), flap)

    def undo() -> None:
        nonlocal ended
        ended = True
        path.link_up = True
        world.client.link(number, True)

    flap()
    return undo


@fault(3)
def blackhole(stage: Stage) -> Undo:
    """Everything on one uplink is lost, both ways, and nobody says so."""
    stage.say(f"uplink {stage.fault.uplink} is silent")
    return _overlay(stage, (True, False), {"drop": True}, [stage.fault.uplink])


@fault(3)
def one_way(stage: Stage) -> Undo:
    """One direction of an uplink is dead."""
    up = stage.draw.random() < 0.5
    stage.say(f"uplink {stage.fault.uplink} is dead {'up' if up else 'down'}")
    return _overlay(stage, (up,), {"drop": True}, [stage.fault.uplink])


@fault(2)
def partition(stage: Stage) -> Undo:
    """No uplink reaches the gateway, one way or both."""
    ways = stage.draw.choice(((True, False), (True,), (False,)))
    stage.say(f"no uplink carries anything {'both ways' if len(ways) == 2 else 'up' if ways[0] else 'down'}")
    return _overlay(stage, ways, {"drop": True}, list(range(len(stage.world.network.uplinks))))


@fault(2)
def loss(stage: Stage) -> Undo:
    return _shape(stage, loss=stage.draw.choice((0.05, 0.1, 0.3, 0.5, 0.9)))


@fault(2)
def bursts(stage: Stage) -> Undo:
    return _shape(
        stage, burst_loss=stage.draw.choice((0.05, 0.2)), burst_frames=stage.draw.choice((4.0, 30.0))
    )


@fault(1)
def reordering(stage: Stage) -> Undo:
    return _shape(stage, reorder=stage.draw.choice((0.1, 0.4)), reorder_ms=stage.draw.choice((5.0, 100.0)))


@fault(1)
def duplication(stage: Stage) -> Undo:
    return _shape(stage, duplicate=stage.draw.choice((0.1, 0.9)))


@fault(2)
def corruption(stage: Stage) -> Undo:
    return _shape(stage, corrupt=stage.draw.choice((0.02, 0.1, 0.5)))


@fault(1)
def latency(stage: Stage) -> Undo:
    return _shape(stage, delay_ms=stage.draw.choice((1.0, 200.0, 1_000.0)))


@fault(1)
def jitter(stage: Stage) -> Undo:
    return _shape(stage, jitter_ms=stage.draw.choice((20.0, 200.0)))


@fault(1)
def narrow(stage: Stage) -> Undo:
    """A bottleneck with a long queue."""
    return _shape(
        stage, rate_mbit=stage.draw.choice((0.05, 0.5)), queue_ms=stage.draw.choice((50.0, 1_000.0))
    )


@fault(1, (1_000, 15_000))
def small_mtu(stage: Stage) -> Undo:
    """Longer datagrams are dropped without a word."""
    return _shape(stage, mtu=stage.draw.choice((1_280, 1_400)))


@fault(3, (1, 2))
def nat_rebinding(stage: Stage) -> None:
    stage.world.network.rebind(stage.fault.uplink, stage.draw)
    external = stage.world.network.uplinks[stage.fault.uplink].external
    stage.say(f"uplink {stage.fault.uplink} comes from another source, port {external.port}")


@fault(1.5, (500, 6_000))
def junk(stage: Stage) -> Undo:
    """Datagrams that prove nothing, at either end: spoilt copies of genuine ones, pieces of them, and noise."""
    network, agenda, draw = stage.world.network, stage.world.agenda, stage.draw
    ended = False
    stage.say("somebody sends junk")

    def one() -> None:
        if ended:
            return
        for _ in range(draw.randrange(1, 4)):
            stage.unproven(_junk(network, stage.fault.uplink, draw))
        agenda.later(draw.randrange(10, 300), one)

    def undo() -> None:
        nonlocal ended
        ended = True

    one()
    return undo


def _junk(network: Network, uplink: int, draw: random.Random) -> Flight:
    """One datagram that nobody sent so."""
    path = network.uplinks[uplink]
    up = draw.random() < 0.5
    genuine = [flight for flight in network.recent if flight.up is up]
    if genuine and draw.random() < 0.8:
        data = draw.choice(genuine).data
        data = flip(data, draw) if draw.random() < 0.7 else data[: draw.randrange(1, len(data))]
    else:
        head = bytes((draw.choice(list(PacketType)), 0x10, 0, 0))
        data = head + draw.randbytes(draw.randrange(1, 300))
    stranger = Endpoint(path.external.address, draw.randrange(1_024, 65_536))
    source = path.external if draw.random() < 0.5 else stranger
    if up:
        return Flight(UP, uplink, source, GATEWAY, data, False)
    return Flight(DOWN, uplink, GATEWAY, path.external, data, False)
