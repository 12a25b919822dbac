"""What probing costs, and how much of it candidates may have.

The active path is probed as the dead-path rule needs, whatever that costs: recovery rests on it. What keeps candidates
warm is optional, so it has a budget, `candidate_probe_bytes_per_day` for all of them together. It sets how often each
is probed (`candidate_interval_ms`), and holds back whoever would want more of it (`ProbeBudget`): link events and the
watching of candidates while quality is poor draw on an hour's worth that may be spent at once.

Sizes are those of IP packets: PROBE and PROBE_ACK are of one length (docs/protocol.md, "PATH"), and both count.

Sans-I/O: times are arguments.
"""

from typing import Final

from jvpn.policy.model import Policy
from jvpn.protocol.constants import (
    HEADER_SIZE,
    OFFLOAD_HEADER_SIZE,
    OVERHEAD_IPV4,
    OVERHEAD_IPV6,
    TAG_SIZE,
)
from jvpn.protocol.paths import PATH_SIZE

DAY_MS: Final = 24 * 60 * 60 * 1_000
DAY_NS: Final = DAY_MS * 1_000_000
#: A PROBE, and as long its PROBE_ACK: UDP payload.
PROBE_SIZE: Final = HEADER_SIZE + PATH_SIZE + TAG_SIZE
#: IP and UDP headers around it.
OUTER: Final = {
    4: OVERHEAD_IPV4 - HEADER_SIZE - OFFLOAD_HEADER_SIZE - TAG_SIZE,
    6: OVERHEAD_IPV6 - HEADER_SIZE - OFFLOAD_HEADER_SIZE - TAG_SIZE,
}
#: No candidate is probed more often in the long run, however large the budget is.
LEAST_INTERVAL_MS: Final = 1_000
#: What may be spent at once: this share of a day, and never less than so many probes.
BURST_OF_DAY: Final = 24
LEAST_BURST_PROBES: Final = 64


def probe_bytes(*, ipv6: bool = False) -> int:
    """One PROBE and its answer as IP packets."""
    return 2 * (OUTER[6 if ipv6 else 4] + PROBE_SIZE)


def candidate_interval_ms(policy: Policy, candidates: int, *, ipv6: bool = False) -> int:
    """Between two probes of each of `candidates` paths that answer, so that all of them keep to the budget."""
    spent = DAY_MS * max(candidates, 1) * probe_bytes(ipv6=ipv6)
    return max(LEAST_INTERVAL_MS, -(-spent // policy.candidate_probe_bytes_per_day))


def burst_bytes(policy: Policy) -> int:
    """What candidates may cost at once, when they have cost nothing for long."""
    return max(
        policy.candidate_probe_bytes_per_day // BURST_OF_DAY, LEAST_BURST_PROBES * probe_bytes(ipv6=True)
    )


class ProbeBudget:
    """The candidates' budget of one session, full at its start. Times are nanoseconds of one monotonic clock."""

    def __init__(self, policy: Policy, now_ns: int) -> None:
        self._per_day = policy.candidate_probe_bytes_per_day
        #: In bytes × DAY_NS: whole numbers, so that adding up small steps loses nothing.
        self._most = burst_bytes(policy) * DAY_NS
        self._left = self._most
        self._now_ns = now_ns

    def follow(self, policy: Policy, now_ns: int) -> None:
        """Another policy from now on; what was spent stays spent."""
        self._refill(now_ns)
        spent = self._most - self._left
        self._per_day, self._most = policy.candidate_probe_bytes_per_day, burst_bytes(policy) * DAY_NS
        self._left = max(0, self._most - spent)

    def take(self, now_ns: int, *, ipv6: bool = False) -> bool:
        """Pay for one probe of a candidate; False, and nothing paid, when it has to wait until `ready_ns`."""
        self._refill(now_ns)
        if self._left < probe_bytes(ipv6=ipv6) * DAY_NS:
            return False
        self._left -= probe_bytes(ipv6=ipv6) * DAY_NS
        return True

    def ready_ns(self, *, ipv6: bool = False) -> int:
        """From when on there is enough for one probe; in the past or now: there is."""
        missing = probe_bytes(ipv6=ipv6) * DAY_NS - self._left
        return self._now_ns - (-missing // self._per_day) if missing > 0 else self._now_ns

    def _refill(self, now_ns: int) -> None:
        if now_ns > self._now_ns:
            self._left = min(self._most, self._left + (now_ns - self._now_ns) * self._per_day)
            self._now_ns = now_ns
