"""Is a path that delivers good enough? Floors, hysteresis and the two windows, as pure functions.

A floor is broken when a signal has been beyond it for `volatility_hold_ms`; quality is restored when every signal has
been inside its floor × `hysteresis` for `stability_window_ms`. What cannot be measured breaks nothing and restores
nothing. Times are integer milliseconds of a monotonic clock.

The client judges what it measures (`judge`) and proposes a state; the gateway holds the proposal against what the
client says that it measured, and against its own clock (`commit`).
"""

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

from jvpn.policy.model import Policy

#: Reason codes of the session machine.
QUALITY_FLOOR_VIOLATION: Final = "QUALITY_FLOOR_VIOLATION"
QUALITY_RESTORED: Final = "QUALITY_RESTORED"
VOLATILITY_PERSISTED: Final = "VOLATILITY_PERSISTED"
SWITCH_RATE_LIMITED: Final = "SWITCH_RATE_LIMITED"
#: `loss_samples` of a loss that is told, not estimated.
TOLD: Final = 2**62
Proposal = Literal["QUALITY_FLOOR_VIOLATION", "QUALITY_RESTORED"]


@dataclass(frozen=True, slots=True)
class Signals:
    """What was measured over `loss_window_ms`; None where there were too few samples.

    `loss` is a share of 1 in the worse direction, estimated from `loss_samples`; `latency_ms` the 95th percentile of
    the round trip; `jitter_ms` that less the median (RFC 5481's packet delay variation, against the median).
    """

    loss: float | None = None
    loss_samples: int = 0
    latency_ms: float | None = None
    jitter_ms: float | None = None

    @property
    def least_loss(self) -> float | None:
        """The loss less one standard error: what these few samples really show."""
        if self.loss is None or self.loss_samples <= 0:
            return None
        return max(0.0, self.loss - math.sqrt(self.loss * (1 - self.loss) / self.loss_samples))


@dataclass(frozen=True, slots=True)
class Breach:
    """A signal beyond its floor."""

    signal: str
    observed: float
    threshold: float


def breaches(policy: Policy, signals: Signals) -> tuple[Breach, ...]:
    """Floors broken by these signals, in the order loss, latency, jitter."""
    measured = (
        ("loss", signals.least_loss, policy.loss_floor),
        ("latency_ms", signals.latency_ms, policy.latency_floor_ms),
        ("jitter_ms", signals.jitter_ms, policy.jitter_floor_ms),
    )
    return tuple(
        Breach(name, round(observed, 4), float(floor))
        for name, observed, floor in measured
        if observed is not None and observed > floor
    )


def calm(policy: Policy, signals: Signals) -> bool:
    """Every signal measured, and inside its floor × hysteresis."""
    limits = (
        (signals.loss, policy.loss_floor),
        (signals.latency_ms, policy.latency_floor_ms),
        (signals.jitter_ms, policy.jitter_floor_ms),
    )
    return all(observed is not None and observed <= floor * policy.hysteresis for observed, floor in limits)


@dataclass(frozen=True, slots=True)
class Quality:
    """What is remembered between two looks: is a floor broken, and since when do the signals say something else."""

    broken: bool = False
    bad_since_ms: int | None = None
    calm_since_ms: int | None = None


def judge(
    policy: Policy, before: Quality, signals: Signals, now_ms: int
) -> tuple[Quality, Proposal | None, tuple[Breach, ...]]:
    """One look at the signals: what to remember, what to propose, and which floors are beyond.

    A fresh binding starts from `Quality()`; a session that is VOLATILE or DEGRADED on it from `Quality(broken=True)`.
    """
    beyond = breaches(policy, signals)
    bad_since_ms = (now_ms if before.bad_since_ms is None else before.bad_since_ms) if beyond else None
    inside = calm(policy, signals)
    calm_since_ms = (now_ms if before.calm_since_ms is None else before.calm_since_ms) if inside else None
    after = Quality(before.broken, bad_since_ms, calm_since_ms)
    if not before.broken and bad_since_ms is not None and now_ms - bad_since_ms >= policy.volatility_hold_ms:
        return replace(after, broken=True), "QUALITY_FLOOR_VIOLATION", beyond
    if before.broken and calm_since_ms is not None and now_ms - calm_since_ms >= policy.stability_window_ms:
        return replace(after, broken=False), "QUALITY_RESTORED", beyond
    return after, None, beyond


@dataclass(frozen=True, slots=True)
class Claim:
    """What a client proposes, by the names of the session machine's states, and the measures it gives.

    `limited`: the switch that would help is not allowed yet.
    """

    proposed: str
    signals: Signals
    limited: bool = False


@dataclass(frozen=True, slots=True)
class Commitment:
    """`reason`: the transition to make, empty where the proposal does not hold; `breaches`: the floors that broke, or
    what speaks against the proposal."""

    reason: str
    breaches: tuple[Breach, ...] = ()


def commit(policy: Policy, claim: Claim, state: str, since_ms: int, now_ms: int) -> Commitment:
    """Whether a session that is in `state` since `since_ms` goes where its client proposes.

    A session must have been ATTACHED for `volatility_hold_ms` before it is VOLATILE, VOLATILE for
    `volatile_to_degraded_ms` before it is DEGRADED, and either for `stability_window_ms` before it is restored: whoever
    keeps to the policy has watched at least that long.
    """
    if claim.proposed == "VOLATILE" and state == "ATTACHED":
        beyond = breaches(policy, claim.signals)
        waited = _waited("volatility_hold_ms", policy.volatility_hold_ms, now_ms - since_ms)
        if waited or not beyond:
            return Commitment("", waited)
        return Commitment(QUALITY_FLOOR_VIOLATION, beyond)
    if claim.proposed == "DEGRADED" and state == "VOLATILE":
        waited = _waited("volatile_to_degraded_ms", policy.volatile_to_degraded_ms, now_ms - since_ms)
        reason = SWITCH_RATE_LIMITED if claim.limited else VOLATILITY_PERSISTED
        return Commitment("", waited) if waited else Commitment(reason)
    if claim.proposed == "ATTACHED" and state in ("VOLATILE", "DEGRADED"):
        waited = _waited("stability_window_ms", policy.stability_window_ms, now_ms - since_ms)
        if waited or not calm(policy, claim.signals):
            return Commitment("", waited or breaches(policy, claim.signals))
        return Commitment(QUALITY_RESTORED)
    return Commitment("")


def _waited(limit: str, threshold_ms: int, observed_ms: int) -> tuple[Breach, ...]:
    return () if observed_ms >= threshold_ms else (Breach(limit, float(observed_ms), float(threshold_ms)),)
