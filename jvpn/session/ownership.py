"""Judging a REATTACH_REQUEST: a pure function of what the request says and what the session is.

The checks, in this order, and what each can say:

 1. buckets      too many datagrams for this id                     drop
 2. known        id not installed and no ticket that opens          drop
 3. proof        AEAD under the reattach key                        drop; up to here nothing moves, nothing is allocated
 4. freshness    attempt below the last bound                       drop + SECURITY_EVENT; equal: same_ack;
                 above, or this node is fenced: without a
                 valid challenge                                    pending: answered with a challenge, changes nothing
 5. ownership    another node's, or this node is fenced             fail NOT_OWNER
 6. version      client's count above ours in our epoch             fail VERSION_CONFLICT + SECURITY_EVENT
                 client's epoch above ours                          fail NOT_OWNER, and check the fence
 7. TTLs         session over                                       fail, and terminate
 8. policy       transport, new source, switch rate; bucket of binds      fail, with retry_after_ms
 9. bind                                                            bind

A lower or equal version is fine: a lost ACK must strand nobody. After a takeover no attempt has been bound in
this epoch, so the attempt number proves nothing yet and the challenge alone is the freshness.
"""

from enum import StrEnum
from typing import Final, NamedTuple

from jvpn.session.precedence import first_of
from jvpn.session.table import LOSS_CAUSES, VOLUNTARY_CAUSES, Reason, State
from jvpn.session.version import split_version


class Kind(StrEnum):
    BIND = "bind"
    PENDING = "pending"
    SAME_ACK = "same_ack"
    DROP = "drop"
    FAIL = "fail"


class Code(StrEnum):
    """Reason codes of a verdict; those of a FAIL travel to the client, those of a drop are counters."""

    REATTACH_OK = "REATTACH_OK"
    CHALLENGE_REQUIRED = "CHALLENGE_REQUIRED"
    ALREADY_BOUND = "ALREADY_BOUND"
    RATE_LIMITED = "RATE_LIMITED"
    UNKNOWN_SESSION = "UNKNOWN_SESSION"
    BAD_PROOF = "BAD_PROOF"
    NOT_ATTACHED = "NOT_ATTACHED"
    ILLEGAL_CAUSE = "ILLEGAL_CAUSE"
    STALE_ATTEMPT = "STALE_ATTEMPT"
    NOT_OWNER = "NOT_OWNER"
    VERSION_CONFLICT = "VERSION_CONFLICT"
    SESSION_OVER = "SESSION_OVER"
    SESSION_TTL_EXPIRED = "SESSION_TTL_EXPIRED"
    TRANSPORT_LOSS_TTL_EXPIRED = "TRANSPORT_LOSS_TTL_EXPIRED"
    SWITCH_RATE_LIMITED = "SWITCH_RATE_LIMITED"
    TRANSPORT_NOT_ALLOWED = "TRANSPORT_NOT_ALLOWED"
    POLICY_DENIED = "POLICY_DENIED"
    REAUTHENTICATE = "REAUTHENTICATE"
    SAME_NODE = "SAME_NODE"
    # The shared page, which outlives a supervisor and its version, has the numbers of these: new ones come last.
    ADDRESS_WITHDRAWN = "ADDRESS_WITHDRAWN"


class Violation(StrEnum):
    """What a SECURITY_EVENT names."""

    STALE_ATTEMPT = "STALE_ATTEMPT"
    VERSION_CONFLICT = "VERSION_CONFLICT"
    ILLEGAL_REQUEST = "ILLEGAL_REQUEST"


class RequestFacts(NamedTuple):
    """What is known of a request. `admitted`: its datagram passed the bucket. `challenged`: it echoes a valid
    challenge for its source.

    Fields from `attempt` on are meaningful only when `proven`.
    """

    admitted: bool
    known: bool
    proven: bool
    challenged: bool = False
    attempt: int = 0
    version: int = 0
    cause: Reason = Reason.REATTACH_REQUESTED


class PolicyFacts(NamedTuple):
    """What the policy and the bind bucket say to this request: `denied` None to allow, and when to come again."""

    denied: Code | None = None
    retry_after_ms: int = 0


class SessionFacts(NamedTuple):
    """What the session is at this node. `bound_in_epoch`: an attempt has been bound in the present epoch (a
    handshake counts, with attempt 0), so `last_bound_attempt` is this owner's own knowledge."""

    state: State
    version: int
    bindings: int
    owner_node: str
    last_bound_attempt: int
    bound_in_epoch: bool
    session_deadline_ms: int
    loss_deadline_ms: int | None = None


class NodeFacts(NamedTuple):
    node_id: str
    fenced: bool = False


class Verdict(NamedTuple):
    """What to do with a request.

    `security_event` is to be logged (rate-limited); only with `counts_against_session` does it count towards
    security_failures_before_terminate: a replay never does. `terminate` is the reason to end the session with.
    `enter` is the reason to enter RECOVERING with before REATTACH_OK, None when the session is there already.
    `check_fence`: the node may have lost the session without knowing. `denied_switch`: log TRANSPORT_SWITCH_DENIED.
    """

    kind: Kind
    reason_code: Code
    security_event: Violation | None = None
    counts_against_session: bool = False
    terminate: Reason | None = None
    enter: Reason | None = None
    check_fence: bool = False
    denied_switch: bool = False
    retry_after_ms: int = 0


#: A node that may own nothing now may do so again when its lease goes on.
FENCED_RETRY_MS: Final = 200
#: What the policy says to most.
ALLOWED: Final = PolicyFacts()
_CAUSES: Final = VOLUNTARY_CAUSES | LOSS_CAUSES


def judge(
    request: RequestFacts,
    session: SessionFacts | None,
    node: NodeFacts,
    now_ms: int,
    policy: PolicyFacts = ALLOWED,
) -> Verdict:
    """The verdict on `request`. `session` is None when neither id nor ticket led to one."""
    if not request.admitted:
        return Verdict(Kind.DROP, Code.RATE_LIMITED)
    if not request.known or session is None:
        return Verdict(Kind.DROP, Code.UNKNOWN_SESSION)
    if not request.proven:
        return Verdict(Kind.DROP, Code.BAD_PROOF)
    return (
        _freshness(request, session, node)
        or _ownership(session, node)
        or _version(request, session)
        or _lifetime(session, now_ms)
        or _policy(request, policy)
        or Verdict(
            Kind.BIND, Code.REATTACH_OK, enter=entry_reason(session.state, session.bindings, request.cause)
        )
    )


def entry_reason(state: State, bindings: int, cause: Reason) -> Reason | None:
    """Why a bind enters RECOVERING: the client's cause, unless no binding is left to die or to leave."""
    if state is State.RECOVERING:
        return None
    if state is State.DEGRADED and not bindings:
        return Reason.REATTACH_REQUESTED
    # A client that says "no live binding" while we still hold one reports a death we have not seen.
    return Reason.TRANSPORT_DEAD if cause is Reason.REATTACH_REQUESTED else cause


def _freshness(request: RequestFacts, session: SessionFacts, node: NodeFacts) -> Verdict | None:
    if session.state is State.BIRTH:
        return Verdict(Kind.DROP, Code.NOT_ATTACHED)
    if session.bound_in_epoch and request.attempt < session.last_bound_attempt:
        return Verdict(Kind.DROP, Code.STALE_ATTEMPT, security_event=Violation.STALE_ATTEMPT)
    repeats = session.bound_in_epoch and request.attempt == session.last_bound_attempt
    # What a fenced node has bound may be bound elsewhere by now: it promises nothing a second time.
    if repeats and session.state is not State.TERMINATED and not node.fenced:
        return Verdict(Kind.SAME_ACK, Code.ALREADY_BOUND)
    if not request.challenged:
        return Verdict(Kind.PENDING, Code.CHALLENGE_REQUIRED)
    return None


def _ownership(session: SessionFacts, node: NodeFacts) -> Verdict | None:
    if node.fenced:
        return Verdict(Kind.FAIL, Code.NOT_OWNER, retry_after_ms=FENCED_RETRY_MS)
    if session.owner_node != node.node_id:
        return Verdict(Kind.FAIL, Code.NOT_OWNER)
    return None


def _version(request: RequestFacts, session: SessionFacts) -> Verdict | None:
    if request.version <= session.version:
        return None
    ours, theirs = split_version(session.version), split_version(request.version)
    if theirs.epoch > ours.epoch:
        return Verdict(Kind.FAIL, Code.NOT_OWNER, check_fence=True)
    if theirs.epoch == ours.epoch and theirs.count > ours.count:
        return Verdict(
            Kind.FAIL,
            Code.VERSION_CONFLICT,
            security_event=Violation.VERSION_CONFLICT,
            counts_against_session=True,
        )
    return None


def _lifetime(session: SessionFacts, now_ms: int) -> Verdict | None:
    if session.state is State.TERMINATED:
        return Verdict(Kind.FAIL, Code.SESSION_OVER)
    over = []
    if now_ms >= session.session_deadline_ms:
        over.append(Reason.SESSION_TTL_EXPIRED)
    if not session.bindings and session.loss_deadline_ms is not None and now_ms >= session.loss_deadline_ms:
        over.append(Reason.TRANSPORT_LOSS_TTL_EXPIRED)
    reason = first_of(over)
    return None if reason is None else Verdict(Kind.FAIL, Code(reason.value), terminate=reason)


def _policy(request: RequestFacts, policy: PolicyFacts) -> Verdict | None:
    if request.cause not in _CAUSES:
        return Verdict(
            Kind.FAIL,
            Code.ILLEGAL_CAUSE,
            security_event=Violation.ILLEGAL_REQUEST,
            counts_against_session=True,
        )
    if policy.denied is None:
        return None
    if policy.denied is Code.SWITCH_RATE_LIMITED and request.cause in LOSS_CAUSES:
        return None  # recovery from death is never delayed by the limits of voluntary switches
    return Verdict(
        Kind.FAIL,
        policy.denied,
        denied_switch=request.cause in VOLUNTARY_CAUSES,
        retry_after_ms=policy.retry_after_ms,
    )
