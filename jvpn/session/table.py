"""The transition table of a session, and nothing that walks it.

`TABLE` is the only place where a transition is declared. The machine walks it, the client's view walks it, the
auditor checks recorded streams against it, the diagram in `docs/session-machine.md` is generated from it and
the tests take their expectations from it. A row says from where, to where, for which reason codes, under which
guard, how many active bindings it needs, and what it does to the binding:

* `Effect.BIND`: afterwards exactly one binding is active;
* `Effect.DROP`: the active binding, if any, is gone;
* `Effect.KEEP`: the binding stays as it is, so a voluntary switch delivers over the old path until the new one
  is bound.

Guards that depend on policy or cryptography are judged by the caller before it applies a reason
(`jvpn.session.ownership`, `jvpn.policy`); what depends on the binding count alone is checked here (`needs`).

Where one reason leads from one state to several places, the first row whose `needs` holds is meant, unless the
caller names the destination.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final


class State(StrEnum):
    BIRTH = "BIRTH"
    ATTACHED = "ATTACHED"
    VOLATILE = "VOLATILE"
    RECOVERING = "RECOVERING"
    DEGRADED = "DEGRADED"
    TERMINATED = "TERMINATED"

    @property
    def number(self) -> int:
        """Position in the list above: the state as one byte, in the shared page and on the wire."""
        return _NUMBERS[self]

    @classmethod
    def from_number(cls, number: int) -> "State":
        """Inverse of `number`. Raises ValueError for a number no state has."""
        if not 0 <= number < len(_NUMBERS):
            raise ValueError(f"no session state has the number {number}")
        return tuple(cls)[number]


_NUMBERS: Final = {state: number for number, state in enumerate(State)}


class Reason(StrEnum):
    """Why a transition happened. Every transition has exactly one."""

    HANDSHAKE_OK = "HANDSHAKE_OK"
    HANDSHAKE_FAIL = "HANDSHAKE_FAIL"
    HANDSHAKE_TIMEOUT = "HANDSHAKE_TIMEOUT"
    QUALITY_FLOOR_VIOLATION = "QUALITY_FLOOR_VIOLATION"
    QUALITY_RESTORED = "QUALITY_RESTORED"
    VOLATILITY_PERSISTED = "VOLATILITY_PERSISTED"
    TRANSPORT_DEAD = "TRANSPORT_DEAD"
    ADDRESS_CHANGED = "ADDRESS_CHANGED"
    QUALITY_SWITCH = "QUALITY_SWITCH"
    PREFERENCE_SWITCH = "PREFERENCE_SWITCH"
    TRANSPORT_RETURNED = "TRANSPORT_RETURNED"
    OPERATOR_SWITCH = "OPERATOR_SWITCH"
    NODE_DRAIN = "NODE_DRAIN"
    REATTACH_REQUESTED = "REATTACH_REQUESTED"
    REATTACH_OK = "REATTACH_OK"
    REATTACH_FAIL = "REATTACH_FAIL"
    NO_CANDIDATE = "NO_CANDIDATE"
    SWITCH_RATE_LIMITED = "SWITCH_RATE_LIMITED"
    RECOVERY_WINDOW_EXCEEDED = "RECOVERY_WINDOW_EXCEEDED"
    SESSION_TTL_EXPIRED = "SESSION_TTL_EXPIRED"
    TRANSPORT_LOSS_TTL_EXPIRED = "TRANSPORT_LOSS_TTL_EXPIRED"
    POLICY_TERMINATED = "POLICY_TERMINATED"
    SECURITY_TERMINATED = "SECURITY_TERMINATED"
    OPERATOR_TERMINATED = "OPERATOR_TERMINATED"
    PEER_CLOSED = "PEER_CLOSED"
    SUPERSEDED = "SUPERSEDED"
    KEY_REVOKED = "KEY_REVOKED"
    OWNERSHIP_CONFLICT = "OWNERSHIP_CONFLICT"
    INVARIANT_VIOLATION = "INVARIANT_VIOLATION"
    VERSION_EXHAUSTED = "VERSION_EXHAUSTED"
    ADDRESS_WITHDRAWN = "ADDRESS_WITHDRAWN"


class Effect(Enum):
    """What a transition does to the active binding."""

    BIND = "bind"
    DROP = "drop"
    KEEP = "keep"


#: Destination of a refused voluntary switch: the state RECOVERING was entered from.
STATE_BEFORE: Final = None

#: Active bindings a state may have.
BINDINGS_ALLOWED: Final[dict[State, frozenset[int]]] = {
    State.BIRTH: frozenset({0}),
    State.ATTACHED: frozenset({1}),
    State.VOLATILE: frozenset({1}),
    State.RECOVERING: frozenset({0, 1}),
    State.DEGRADED: frozenset({0, 1}),
    State.TERMINATED: frozenset({0}),
}

MEANING: Final[dict[State, str]] = {
    State.BIRTH: "handshake under way; a bounded pending entry only",
    State.ATTACHED: "delivering within policy",
    State.VOLATILE: "delivering, but a quality floor is broken",
    State.RECOVERING: "a reattach is in flight, inside the recovery window; a voluntary switch keeps the old path",
    State.DEGRADED: "kept alive, adaptation restricted: no candidate, rate limit, or window exceeded",
    State.TERMINATED: "absorbing",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `to` is None for "the state before", `needs` None for any binding count."""

    sources: tuple[State, ...]
    to: State | None
    reasons: tuple[Reason, ...]
    effect: Effect
    guard: str
    explanation: str
    needs: int | None = None


_LIVE: Final = (State.ATTACHED, State.VOLATILE, State.DEGRADED)
_NOT_TERMINATED: Final = tuple(state for state in State if state is not State.TERMINATED)

TABLE: Final[tuple[Row, ...]] = (
    Row(
        (State.BIRTH,),
        State.ATTACHED,
        (Reason.HANDSHAKE_OK,),
        Effect.BIND,
        "keys_confirmed",
        "key confirmed by the client's first authenticated packet; policy snapshot; ownership durable",
    ),
    Row(
        (State.BIRTH,),
        State.TERMINATED,
        (Reason.HANDSHAKE_FAIL, Reason.HANDSHAKE_TIMEOUT),
        Effect.DROP,
        "handshake_over",
        "no key confirmation",
    ),
    Row(
        (State.ATTACHED,),
        State.VOLATILE,
        (Reason.QUALITY_FLOOR_VIOLATION,),
        Effect.KEEP,
        "floor_broken",
        "a signal beyond its floor for volatility_hold_ms; never on one packet",
    ),
    Row(
        (State.VOLATILE, State.DEGRADED),
        State.ATTACHED,
        (Reason.QUALITY_RESTORED,),
        Effect.KEEP,
        "floor_held",
        "same binding, every signal inside its floor × hysteresis for stability_window_ms",
        needs=1,
    ),
    Row(
        _LIVE,
        State.RECOVERING,
        (Reason.TRANSPORT_DEAD,),
        Effect.DROP,
        "path_dead",
        "dead-path rule, link event, or a proven request at its bind",
        needs=1,
    ),
    Row(
        _LIVE,
        State.RECOVERING,
        (Reason.QUALITY_SWITCH,),
        Effect.KEEP,
        "better_candidate",
        "a candidate better by switch_improvement_factor; rate and cooldown allow",
    ),
    Row(
        _LIVE,
        State.RECOVERING,
        (Reason.PREFERENCE_SWITCH, Reason.TRANSPORT_RETURNED, Reason.OPERATOR_SWITCH),
        Effect.KEEP,
        "wanted_path",
        "fail-back after its own stability window; a preferred or cheaper path; the operator's wish",
    ),
    Row(
        _LIVE,
        State.RECOVERING,
        (Reason.NODE_DRAIN,),
        Effect.KEEP,
        "node_drains",
        "the owner asks its sessions to move; the old index drains",
    ),
    Row(
        _LIVE,
        State.RECOVERING,
        (Reason.ADDRESS_CHANGED,),
        Effect.DROP,
        "address_changed",
        "the bound source is no longer the client's: NAT rebinding, new address",
        needs=1,
    ),
    Row(
        (State.DEGRADED,),
        State.RECOVERING,
        (Reason.REATTACH_REQUESTED,),
        Effect.KEEP,
        "proven_request",
        "no live binding, proven request",
        needs=0,
    ),
    Row(
        (State.RECOVERING,),
        State.ATTACHED,
        (Reason.REATTACH_OK,),
        Effect.BIND,
        "judged",
        "proof, freshness, ownership, TTLs, policy; bound atomically",
    ),
    Row(
        (State.RECOVERING,),
        STATE_BEFORE,
        (Reason.REATTACH_FAIL,),
        Effect.KEEP,
        "old_path_delivers",
        "voluntary switch refused, the old binding still delivers",
        needs=1,
    ),
    Row(
        (State.RECOVERING,),
        State.DEGRADED,
        (
            Reason.REATTACH_FAIL,
            Reason.NO_CANDIDATE,
            Reason.SWITCH_RATE_LIMITED,
            Reason.RECOVERY_WINDOW_EXCEEDED,
        ),
        Effect.KEEP,
        "loss_ttl_runs",
        "transport-loss TTL not over",
    ),
    Row(
        (State.RECOVERING,),
        State.TERMINATED,
        (Reason.RECOVERY_WINDOW_EXCEEDED,),
        Effect.DROP,
        "policy_terminates",
        "on_recovery_window_exceeded: terminate",
    ),
    Row(
        (State.VOLATILE,),
        State.DEGRADED,
        (Reason.VOLATILITY_PERSISTED, Reason.SWITCH_RATE_LIMITED),
        Effect.KEEP,
        "no_relief",
        "VOLATILE for volatile_to_degraded_ms, or the switch that would help is not allowed",
    ),
    Row(
        _NOT_TERMINATED,
        State.TERMINATED,
        (
            Reason.SESSION_TTL_EXPIRED,
            Reason.TRANSPORT_LOSS_TTL_EXPIRED,
            Reason.POLICY_TERMINATED,
            Reason.SECURITY_TERMINATED,
            Reason.OPERATOR_TERMINATED,
            Reason.PEER_CLOSED,
            Reason.SUPERSEDED,
            Reason.KEY_REVOKED,
            Reason.OWNERSHIP_CONFLICT,
            Reason.INVARIANT_VIOLATION,
            Reason.VERSION_EXHAUSTED,
            Reason.ADDRESS_WITHDRAWN,
        ),
        Effect.DROP,
        "ended",
        "explicit and final; a new session needs a new handshake",
    ),
)

#: What a REATTACH_REQUEST may name as its cause.
VOLUNTARY_CAUSES: Final = frozenset(
    {
        Reason.QUALITY_SWITCH,
        Reason.PREFERENCE_SWITCH,
        Reason.TRANSPORT_RETURNED,
        Reason.OPERATOR_SWITCH,
        Reason.NODE_DRAIN,
    }
)
LOSS_CAUSES: Final = frozenset({Reason.TRANSPORT_DEAD, Reason.ADDRESS_CHANGED, Reason.REATTACH_REQUESTED})


def _by_source() -> dict[tuple[State, Reason], tuple[Row, ...]]:
    found: dict[tuple[State, Reason], tuple[Row, ...]] = {}
    for row in TABLE:
        for source in row.sources:
            for reason in row.reasons:
                found[source, reason] = (*found.get((source, reason), ()), row)
    return found


_ROWS: Final = _by_source()


def rows_from(state: State, reason: Reason) -> tuple[Row, ...]:
    """Rows that leave `state` for `reason`, in table order; empty if the table has none."""
    return _ROWS.get((state, reason), ())


def is_row(source: State, to: State, reason: Reason, before: Iterable[State] = ()) -> bool:
    """Is this transition in the table? `before`: what "the state before" may have been."""
    places = set(before)
    return any(
        (to in places) if row.to is STATE_BEFORE else row.to is to for row in rows_from(source, reason)
    )
