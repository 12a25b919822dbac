"""Turns what happens in the client core into events (origin: client)."""

import json
from collections.abc import Callable, Iterable

from jvpn.agent.paths import ClientPath
from jvpn.observability.events import (
    AuditEvent,
    DecisionEvent,
    PathRef,
    PolicyEvent,
    PolicySnapshot,
    QualityEvent,
    ReattachAttempt,
    ReattachResult,
    TransportSwitch,
    TransportSwitchDenied,
    state_change,
)
from jvpn.observability.sink import Sink
from jvpn.policy.decisions import Limit, limits
from jvpn.policy.model import Policy
from jvpn.policy.quality import Breach
from jvpn.policy.replay import DecisionRecord, QualityRecord
from jvpn.protocol.addresses import endpoint_text
from jvpn.session.machine import Origin, Transition


class ClientNarrator:
    """`session_id` is set at every new session; `wall_ms()` is the wall clock, which only events carry."""

    def __init__(self, sink: Sink, node_id: str, wall_ms: Callable[[], int]) -> None:
        self._sink = sink
        self._node_id = node_id
        self._wall_ms = wall_ms
        self.session_id = bytes(16)
        self.policy_version = ""
        #: Of which session and policy the stream has the policy itself.
        self._snapshot: tuple[bytes, str] | None = None

    def transition(self, step: Transition) -> None:
        self._sink.emit(
            state_change(
                step,
                ts_ms=self._wall_ms(),
                node_id=self._node_id,
                session_id=self.session_id,
                policy_version=self.policy_version,
            )
        )

    def attempt(self, attempt: int, cause: str, path: ClientPath, version: int) -> None:
        common = self._common(version, cause)
        self._sink.emit(
            ReattachAttempt(attempt=attempt, cause=cause, path=path_ref(path), **common)  # type: ignore[arg-type]
        )

    def result(self, attempt: int, result: str, reason: str, version: int, retry_after_ms: int = 0) -> None:
        common = self._common(version, reason)
        self._sink.emit(
            ReattachResult(attempt=attempt, result=result, retry_after_ms=retry_after_ms, **common)  # type: ignore[arg-type]
        )

    def policy_refused(self, asked: str, version: int) -> None:
        """The session has another policy than the one asked for."""
        common = self._common(version, "POLICY_NOT_ALLOWED")
        self._sink.emit(PolicyEvent(limit=f"policy {asked}", observed=1, threshold=0, **common))  # type: ignore[arg-type]

    def policy_changed(self, old: Policy, new: Policy, version: int) -> None:
        """The gateway gave the running session another policy."""
        result = f"{old.name}@{old.version} → {new.name}@{new.version}"
        self._sink.emit(AuditEvent(check="policy", result=result, **self._common(version, "POLICY_CHANGED")))  # type: ignore[arg-type]

    def denied(self, cause: str, reason: str, version: int, retry_after_ms: int = 0) -> None:
        """A switch that the gateway asked for, or the policy, cannot be, or not yet."""
        common = self._common(version, reason)
        self._sink.emit(
            TransportSwitchDenied(cause=cause, retry_after_ms=retry_after_ms, **common)  # type: ignore[arg-type]
        )

    def decided(self, policy: Policy, record: DecisionRecord, version: int) -> None:
        """A decision that acts or denies, with all that it was taken from, and the limits that decided."""
        self._tell_policy(policy, version)
        common = self._common(version, record.decision.reason)
        self._sink.emit(DecisionEvent(record=record, **common))  # type: ignore[arg-type]
        self._limits(record.decision.reason, version, limits(record.decision))

    def judged(self, policy: Policy, record: QualityRecord, version: int) -> None:
        """Quality is broken or restored, as this end measures it."""
        self._tell_policy(policy, version)
        common = self._common(version, record.proposal)
        self._sink.emit(QualityEvent(record=record, **common))  # type: ignore[arg-type]
        self._limits(record.proposal, version, record.breaches)

    def _limits(self, reason: str, version: int, found: Iterable[Limit | Breach]) -> None:
        common = self._common(version, reason)
        for limit in found:
            name = limit.name if isinstance(limit, Limit) else limit.signal
            told = PolicyEvent(limit=name, observed=limit.observed, threshold=limit.threshold, **common)  # type: ignore[arg-type]
            self._sink.emit(told)

    def _tell_policy(self, policy: Policy, version: int) -> None:
        key = (self.session_id, policy.version)
        if self._snapshot != key:
            self._snapshot = key
            common = self._common(version, "")
            self._sink.emit(PolicySnapshot(policy=json.loads(policy.canonical), **common))  # type: ignore[arg-type]

    def switched(
        self,
        cause: str,
        version: int,
        *,
        old: PathRef | None,
        new: ClientPath,
        explicit: bool,
        detect_ms: float,
        reattach_ms: float,
        gap_ms: float | None,
    ) -> None:
        """`gap_ms`: how long nothing was delivered of what was under way; None when nothing was."""
        self._sink.emit(
            TransportSwitch(
                old=old,
                new=path_ref(new),
                explicit=explicit,
                detect_ms=round(detect_ms, 1),
                reattach_ms=round(reattach_ms, 1),
                gap_ms=0.0 if explicit else None if gap_ms is None else round(gap_ms, 1),
                **self._common(version, cause),  # type: ignore[arg-type]
            )
        )

    def _common(self, version: int, reason: str) -> dict[str, object]:
        return {
            "ts_ms": self._wall_ms(),
            "node_id": self._node_id,
            "origin": Origin.CLIENT,
            "session_id": self.session_id.hex(),
            "state_version": version,
            "reason_code": reason,
            "policy_version": self.policy_version,
        }


def path_ref(path: ClientPath) -> PathRef:
    remote = path.uplink.remote
    return PathRef(
        index=path.index,
        transport="udp",
        source="→ " + endpoint_text(remote.address, remote.port),
        device=path.uplink.name,
    )
