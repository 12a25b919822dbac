"""Why candidates stand where they stand, and what would be done now: `decisions.py` asked and put into words. Pure."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Final

from jvpn.policy.decisions import (
    Action,
    Candidate,
    Decision,
    History,
    choose,
    excluded,
    order,
    ranked,
    voluntary_limit,
)
from jvpn.policy.model import Policy
from jvpn.policy.parameters import MINUTE


@dataclass(frozen=True, slots=True)
class Place:
    """A candidate's place, from 1 on; 0: left out. `because`: what put it before the next, or why it is left out."""

    place: int
    id: str
    because: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What is used up of the limits on moves by choice. `retry_after_ms` 0: one is allowed now."""

    switches_in_minute: int
    max_switches_per_minute: int
    since_bind_ms: int | None
    switch_cooldown_ms: int
    retry_after_ms: int


def places(policy: Policy, candidates: Iterable[Candidate]) -> list[Place]:
    """All candidates: those that may be taken in their order, then those that are left out."""
    known = list(candidates)
    best = ranked(policy, known)
    found = []
    for number, candidate in enumerate(best):
        following = best[number + 1] if number + 1 < len(best) else None
        because = "last" if len(best) > 1 else "the only one"
        if following is not None:
            because = _before(policy, candidate, following)
        found.append(Place(number + 1, candidate.id, because))
    out = [Place(0, c.id, excluded(policy, c)) for c in known if excluded(policy, c)]
    return found + sorted(out, key=lambda place: place.id)


def _before(policy: Policy, first: Candidate, second: Candidate) -> str:
    """The criterion that put `first` before `second`."""
    pairs = zip(order(policy, first), order(policy, second), strict=True)
    name = next((name for (name, mine), (_name, theirs) in pairs if mine != theirs), "id")
    if name == "answering":
        return f"it answers, {second.id} does not"
    return f"{_WORDS[name]} {_value(name, first)}, that of {second.id} {_value(name, second)}"


_WORDS: Final = {
    "preference": "preference",
    "cost": "cost",
    "transport": "transport",
    "loss": "loss",
    "latency": "round trip",
    "stability": "steady since",
    "id": "all is equal, and so the name decides:",
}


def _value(name: str, candidate: Candidate) -> str:
    if name == "loss":
        return f"{candidate.loss:.1%}"
    if name == "latency":
        return "unknown" if candidate.latency_ms is None else f"{candidate.latency_ms:.1f} ms"
    if name == "stability":
        return "never" if candidate.steady_since_ms is None else f"{candidate.steady_since_ms} ms"
    return str(getattr(candidate, name))


def limits_used(policy: Policy, history: History, now_ms: int) -> Limits:
    recent = [at_ms for at_ms in history.binds_ms if now_ms - at_ms < MINUTE]
    held = voluntary_limit(policy, history, now_ms)
    return Limits(
        switches_in_minute=len(recent),
        max_switches_per_minute=policy.max_switches_per_minute,
        since_bind_ms=now_ms - recent[-1] if recent else None,
        switch_cooldown_ms=policy.switch_cooldown_ms,
        retry_after_ms=held[1] if held else 0,
    )


def in_words(decision: Decision) -> str:
    """What would be done, for people."""
    because = ", ".join(f"{name} {value}" for name, value in decision.because.items())
    why = (
        f" ({decision.reason}{': ' if decision.reason and because else ''}{because})"
        if decision.reason
        else ""
    )
    match decision.action:
        case Action.STAY:
            return "stay"
        case Action.SWITCH:
            return f"switch to {decision.candidate}{why}"
        case Action.DENY if decision.candidate is None:
            return f"stay, though the path is not allowed: none that is answers{why}"
        case Action.DENY:
            return f"stay for another {decision.retry_after_ms} ms, though a switch to {decision.candidate} is due{why}"
        case Action.REATTACH:
            return (
                f"reattach over {decision.candidate}{why}" if decision.candidate else f"wait for a path{why}"
            )
        case Action.DEGRADE:
            return f"go on DEGRADED{why}"
        case Action.TERMINATE:
            return f"end the session{why}"


def explain(
    policy: Policy, candidates: Iterable[Candidate], history: History, now_ms: int
) -> dict[str, object]:
    """Places, decision and limits at one instant, as JSON takes them."""
    known = tuple(candidates)
    decision = choose(policy, known, history, now_ms)
    words = in_words(decision)
    if decision.action is Action.STAY and history.chosen:
        words = "stay: somebody wanted the session here, which holds until this path is lost"
    return {
        "places": [asdict(place) for place in places(policy, known)],
        "decision": asdict(decision) | {"action": decision.action.value, "words": words},
        "limits": asdict(limits_used(policy, history, now_ms)),
    }
