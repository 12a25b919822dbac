"""What probing costs, and how much of it candidates may have.

The active path is probed as the dead-path rule needs, whatever that costs: recovery rests on it. What keeps candidates
warm is optional, so it has a budget, `candidate_probe_bytes_per_day` for all of them together. It sets how often each
is probed (`candidate_interval_ms`), and holds back whoever would want more of it (`ProbeBudget`): link events and the
watching of candidates while quality is poor draw on an hour's worth that may be spent at once.

Sizes are those of IP packets: PROBE and PROBE_ACK are of one length (docs/protocol.md, "PATH"), and both count.

Sans-I/O: times are arguments.
"""

from dataclasses import dataclass
from typing import Final

from jvpn.policy.model import Policy
from jvpn.protocol.constants import HEADER_SIZE, TAG_SIZE
from jvpn.protocol.paths import PATH_SIZE

DAY_MS: Final = 24 * 60 * 60 * 1_000
DAY_NS: Final = DAY_MS * 1_000_000
UDP_HEADER: Final = 8
IPV4_HEADER: Final = 20
IPV6_HEADER: Final = 40
#: No candidate is probed more often in the long run, however large the budget is.
LEAST_INTERVAL_MS: Final = 1_000
#: What may be spent at once: this share of a day, and never less than so many probes.
BURST_OF_DAY: Final = 24
LEAST_BURST_PROBES: Final = 64


def probe_bytes(*, ipv6: bool = False) -> int:
    """One PROBE and its answer as IP packets."""
    ip = IPV6_HEADER if ipv6 else IPV4_HEADER
    return 2 * (ip + UDP_HEADER + HEADER_SIZE + PATH_SIZE + TAG_SIZE)


def candidate_interval_ms(policy: Policy, candidates: int, *, ipv6: bool = False) -> int:
    """Between two probes of each of `candidates` paths that answer, so that all of them keep to the budget."""
    spent = DAY_MS * max(candidates, 1) * probe_bytes(ipv6=ipv6)
    return max(LEAST_INTERVAL_MS, -(-spent // policy.candidate_probe_bytes_per_day))


@dataclass(frozen=True, slots=True)
class ProbeCost:
    """Bytes a day, both directions, as IP packets.

    `active_idle`: of the active path when nothing is sent. `active_busy`: when something is sent all the time, the
    most that it can be. `each_candidate`: of every candidate that answers. `candidates_most`: of all of them, whatever
    happens to them. `idle`, `busy`: of the whole session.
    """

    candidates: int
    candidate_interval_ms: int
    active_idle: int
    active_busy: int
    each_candidate: int
    candidates_most: int

    @property
    def idle(self) -> int:
        return self.active_idle + self.candidates * self.each_candidate

    @property
    def busy(self) -> int:
        return self.active_busy + self.candidates * self.each_candidate


def probe_cost(policy: Policy, candidates: int | None = None, *, ipv6: bool = False) -> ProbeCost:
    """What probing costs under `policy`, with so many candidates beside the active path; None: as many as it allows."""
    candidates = policy.max_candidates if candidates is None else candidates
    each = probe_bytes(ipv6=ipv6)
    interval_ms = candidate_interval_ms(policy, candidates, ipv6=ipv6)
    return ProbeCost(
        candidates=candidates,
        candidate_interval_ms=interval_ms,
        active_idle=each * DAY_MS // policy.idle_probe_interval_ms,
        active_busy=each * DAY_MS // policy.probe_interval_ms,
        each_candidate=each * DAY_MS // interval_ms,
        candidates_most=policy.candidate_probe_bytes_per_day + _burst_bytes(policy) if candidates else 0,
    )


def _burst_bytes(policy: Policy) -> int:
    return max(
        policy.candidate_probe_bytes_per_day // BURST_OF_DAY, LEAST_BURST_PROBES * probe_bytes(ipv6=True)
    )


class ProbeBudget:
    """The candidates' budget of one session, full at its start. Times are nanoseconds of one monotonic clock."""

    def __init__(self, policy: Policy, now_ns: int) -> None:
        self._per_day = policy.candidate_probe_bytes_per_day
        #: In bytes × DAY_NS: whole numbers, so that adding up small steps loses nothing.
        self._most = _burst_bytes(policy) * DAY_NS
        self._left = self._most
        self._now_ns = now_ns

    def follow(self, policy: Policy, now_ns: int) -> None:
        """Another policy from now on; what was spent stays spent."""
        self._refill(now_ns)
        spent = self._most - self._left
        self._per_day, self._most = policy.candidate_probe_bytes_per_day, _burst_bytes(policy) * DAY_NS
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
