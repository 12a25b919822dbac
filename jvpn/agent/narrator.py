"""Turns what happens in the client core into events (origin: client)."""

from collections.abc import Callable

from jvpn.agent.paths import ClientPath
from jvpn.observability.events import (
    PathRef,
    ReattachAttempt,
    ReattachResult,
    TransportSwitch,
    TransportSwitchDenied,
    state_change,
)
from jvpn.observability.sink import Sink
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

    def denied(self, cause: str, reason: str, version: int) -> None:
        """The gateway asked for a switch that cannot be."""
        common = self._common(version, reason)
        self._sink.emit(TransportSwitchDenied(cause=cause, **common))  # type: ignore[arg-type]

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
    ) -> None:
        """`gap_ms` is the sum: how long the client had no proven path."""
        self._sink.emit(
            TransportSwitch(
                old=old,
                new=path_ref(new),
                explicit=explicit,
                detect_ms=round(detect_ms, 1),
                reattach_ms=round(reattach_ms, 1),
                gap_ms=0.0 if explicit else round(detect_ms + reattach_ms, 1),
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
