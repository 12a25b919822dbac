"""Which path, and whether to move: pure functions of (policy, candidates, history, now).

Nothing here remembers. The caller records the arguments with each decision, so a recorded stream can be decided again
and must come out the same. Reason codes are those of the session machine's table. Times are integer milliseconds of one
monotonic clock.

The order of candidates is total. Filter: link up; transport, device, network and cost allowed. Then, smaller first: not
answering, preference (higher number first), cost, place in `allowed_transports`, loss, latency, stability (longest
steady first), id.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from jvpn.policy.model import Policy
from jvpn.policy.parameters import MINUTE

NEVER_MS: Final = 2**62


class Action(StrEnum):
    STAY = "STAY"
    SWITCH = "SWITCH"  # voluntary: the old path keeps delivering until the new one is bound
    DENY = "DENY"  # a voluntary switch would be right, and is not allowed yet
    REATTACH = "REATTACH"  # nothing delivers: bind this candidate as soon as possible
    DEGRADE = "DEGRADE"
    TERMINATE = "TERMINATE"


class Phase(StrEnum):
    """The session machine's states that have a decision to take."""

    ATTACHED = "ATTACHED"
    VOLATILE = "VOLATILE"
    DEGRADED = "DEGRADED"
    RECOVERING = "RECOVERING"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One path at one instant; the active path is one of them. `loss` is a share of 1.

    `latency_ms` None: never measured. `steady_since_ms` None: not answering now. `broken`: a quality floor is broken.
    `measured`: often enough of late to be compared with another.
    """

    id: str
    transport: str
    preference: int = 100
    cost: int = 0
    up: bool = True
    answering: bool = False
    dead: bool = False
    broken: bool = False
    loss: float = 0.0
    latency_ms: float | None = None
    jitter_ms: float | None = None
    steady_since_ms: int | None = None
    device: str = ""
    network: str = ""
    measured: bool = True


@dataclass(frozen=True, slots=True)
class History:
    """What led here. `binds_ms`: times of all binds of the last minute at least, oldest first.

    `recovering_since_ms`: when RECOVERING was entered, None elsewhere. `active` is the bound path's id, None without.
    `chosen`: somebody wanted to be on it, so preference leaves it alone. `refused_until_ms`: the last voluntary switch
    came to nothing, and no other is to be asked for before then.
    """

    phase: Phase
    phase_since_ms: int
    active: str | None = None
    attached_since_ms: int = 0
    recovering_since_ms: int | None = None
    binds_ms: tuple[int, ...] = ()
    chosen: bool = False
    refused_until_ms: int = 0


Evidence = dict[str, int | float | str]


@dataclass(frozen=True, slots=True)
class Decision:
    """`because`: what was observed and the threshold it was held against, as it stands in the event.

    `reason` of a DENY is that of the switch that is denied; `candidate` None with REATTACH or
    DENY: there is nothing to try.
    """

    action: Action
    reason: str = ""
    candidate: str | None = None
    because: Evidence = field(default_factory=dict)
    retry_after_ms: int = 0


STAY: Final = Decision(Action.STAY)


def excluded(policy: Policy, candidate: Candidate) -> str:
    """Why a candidate is not to be taken at all; empty when it may be."""
    if not candidate.up:
        return "it has no link, or no address that reaches the gateway"
    return left_out(policy, candidate.transport, candidate.device, candidate.network, candidate.cost)


def left_out(policy: Policy, transport: str, device: str, network: str, cost: int) -> str:
    """Why the policy would have nothing of such a path, whatever its state; empty when it would."""
    if transport not in policy.allowed_transports:
        return f"transport {transport} is not in allowed_transports"
    if not _named(device, policy.allowed_interfaces):
        return f"device {device} is not in allowed_interfaces"
    if not _named(network, policy.allowed_networks):
        return f"network {network or 'without a name'} is not in allowed_networks"
    if cost > policy.max_cost:
        return f"cost {cost} is above max_cost {policy.max_cost}"
    return ""


def _named(name: str, patterns: tuple[str, ...]) -> bool:
    """Is `name` among these, or are there none? A * at the end of one stands for any end."""
    matches = (name.startswith(p[:-1]) if p.endswith("*") else name == p for p in patterns)
    return not patterns or any(matches)


def order(policy: Policy, candidate: Candidate) -> tuple[tuple[str, object], ...]:
    """What a usable candidate's place goes by, the weightiest first, by name; of two values the smaller is better."""
    latency_ms, steady_ms = candidate.latency_ms, candidate.steady_since_ms
    return (
        ("answering", not candidate.answering),
        ("preference", -candidate.preference),
        ("cost", candidate.cost),
        ("transport", policy.allowed_transports.index(candidate.transport)),
        ("loss", candidate.loss),
        ("latency", float("inf") if latency_ms is None else latency_ms),
        ("stability", NEVER_MS if steady_ms is None else steady_ms),
        ("id", candidate.id),
    )


def ranked(policy: Policy, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Usable candidates, best first; the order of the input does not matter."""
    return sorted((c for c in candidates if not excluded(policy, c)), key=lambda c: order(policy, c))


def warm(policy: Policy, candidates: Iterable[Candidate], active: str | None) -> list[Candidate]:
    """The candidates worth keeping warm beside the active path: the first `max_candidates`."""
    return [c for c in ranked(policy, candidates) if c.id != active][: policy.max_candidates]


def badness(policy: Policy, candidate: Candidate) -> float:
    """How bad a path is, in floors: the sum of each signal over its floor. 0 is perfect, a broken floor adds over 1."""
    latency = policy.latency_floor_ms if candidate.latency_ms is None else candidate.latency_ms
    return (
        candidate.loss / policy.loss_floor
        + latency / policy.latency_floor_ms
        + (candidate.jitter_ms or 0.0) / policy.jitter_floor_ms
    )


def choose(policy: Policy, candidates: Iterable[Candidate], history: History, now_ms: int) -> Decision:
    """What to do now. Recovery is judged before anything voluntary, and is never held back by a limit."""
    known = list(candidates)
    paths = ranked(policy, known)
    if history.phase is Phase.RECOVERING:
        return _recover(policy, paths, history, now_ms)
    barred = next((path for path in known if path.id == history.active and path.up and not path.dead), None)
    if barred is not None and excluded(policy, barred):
        return _leave(policy, paths, barred, history, now_ms)
    active = next((path for path in paths if path.id == history.active), None)
    if active is None or active.dead:
        return _replace(paths, history, active)
    if history.phase is Phase.ATTACHED and not active.broken:
        return _fall_back(policy, paths, active, history, now_ms)
    return _relieve(policy, paths, active, history, now_ms)


def _recover(policy: Policy, paths: list[Candidate], history: History, now_ms: int) -> Decision:
    since_ms = history.phase_since_ms if history.recovering_since_ms is None else history.recovering_since_ms
    elapsed_ms = now_ms - since_ms
    if elapsed_ms >= policy.recovery_window_ms:
        ends = policy.on_recovery_window_exceeded == "terminate"
        action = Action.TERMINATE if ends else Action.DEGRADE
        because: Evidence = {"elapsed_ms": elapsed_ms, "recovery_window_ms": policy.recovery_window_ms}
        return Decision(action, "RECOVERY_WINDOW_EXCEEDED", None, because)
    if not paths:
        return Decision(Action.DEGRADE, "NO_CANDIDATE", None, {"candidates": 0, "needed": 1})
    return Decision(Action.REATTACH, "REATTACH_REQUESTED", paths[0].id, {"elapsed_ms": elapsed_ms})


def _replace(paths: list[Candidate], history: History, active: Candidate | None) -> Decision:
    """The bound path is gone or dead, or none is bound (DEGRADED)."""
    others = [path for path in paths if path.id != history.active]
    # A dead path is still tried when there is nothing else: what is dead on this index may live on the next.
    best = next((path for path in others if path.answering), None) or next(iter(others or paths), None)
    if history.active is None:
        if best is None:
            return STAY
        return Decision(Action.REATTACH, "REATTACH_REQUESTED", best.id, {"bindings": 0})
    state = "dead" if active is not None else "gone"
    because: Evidence = {"active": history.active, "observed": state}
    return Decision(Action.REATTACH, "TRANSPORT_DEAD", best.id if best else None, because)


def _leave(
    policy: Policy, paths: list[Candidate], barred: Candidate, history: History, now_ms: int
) -> Decision:
    """The bound path delivers, and the policy would not take it (the handshake came over it, or the policy changed)."""
    best = next((path for path in paths if path.answering and not path.broken), None)
    because: Evidence = {"active": barred.id, "observed": excluded(policy, barred)}
    if best is None:
        # Better there than nowhere. It is left as soon as something that is allowed answers.
        return Decision(Action.DENY, "PREFERENCE_SWITCH", None, because)
    return _if_allowed(
        policy, Decision(Action.SWITCH, "PREFERENCE_SWITCH", best.id, because), history, now_ms
    )


def _fall_back(
    policy: Policy, paths: list[Candidate], active: Candidate, history: History, now_ms: int
) -> Decision:
    """All is well: leave only for a path that is wanted more, and only when that has held for its stability window."""
    if history.chosen:
        return STAY
    wanted = [path for path in paths if _wish(policy, path) < _wish(policy, active)]
    for path in wanted:
        if path.steady_since_ms is None or path.dead or path.broken or not _inside_floors(policy, path):
            continue
        steady_ms = now_ms - path.steady_since_ms
        if steady_ms < policy.stability_window_ms:
            continue
        returned = path.steady_since_ms > history.attached_since_ms
        because: Evidence = {
            "steady_ms": steady_ms,
            "stability_window_ms": policy.stability_window_ms,
            "preference": path.preference,
            "active_preference": active.preference,
            "cost": path.cost,
            "active_cost": active.cost,
            "transport": path.transport,
            "active_transport": active.transport,
        }
        reason = "TRANSPORT_RETURNED" if returned else "PREFERENCE_SWITCH"
        return _if_allowed(policy, Decision(Action.SWITCH, reason, path.id, because), history, now_ms)
    return STAY


def _relieve(
    policy: Policy, paths: list[Candidate], active: Candidate, history: History, now_ms: int
) -> Decision:
    """A floor is broken: move to a candidate that is really better, or say that there is no relief.

    What makes this path bad may make the others so too, and nobody has looked yet: a candidate is measured first, or
    given the time for it, and one that is about to break a floor itself is no relief. Jitter alone moves nothing: where
    a session's own traffic or a busy machine makes it, it would follow the session to any path.
    """
    active_badness = badness(policy, active)
    volatile = history.phase is not Phase.ATTACHED
    waited = volatile and now_ms - history.phase_since_ms >= policy.loss_window_ms
    better = [
        path
        for path in paths
        if path.id != active.id
        and (active.loss > policy.loss_floor or (active.latency_ms or 0.0) > policy.latency_floor_ms)
        and path.answering
        and not path.dead
        and not path.broken
        and (path.measured or waited)
        and _inside_floors(policy, path)
        and badness(policy, path) * policy.switch_improvement_factor <= active_badness
    ]
    decision = STAY
    if better:
        best = better[0]
        because: Evidence = {
            "badness": round(badness(policy, best), 4),
            "active_badness": round(active_badness, 4),
            "switch_improvement_factor": policy.switch_improvement_factor,
        }
        switch = Decision(Action.SWITCH, "QUALITY_SWITCH", best.id, because)
        decision = _if_allowed(policy, switch, history, now_ms)
    if decision.action is not Action.SWITCH and history.phase is Phase.VOLATILE:
        volatile_ms = now_ms - history.phase_since_ms
        if volatile_ms >= policy.volatile_to_degraded_ms:
            because = {"volatile_ms": volatile_ms, "volatile_to_degraded_ms": policy.volatile_to_degraded_ms}
            denied = decision.action is Action.DENY
            reason = "SWITCH_RATE_LIMITED" if denied else "VOLATILITY_PERSISTED"
            return Decision(Action.DEGRADE, reason, None, because)
    return decision


def _wish(policy: Policy, path: Candidate) -> tuple[int, int, int]:
    return -path.preference, path.cost, policy.allowed_transports.index(path.transport)


def _inside_floors(policy: Policy, path: Candidate) -> bool:
    latency_ms, jitter_ms = path.latency_ms, path.jitter_ms
    return (
        path.loss <= policy.loss_floor * policy.hysteresis
        and (latency_ms is None or latency_ms <= policy.latency_floor_ms * policy.hysteresis)
        and (jitter_ms is None or jitter_ms <= policy.jitter_floor_ms * policy.hysteresis)
    )


def _if_allowed(policy: Policy, switch: Decision, history: History, now_ms: int) -> Decision:
    limit = voluntary_limit(policy, history, now_ms)
    if limit is None:
        return switch
    because, retry_after_ms = limit
    return Decision(Action.DENY, switch.reason, switch.candidate, because, retry_after_ms)


@dataclass(frozen=True, slots=True)
class Limit:
    """A parameter that decided: what was held against its value."""

    name: str
    observed: float
    threshold: float


#: Of each limit, the evidence that is held against it.
_HELD_AGAINST: Final = {
    "stability_window_ms": "steady_ms",
    "volatile_to_degraded_ms": "volatile_ms",
    "recovery_window_ms": "elapsed_ms",
    "max_switches_per_minute": "switches_in_minute",
    "switch_cooldown_ms": "since_bind_ms",
    "refused_until_ms": "now_ms",
}


def limits(decision: Decision) -> tuple[Limit, ...]:
    """The limits that decided, from the evidence, in its order."""
    found = []
    because = decision.because
    for name, threshold in because.items():
        if name == "switch_improvement_factor":
            active, best = because["active_badness"], because["badness"]
            assert isinstance(active, float | int)
            assert isinstance(best, float | int)
            observed: object = round(active / best, 4) if best else float(MINUTE)
        else:
            observed = because.get(_HELD_AGAINST.get(name, ""))
        if isinstance(observed, float | int) and isinstance(threshold, float | int):
            found.append(Limit(name, observed, threshold))
    return tuple(found)


def voluntary_limit(policy: Policy, history: History, now_ms: int) -> tuple[Evidence, int] | None:
    """Why no voluntary switch is allowed now and for how long, None if one is.

    Every bind counts, also those after a death: a session that the network throws about does not move by choice too.
    """
    if now_ms < history.refused_until_ms:
        refused: Evidence = {"now_ms": now_ms, "refused_until_ms": history.refused_until_ms}
        return refused, history.refused_until_ms - now_ms
    recent = [at_ms for at_ms in history.binds_ms if now_ms - at_ms < MINUTE]
    most = policy.max_switches_per_minute
    if len(recent) >= most:
        # The minute is over for enough binds once the most-th newest is a minute old.
        retry_ms = recent[len(recent) - most] + MINUTE - now_ms if most else MINUTE
        return {"switches_in_minute": len(recent), "max_switches_per_minute": most}, retry_ms
    since_ms = now_ms - recent[-1] if recent else MINUTE
    if since_ms < policy.switch_cooldown_ms:
        because: Evidence = {"since_bind_ms": since_ms, "switch_cooldown_ms": policy.switch_cooldown_ms}
        return because, policy.switch_cooldown_ms - since_ms
    return None
