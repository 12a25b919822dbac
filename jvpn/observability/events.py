"""The event schema: what a gateway or a client says about sessions, one JSON object a line.

Every event carries the common fields of `Event`; `event` names its kind. `session_id` is 32 hexadecimal digits
(empty for an event of the node itself), `state_version` one integer (`split_version` takes it apart), `ts_ms`
Unix wall-clock milliseconds. Payloads, keys and inner addresses have no field to appear in; outer addresses do,
for they are what a switch is about.

Readers ignore fields they do not know. A field changes its meaning only with a new `SCHEMA`.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from jvpn.policy.replay import CommitRecord, DecisionRecord, QualityRecord
from jvpn.session.machine import Origin, State, Transition, split_version

__all__ = [
    "SCHEMA",
    "AnyEvent",
    "AuditEvent",
    "CommitEvent",
    "DecisionEvent",
    "Event",
    "EventError",
    "KeyEvent",
    "OwnershipEvent",
    "PathRef",
    "PolicyEvent",
    "PolicySnapshot",
    "QualityEvent",
    "ReattachAttempt",
    "ReattachResult",
    "SecurityEvent",
    "StateChange",
    "TelemetryLoss",
    "TransportSwitch",
    "TransportSwitchDenied",
    "decode",
    "encode",
    "split_version",
    "state_change",
]

SCHEMA: Final = 1


class EventError(ValueError):
    """A line is not an event of this schema."""


class PathRef(msgspec.Struct, frozen=True, kw_only=True):
    """A path as people know it: index on the wire, "udp" | "tcp" | "quic", the client's outer source, the
    device if known."""

    index: int
    transport: str
    source: str = ""
    device: str = ""


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="EVENT"):
    """The common fields. `policy_version` is the policy's name and version, as the session's record has them.

    `non_durable` stands only on what was written while the ownership store could not be.
    """

    schema: int = SCHEMA
    ts_ms: int
    node_id: str
    origin: Origin
    session_id: str = ""
    state_version: int = 0
    reason_code: str = ""
    policy_version: str = ""
    non_durable: Literal[True] | UnsetType = UNSET


class StateChange(Event, frozen=True, kw_only=True, tag="STATE_CHANGE"):
    """One transition. A client's carries its own `local_seq`, and `followed` when the gateway told it."""

    from_: State = msgspec.field(name="from")
    to: State
    bindings: int
    details: dict[str, Any] = {}
    local_seq: int | UnsetType = UNSET
    followed: Literal[True] | UnsetType = UNSET


class TransportSwitch(Event, frozen=True, kw_only=True, tag="TRANSPORT_SWITCH"):
    """A binding replaced another. `explicit`: asked for (voluntary), not forced by a death or a changed address.

    `detect_ms`: from the last sign of life to the verdict; `reattach_ms`: from the verdict to the bind;
    `gap_ms`: the longest silence the traffic saw. None where this side cannot know.
    """

    old: PathRef | None
    new: PathRef
    explicit: bool
    detect_ms: float | None = None
    reattach_ms: float | None = None
    gap_ms: float | None = None


class TransportSwitchDenied(Event, frozen=True, kw_only=True, tag="TRANSPORT_SWITCH_DENIED"):
    """A voluntary switch was refused: `cause` is what was asked for, `reason_code` why not."""

    cause: str
    retry_after_ms: int = 0


class ReattachAttempt(Event, frozen=True, kw_only=True, tag="REATTACH_ATTEMPT"):
    """A proven request, about to be judged (gateway), or sent for the first time (client). One per attempt id."""

    attempt: int
    cause: str
    path: PathRef


class ReattachResult(Event, frozen=True, kw_only=True, tag="REATTACH_RESULT"):
    """How an attempt ended. Exactly one for each attempt; `reason_code` says why."""

    attempt: int
    result: Literal["bound", "failed", "abandoned"]
    retry_after_ms: int = 0


class SecurityEvent(Event, frozen=True, kw_only=True, tag="SECURITY_EVENT"):
    """`suppressed`: how many of the same kind the rate limit kept out of the log since the last one."""

    violation: str
    source: str = ""
    suppressed: int = 0


class PolicyEvent(Event, frozen=True, kw_only=True, tag="POLICY_EVENT"):
    limit: str
    observed: float
    threshold: float


class PolicySnapshot(Event, frozen=True, kw_only=True, tag="POLICY_SNAPSHOT"):
    """The policy whose version the events that follow name, once before the first decision that is taken by it."""

    policy: dict[str, Any]


class DecisionEvent(Event, frozen=True, kw_only=True, tag="DECISION_EVENT"):
    """Which path: a decision that acts, or that says why nothing is done, with all that it was taken from."""

    record: DecisionRecord


class QualityEvent(Event, frozen=True, kw_only=True, tag="QUALITY_EVENT"):
    """The client's judgement that quality is broken or restored, with all that it was made from."""

    record: QualityRecord


class CommitEvent(Event, frozen=True, kw_only=True, tag="COMMIT_EVENT"):
    """The gateway's answer to a quality state that the client proposed, with all that it was made from."""

    record: CommitRecord


class AuditEvent(Event, frozen=True, kw_only=True, tag="AUDIT_EVENT"):
    check: str
    result: str


class KeyEvent(Event, frozen=True, kw_only=True, tag="KEY_EVENT"):
    """A change of data keys. Says which phase, never anything of a key."""

    action: Literal["confirmed", "rekeyed", "retired", "overdue", "revoked"]
    phase: int
    kem: str = ""


class OwnershipEvent(Event, frozen=True, kw_only=True, tag="OWNERSHIP_EVENT"):
    """`acquired` opens an epoch and names the last durable version before it, None for a new session.

    `transferred`: to another worker of this node, or to the node that is named. `released`: a stored session is over.
    `owner`: the node that has it, where that is another one.
    """

    action: Literal["acquired", "transferred", "released", "rejected", "conflict"]
    last_version: int | None = None
    owner: str = ""
    details: dict[str, Any] = {}


class TelemetryLoss(Event, frozen=True, kw_only=True, tag="TELEMETRY_LOSS"):
    """`count` events are missing from the stream at this place."""

    count: int


AnyEvent: TypeAlias = (
    StateChange
    | TransportSwitch
    | TransportSwitchDenied
    | ReattachAttempt
    | ReattachResult
    | SecurityEvent
    | PolicyEvent
    | PolicySnapshot
    | DecisionEvent
    | QualityEvent
    | CommitEvent
    | AuditEvent
    | KeyEvent
    | OwnershipEvent
    | TelemetryLoss
)

_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final[msgspec.json.Decoder[AnyEvent]] = msgspec.json.Decoder(AnyEvent)


def encode(event: Event) -> bytes:
    """One JSON line, newline included."""
    return _ENCODER.encode(event) + b"\n"


def decode(line: bytes | str) -> AnyEvent:
    """Raises EventError for what is no event, of an unknown kind, of another schema, or with a version that
    does not fit."""
    try:
        event = _DECODER.decode(line)
        split_version(event.state_version)
    except (msgspec.DecodeError, ValueError) as error:
        raise EventError(str(error)) from error
    if event.schema != SCHEMA:
        raise EventError(f"schema {event.schema}, this reader knows {SCHEMA}")
    return event


def state_change(
    step: Transition,
    *,
    ts_ms: int,
    node_id: str,
    session_id: bytes,
    policy_version: str,
    non_durable: bool = False,
    details: Mapping[str, object] | None = None,
) -> StateChange:
    """The event of a machine's transition: what its hook is for. `ts_ms` is wall time, the transition's own
    clock is not."""
    client = step.origin is Origin.CLIENT
    return StateChange(
        ts_ms=ts_ms,
        node_id=node_id,
        origin=step.origin,
        session_id=session_id.hex(),
        state_version=step.version,
        reason_code=step.reason.value,
        policy_version=policy_version,
        non_durable=True if non_durable else UNSET,
        from_=step.source,
        to=step.to,
        bindings=step.bindings,
        details={**step.details, **details} if details else dict(step.details),
        local_seq=step.local_seq if client else UNSET,
        followed=True if step.followed else UNSET,
    )
