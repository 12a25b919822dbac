"""What a policy costs and how fast it is, before anything has happened: found by asking the rules themselves. Pure.

Probes are counted by running `PathHealth` on a clock of its own, sizes are the wire's; so what is said here is what the
client does, also when the rules change.
"""

from dataclasses import dataclass
from typing import Final, Literal

from jvpn.policy.dead_path import HASTY_VARIATIONS, DeadPathRule
from jvpn.policy.estimators import MS, SECOND, patience_ns
from jvpn.policy.health import PathHealth
from jvpn.policy.model import Policy
from jvpn.policy.pmtud import BUSY_INTERVAL_NS, CEILING, IDLE_INTERVAL_NS
from jvpn.policy.probe_budget import DAY_NS, OUTER, PROBE_SIZE, candidate_interval_ms

#: What a path does all day. `busy`: DATA is sent all the time; `lost`: a candidate that does not answer.
Use = Literal["idle", "busy", "watched", "candidate", "lost"]
USES: Final[tuple[Use, ...]] = ("idle", "busy", "watched", "candidate", "lost")
#: Counted over so many probes, after as many for the path to settle.
_COUNTED: Final = 50
_ROUND_TRIP_NS: Final = 20 * MS


@dataclass(frozen=True, slots=True)
class Budget:
    """One path for a day: probes sent, and bytes on the wire in both directions together.

    `mtu_bytes`: of these, what keeps the path's MTU known (active paths alone), in packets of 1500 bytes.
    """

    use: Use
    probes: int
    ipv4_bytes: int
    ipv6_bytes: int
    mtu_bytes: int


def budget(policy: Policy, use: Use) -> Budget:
    """What probing one path costs a day under this policy."""
    probes = round(DAY_NS / interval_ns(policy, use))
    ways = 1 if use == "lost" else 2
    mtu = 0
    if use in ("idle", "busy", "watched"):
        mtu = 2 * CEILING * (DAY_NS // (BUSY_INTERVAL_NS if use == "busy" else IDLE_INTERVAL_NS))
    by_version = {version: ways * probes * (PROBE_SIZE + outer) + mtu for version, outer in OUTER.items()}
    return Budget(use, probes, by_version[4], by_version[6], mtu)


def interval_ns(policy: Policy, use: Use) -> float:
    """The mean time between two probes of a path that is used so; of candidates there are as many as may be."""
    now_ns = SECOND
    health = PathHealth(policy, now_ns, active=use in ("idle", "busy", "watched"))
    health.watch(use == "watched", now_ns)
    health.pace(candidate_interval_ms(policy, policy.max_candidates) * MS)
    begun_ns = now_ns
    for number in range(2 * _COUNTED):
        if number == _COUNTED:
            begun_ns = now_ns
        probe = number + 1
        health.on_probe_sent(probe, now_ns)
        if use != "lost":
            health.on_probe_acked(probe, now_ns + _ROUND_TRIP_NS)
        if use == "busy":
            health.on_data_sent(now_ns + _ROUND_TRIP_NS)
        now_ns = max(now_ns + _ROUND_TRIP_NS, health.next_probe_at(now_ns + _ROUND_TRIP_NS))
    return (now_ns - begun_ns) / _COUNTED


def dead_after_ms(policy: Policy, loss: float, srtt_ms: float, rttvar_ms: float = 0.0) -> int:
    """How long at most an active path that carries DATA can be dead before that is known.

    `loss`: of its round trips, a share of 1; `srtt_ms` and `rttvar_ms`: the round trip and its variation, as measured.
    The first unanswered probe goes within one interval of the death.
    """
    _missing, waited_ns = _foretold(policy, loss, srtt_ms, rttvar_ms)
    return -(-(DeadPathRule(policy).interval_ns + waited_ns) // MS)


def missing_probes(policy: Policy, loss: float, srtt_ms: float) -> int:
    """How many probes of a path that carries DATA have to be missing until it is called dead."""
    return _foretold(policy, loss, srtt_ms, 0.0)[0]


def _foretold(policy: Policy, loss: float, srtt_ms: float, rttvar_ms: float) -> tuple[int, int]:
    rule, srtt_ns, rttvar_ns = DeadPathRule(policy), round(srtt_ms * MS), round(rttvar_ms * MS)
    hasty_ns = patience_ns(srtt_ns, rttvar_ns, rule.hasty_ns, HASTY_VARIATIONS)
    return rule.foretold(loss, patience_ns(srtt_ns, rttvar_ns, rule.granularity_ns), hasty_ns)
