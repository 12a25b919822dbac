"""Which of several triggers at the same instant is the one that counts.

SESSION_TTL > OWNERSHIP_CONFLICT > SECURITY > OPERATOR > TRANSPORT_LOSS_TTL > TRANSPORT_DEAD > outcomes of a
reattach > switches and quality floors > QUALITY_RESTORED. Within one trigger the order of its reasons decides,
so the order is total. Outcomes stand above switches: a reattach that has been judged is settled before another
one begins. An operator's *switch* is a switch, not an operator trigger: a dead path is recovered before
anybody's preference.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from jvpn.session.table import Reason


class Trigger(StrEnum):
    """Classes of reasons, most urgent first."""

    SESSION_TTL = "SESSION_TTL"
    OWNERSHIP_CONFLICT = "OWNERSHIP_CONFLICT"
    SECURITY = "SECURITY"
    OPERATOR = "OPERATOR"
    TRANSPORT_LOSS_TTL = "TRANSPORT_LOSS_TTL"
    TRANSPORT_DEAD = "TRANSPORT_DEAD"
    OUTCOME = "OUTCOME"
    SWITCH = "SWITCH"
    QUALITY_RESTORED = "QUALITY_RESTORED"


PRECEDENCE: Final[dict[Trigger, tuple[Reason, ...]]] = {
    Trigger.SESSION_TTL: (Reason.SESSION_TTL_EXPIRED,),
    Trigger.OWNERSHIP_CONFLICT: (Reason.OWNERSHIP_CONFLICT, Reason.SUPERSEDED),
    Trigger.SECURITY: (
        Reason.KEY_REVOKED,
        Reason.SECURITY_TERMINATED,
        Reason.INVARIANT_VIOLATION,
        Reason.VERSION_EXHAUSTED,
    ),
    Trigger.OPERATOR: (
        Reason.OPERATOR_TERMINATED,
        Reason.POLICY_TERMINATED,
        Reason.ADDRESS_WITHDRAWN,
        Reason.PEER_CLOSED,
    ),
    Trigger.TRANSPORT_LOSS_TTL: (Reason.TRANSPORT_LOSS_TTL_EXPIRED,),
    Trigger.TRANSPORT_DEAD: (Reason.TRANSPORT_DEAD, Reason.ADDRESS_CHANGED),
    Trigger.OUTCOME: (
        Reason.HANDSHAKE_OK,
        Reason.HANDSHAKE_FAIL,
        Reason.HANDSHAKE_TIMEOUT,
        Reason.REATTACH_OK,
        Reason.REATTACH_FAIL,
        Reason.RECOVERY_WINDOW_EXCEEDED,
        Reason.NO_CANDIDATE,
        Reason.SWITCH_RATE_LIMITED,
    ),
    Trigger.SWITCH: (
        Reason.REATTACH_REQUESTED,
        Reason.NODE_DRAIN,
        Reason.OPERATOR_SWITCH,
        Reason.QUALITY_SWITCH,
        Reason.TRANSPORT_RETURNED,
        Reason.PREFERENCE_SWITCH,
        Reason.QUALITY_FLOOR_VIOLATION,
        Reason.VOLATILITY_PERSISTED,
    ),
    Trigger.QUALITY_RESTORED: (Reason.QUALITY_RESTORED,),
}

_RANK: Final = {
    reason: rank
    for rank, reason in enumerate(reason for reasons in PRECEDENCE.values() for reason in reasons)
}
_TRIGGER: Final = {reason: trigger for trigger, reasons in PRECEDENCE.items() for reason in reasons}


def trigger_of(reason: Reason) -> Trigger:
    return _TRIGGER[reason]


def first_of(reasons: Iterable[Reason]) -> Reason | None:
    """The reason that counts among those that came true at the same instant; None if there are none."""
    return min(reasons, key=_RANK.__getitem__, default=None)
