"""What a seed decides before a run begins: policy, links, and which faults come when. Nothing else is drawn later but
by the streams that belong to the parts themselves, each seeded by the same number."""

import random
from dataclasses import dataclass
from typing import Final

from jvpn.lab.link_model import LinkParams, merge
from jvpn.policy.model import Policy
from jvpn.sim import attacks, breaking, fleet_faults
from jvpn.sim.faults import FAULTS, FLEET_FAULTS, Fault, Kind
from jvpn.sim.policies import draw_policy
from jvpn.sim.world import UplinkSetup

#: Modules that register faults, named so that all are drawn from.
REGISTERED: Final = (breaking, attacks, fleet_faults)
#: The first faults come when a session had the time to be born.
QUIET_MS: Final = 1_000
#: The share of seeds in which nothing goes wrong: then nothing may be lost either.
FAIR: Final = 0.06
#: And the share with two or three gateways.
FLEET: Final = 0.3


@dataclass(frozen=True, slots=True)
class Plan:
    """`chaos_ms`: how long faults come; after that everything is healed and watched for `heal_ms`."""

    seed: int
    policy: Policy
    suite: int
    uplinks: tuple[UplinkSetup, ...]
    worker_delay_ms: float
    faults: tuple[Fault, ...]
    chaos_ms: int
    heal_ms: int = 10_000
    #: No link loses anything and nothing goes wrong.
    fair: bool = False
    #: Gateways that share one store; 1: one with a store of its own.
    nodes: int = 1

    @property
    def text(self) -> str:
        """In one line, for people."""
        usual, policy = Policy.default(), self.policy
        changed = [
            f"{name} {value}" for name, value in vars(policy).items() if value != getattr(usual, name, value)
        ]
        links = [f"{setup.up.delay_ms:g} ms" for setup in self.uplinks]
        fleet = f"{self.nodes} nodes; " if self.nodes > 1 else ""
        return f"{fleet}uplinks {' | '.join(links)}; suite {self.suite}; {', '.join(changed)}"


def plan(seed: int) -> Plan:
    draw = random.Random(f"{seed}/plan")
    chaos_ms = draw.randrange(10_000, 18_000)
    uplinks = tuple(_uplink(draw) for _ in range(draw.choice((1, 2, 2, 2, 3))))
    fair = draw.random() < FAIR
    nodes = 1 if random.Random(f"{seed}/nodes").random() >= FLEET else 2 + (seed % 3 == 0)
    if fair:
        uplinks = tuple(UplinkSetup(_lossless(u.up), _lossless(u.down), u.preference) for u in uplinks)
    return Plan(
        seed,
        draw_policy(draw),
        draw.choice((1, 1, 2)),
        uplinks,
        draw.choice((0.0, 0.0, 1.0, 5.0)),
        () if fair else _faults(draw, len(uplinks), chaos_ms, nodes),
        chaos_ms,
        fair=fair,
        nodes=nodes,
    )


def _lossless(params: LinkParams) -> LinkParams:
    return merge(params, {"loss": 0.0})


def _uplink(draw: random.Random) -> UplinkSetup:
    """A link as links are: some long, some lossy; usually the same both ways."""
    delay_ms = draw.choice((2, 10, 10, 25, 50, 150, 300))
    usual = LinkParams(
        delay_ms=delay_ms,
        jitter_ms=draw.choice((0.0, 0.0, 1.0, delay_ms / 4)),
        loss=draw.choice((0.0, 0.0, 0.0, 0.005, 0.02)),
        reorder=draw.choice((0.0, 0.0, 0.01)),
        duplicate=draw.choice((0.0, 0.0, 0.01)),
    )
    return UplinkSetup(usual, usual, draw.choice((100, 100, 100, 50)))


def _faults(draw: random.Random, uplinks: int, chaos_ms: int, nodes: int) -> tuple[Fault, ...]:
    faults = [_fault(draw, FAULTS, number, uplinks, chaos_ms) for number in range(draw.randrange(2, 9))]
    if nodes > 1:
        # A fleet's own, and fewer of the others: how they meet is what it is about.
        own = [_fault(draw, FLEET_FAULTS, 100 + n, uplinks, chaos_ms) for n in range(draw.randrange(2, 9))]
        faults = faults[: len(faults) // 2] + own
    return tuple(sorted(faults, key=lambda fault: (fault.at_ms, fault.number)))


def _fault(draw: random.Random, kinds: dict[str, Kind], number: int, uplinks: int, chaos_ms: int) -> Fault:
    names = list(kinds)
    name = draw.choices(names, [kinds[name].weight for name in names])[0]
    at_ms = draw.randrange(QUIET_MS, chaos_ms)
    least, most = kinds[name].lasts_ms
    lasts_ms = round(least * (most / least) ** draw.random())
    return Fault(number, at_ms, lasts_ms, name, draw.randrange(uplinks), draw.randrange(1 << 32))
