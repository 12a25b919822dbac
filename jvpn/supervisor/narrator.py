"""Turns what happens in the gateway core into events. The only place of the supervisor that makes them.

Of what each reattach tells, enums say their names and values as `_name_` and `_value_`: these are attributes, `name`
and `value` are functions that Python interprets.
"""

import json
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from msgspec import UNSET

from jvpn.observability.events import (
    AuditEvent,
    CommitEvent,
    KeyEvent,
    OwnershipEvent,
    PathRef,
    PolicyEvent,
    PolicySnapshot,
    ReattachAttempt,
    ReattachResult,
    SecurityEvent,
    StateChange,
    TransportSwitch,
    TransportSwitchDenied,
    state_change,
)
from jvpn.observability.sink import Sink
from jvpn.policy.model import Policy
from jvpn.policy.replay import CommitRecord
from jvpn.protocol.reattach import Request
from jvpn.session.machine import Machine, Origin, Reason, State, Transition
from jvpn.session.ownership import Kind, Verdict
from jvpn.session.record import SessionRecord
from jvpn.session.table import BINDINGS_ALLOWED
from jvpn.supervisor.arrival import TRANSPORTS, PathFact
from jvpn.supervisor.live_session import LiveSession
from jvpn.supervisor.peers import Peer

#: Security events of one kind and session: at most one in this time, the rest counted into the next.
SECURITY_INTERVAL_MS = 1_000
SECURITY_KINDS_KEPT = 1_024
REFUSAL_INTERVAL_MS = 60_000


class Limit(NamedTuple):
    """What a POLICY_EVENT says."""

    name: str
    observed: float
    threshold: float


class Narrator:
    """`wall_ms()` is the wall clock, which only events carry."""

    def __init__(self, sink: Sink, node_id: str, wall_ms: Callable[[], int]) -> None:
        self._sink = sink
        self._node_id = node_id
        self._wall_ms = wall_ms
        #: Whether the store keeps what is told here; if not, events say so.
        self.durable = True
        self._security: dict[tuple[bytes, str], tuple[int, int]] = {}
        #: When a peer and a broken policy were last told of; no more of them than are configured.
        self._refusals: dict[tuple[bytes, str], int] = {}

    def _common(self, session: LiveSession, reason: str) -> dict[str, object]:
        common: dict[str, object] = {
            "ts_ms": self._wall_ms(),
            "node_id": self._node_id,
            "origin": Origin.GATEWAY,
            "session_id": session.hex_id,
            "state_version": session.machine.state_version,
            "reason_code": reason,
            "policy_version": policy_version(session),
        }
        if not self.durable:
            common["non_durable"] = True
        return common

    def transition(self, session: LiveSession, step: Transition) -> None:
        """The machine's hook: exactly one STATE_CHANGE for each step.

        What `state_change` would make, by compiled code and without merging details: each reattach has two.
        """
        reason = session.last_reason = step.reason._value_
        self._sink.emit(
            StateChange(
                ts_ms=self._wall_ms(),
                node_id=self._node_id,
                origin=step.origin,
                session_id=session.hex_id,
                state_version=step.version,
                reason_code=reason,
                policy_version=policy_version(session),
                non_durable=UNSET if self.durable else True,
                from_=step.source,
                to=step.to,
                bindings=step.bindings,
                details=dict(step.details),
            )
        )

    def acquired(self, session: LiveSession) -> None:
        common = self._common(session, "HANDSHAKE_OK")
        self._sink.emit(OwnershipEvent(action="acquired", last_version=None, **common))  # type: ignore[arg-type]

    def taken_over(self, session: LiveSession, last_version: int) -> None:
        """Opens the new epoch: this node has made itself the owner of a stored session."""
        common = self._common(session, "TAKEN_OVER")
        self._sink.emit(OwnershipEvent(action="acquired", last_version=last_version, **common))  # type: ignore[arg-type]

    def transferred(self, session: LiveSession, slot: int, reason: str = "WORKER_REPLACED") -> None:
        """Another process works for the session now, on the same node: no binding change."""
        details = {"slot": slot, "generation": session.generation}
        common = self._common(session, reason)
        self._sink.emit(OwnershipEvent(action="transferred", details=details, **common))  # type: ignore[arg-type]

    def taken_away(self, session: LiveSession, owner: str = "") -> None:
        """Another node has made itself the owner; what becomes of the session from here on it tells."""
        common = self._common(session, "TAKEN_OVER")
        self._sink.emit(OwnershipEvent(action="transferred", owner=owner, **common))  # type: ignore[arg-type]

    def lost_to(self, record: SessionRecord, version: int) -> None:
        """The same of a session that lived here under an earlier supervisor; `version` was its last one here."""
        self._of_stored(record, "transferred", "TAKEN_OVER", version)

    def released(self, record: SessionRecord, reason: Reason, by: bytes = b"") -> None:
        """A stored session that lives at no node is over. `by`: the session that its client has now."""
        details = {"by": by.hex()} if by else {}
        self._of_stored(record, "released", reason.value, record.state_version, details)

    def _of_stored(
        self,
        record: SessionRecord,
        action: Literal["transferred", "released"],
        reason: str,
        version: int,
        details: dict[str, Any] | None = None,
    ) -> None:
        self._sink.emit(
            OwnershipEvent(
                ts_ms=self._wall_ms(),
                node_id=self._node_id,
                origin=Origin.GATEWAY,
                session_id=record.session_id.hex(),
                state_version=version,
                reason_code=reason,
                policy_version=f"{record.policy_name}@{record.policy_version}",
                action=action,
                owner=record.owner_node,
                details=details or {},
            )
        )

    def asked_to_switch(self, session: LiveSession, reason: Reason) -> None:
        """The client has been asked to move; TRANSPORT_SWITCH tells when it has."""
        common = self._common(session, reason.value)
        self._sink.emit(AuditEvent(check="switch", result="asked", **common))  # type: ignore[arg-type]

    def adopted(self, result: str) -> None:
        """A restarted supervisor has taken over a running data plane."""
        self._audit("SUPERVISOR_RESTARTED", "adoption", result)

    def clock_reset(self, peer: Peer, forgot_us: int | None, by: str) -> None:
        """An operator had a peer's handshake timestamp forgotten. `by` is who that operator says to be."""
        forgot = "nothing to forget" if forgot_us is None else f"forgot {forgot_us} us"
        result = f"peer {peer.name}: {forgot}, asked by {by or 'somebody without a name'}"
        self._audit("OPERATOR_RESET_CLOCK", "reset-clock", result)

    def drain(self, result: str, by: str) -> None:
        """This node is to be left, or not any more, or has been. `by` is who that operator says to be."""
        self._audit("NODE_DRAIN", "drain", f"{result}, asked by {by}" if by else result)

    def _audit(self, reason: str, check: str, result: str) -> None:
        """Something of the node's, not of one session's."""
        self._sink.emit(
            AuditEvent(
                ts_ms=self._wall_ms(),
                node_id=self._node_id,
                origin=Origin.GATEWAY,
                reason_code=reason,
                check=check,
                result=result,
            )
        )

    def lost(self, session_id: bytes, version: int, state: State, why: str) -> None:
        """A session whose keys nobody has any more has ended."""
        machine = Machine.adopt(state, version, min(BINDINGS_ALLOWED[state]), 0)
        reason = Reason.HANDSHAKE_FAIL if state is State.BIRTH else Reason.INVARIANT_VIOLATION
        step = machine.apply(reason, 0, State.TERMINATED)
        self._sink.emit(
            state_change(
                step,
                ts_ms=self._wall_ms(),
                node_id=self._node_id,
                session_id=session_id,
                policy_version="",
                details={"why": why},
            )
        )

    def rekeyed(self, session: LiveSession) -> None:
        """A new phase is in force at this end."""
        common = self._common(session, "REKEYED")
        kem = session.demanded_kem.name.lower()
        self._sink.emit(KeyEvent(action="rekeyed", phase=session.secrets.phase_number, kem=kem, **common))  # type: ignore[arg-type]

    def rekey_required(self, session: LiveSession, reason: str, limit: Limit) -> None:
        """The client has been asked for a rekey, because of that limit of the keys in force."""
        common = self._common(session, reason)
        kem, phase = session.demanded_kem.name.lower(), session.secrets.phase_number
        self._sink.emit(KeyEvent(action="overdue", phase=phase, kem=kem, **common))  # type: ignore[arg-type]
        self.limit(session, reason, limit)

    def policy_refused(self, session: LiveSession, asked: str) -> None:
        """The client asked for a policy that is not there or not for it; `policy_version` names the one it has."""
        self.limit(session, "POLICY_NOT_ALLOWED", Limit(f"policy {asked}", 1, 0))

    def committed(self, session: LiveSession, record: CommitRecord) -> None:
        """What became of a quality state that the client proposed, and the limits that decided."""
        if session.told_policy != session.policy.version:
            session.told_policy = session.policy.version
            common = self._common(session, "")
            told = json.loads(session.policy.canonical)
            self._sink.emit(PolicySnapshot(policy=told, **common))  # type: ignore[arg-type]
        reason = record.commitment.reason
        common = self._common(session, reason)
        self._sink.emit(CommitEvent(record=record, **common))  # type: ignore[arg-type]
        for breach in record.commitment.breaches:
            self.limit(session, reason, Limit(breach.signal, breach.observed, breach.threshold))

    def policy_changed(self, session: LiveSession, old: Policy, new: Policy, by: str) -> None:
        """A running session is to have another policy: it has it from now on, or ends because of it."""
        common = self._common(session, "POLICY_CHANGED")
        result = f"{old.name}@{old.version} → {new.name}@{new.version}, asked by {by or 'nobody by name'}"
        self._sink.emit(AuditEvent(check="policy", result=result, **common))  # type: ignore[arg-type]

    def policy_file(self, name: str, result: str, *, broken: bool) -> None:
        """A policy that was read again is another one now, or broken."""
        self._audit("POLICY_BROKEN" if broken else "POLICY_CHANGED", f"policy {name}", result)

    def reload_refused(self, why: str) -> None:
        """Policies were to be read again, and the configuration that names them is broken: nothing has changed."""
        self._audit("POLICY_BROKEN", "policy", why)

    def policy_refuses(self, peer: Peer, name: str, now_ms: int) -> None:
        """A client would have a policy whose file is broken. Told once a minute and peer: it goes on asking."""
        key = (peer.public_key, name)
        if now_ms - self._refusals.get(key, -REFUSAL_INTERVAL_MS) < REFUSAL_INTERVAL_MS:
            return
        self._refusals[key] = now_ms
        self._audit(
            "POLICY_BROKEN", f"policy {name}", f"peer {peer.name}: no new session, {peer.broken[name]}"
        )

    def limit(self, session: LiveSession, reason: str, limit: Limit) -> None:
        common = self._common(session, reason)
        self._sink.emit(
            PolicyEvent(limit=limit.name, observed=limit.observed, threshold=limit.threshold, **common)  # type: ignore[arg-type]
        )

    def attempt(self, session: LiveSession, request: Request, path: PathFact) -> bool:
        """Once for each attempt id; returns whether this was the first time."""
        if request.attempt <= session.last_told_attempt:
            return False
        session.last_told_attempt = request.attempt
        cause = request.cause._name_
        self._sink.emit(
            ReattachAttempt(
                ts_ms=self._wall_ms(),
                node_id=self._node_id,
                origin=Origin.GATEWAY,
                session_id=session.hex_id,
                state_version=session.machine.state_version,
                reason_code=cause,
                policy_version=policy_version(session),
                non_durable=UNSET if self.durable else True,
                attempt=request.attempt,
                cause=cause,
                path=path_ref(path),
            )
        )
        return True

    def result(self, session: LiveSession, request: Request, verdict: Verdict) -> None:
        self._sink.emit(
            ReattachResult(
                ts_ms=self._wall_ms(),
                node_id=self._node_id,
                origin=Origin.GATEWAY,
                session_id=session.hex_id,
                state_version=session.machine.state_version,
                reason_code=verdict.reason_code._value_,
                policy_version=policy_version(session),
                non_durable=UNSET if self.durable else True,
                attempt=request.attempt,
                result="bound" if verdict.kind is Kind.BIND else "failed",
                retry_after_ms=verdict.retry_after_ms,
            )
        )

    def denied(self, session: LiveSession, request: Request, verdict: Verdict) -> None:
        common = self._common(session, verdict.reason_code.value)
        self._sink.emit(
            TransportSwitchDenied(
                cause=request.cause.name,
                retry_after_ms=verdict.retry_after_ms,
                **common,  # type: ignore[arg-type]
            )
        )

    def switched(
        self,
        session: LiveSession,
        request: Request,
        old: PathFact | None,
        new: PathFact,
        gap_ms: float | None,
        lost: bool,
    ) -> None:
        """`gap_ms`: how long the gateway has received no DATA, None when none ever came."""
        self._sink.emit(
            TransportSwitch(
                ts_ms=self._wall_ms(),
                node_id=self._node_id,
                origin=Origin.GATEWAY,
                session_id=session.hex_id,
                state_version=session.machine.state_version,
                reason_code=request.cause._name_,
                policy_version=policy_version(session),
                non_durable=UNSET if self.durable else True,
                old=None if old is None else path_ref(old),
                new=path_ref(new),
                explicit=not lost,
                gap_ms=gap_ms,
            )
        )

    def security(self, session: LiveSession, violation: str, source: str, now_ms: int) -> None:
        """Rate-limited: one a second for each session and violation; the next says how many it stands for."""
        key = (session.session_id, violation)
        last_ms, suppressed = self._security.pop(key, (now_ms - SECURITY_INTERVAL_MS, 0))
        if now_ms - last_ms < SECURITY_INTERVAL_MS:
            self._security[key] = (last_ms, suppressed + 1)
            return
        self._security[key] = (now_ms, 0)
        if len(self._security) > SECURITY_KINDS_KEPT:
            del self._security[next(iter(self._security))]
        common = self._common(session, violation)
        self._sink.emit(
            SecurityEvent(violation=violation, source=source, suppressed=suppressed, **common)  # type: ignore[arg-type]
        )


def policy_version(session: LiveSession) -> str:
    return session.policy.label


def path_ref(path: PathFact) -> PathRef:
    return PathRef(index=path.index, transport=TRANSPORTS[path.transport], source=path.source_text)
