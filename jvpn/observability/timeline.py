"""One session's life, from its events, as rows: for a terminal (`render.py`), for a web view, for a report.

A row is a transition or the opening of an epoch. What happened besides (switches, refusals, security events)
hangs as notes on the row during which it happened. Where a stream has both ends' events, the gateway's make the
rows, and the client's measurements of a switch fill what the gateway cannot know.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from jvpn.observability import events as ev
from jvpn.observability.render import render
from jvpn.observability.rows import Note, Row, Switch
from jvpn.policy.quality import Commitment
from jvpn.policy.replay import CommitRecord
from jvpn.session.machine import Origin, Reason, State, split_version

__all__ = ["Note", "Row", "Switch", "Timeline", "TimelineError", "build", "read"]


class TimelineError(ValueError):
    """The stream does not hold the session asked for, or holds several and none was named."""


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """`start_ms`: wall clock of the first event. `length_ms`: from there to the last. `lost`: events known to
    be missing."""

    session_id: str
    origin: Origin
    nodes: list[str]
    policy_version: str
    start_ms: int
    length_ms: int
    state: State
    state_version: int
    rows: list[Row]
    lost: int = 0

    @property
    def switches(self) -> list[Switch]:
        return [row.switch for row in self.rows if row.switch is not None]

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    def render_text(self, width: int = 100, color: bool = False) -> str:
        """The timeline for a terminal `width` columns wide (at least 40). No line is longer."""
        return render(self, width, color)


def read(lines: Iterable[bytes | str]) -> list[ev.AnyEvent]:
    """The events of a stream, without the lines that are none (the auditor reports those)."""
    events = []
    for line in lines:
        if line.strip():
            try:
                events.append(ev.decode(line))
            except ev.EventError:
                continue
    return events


def build(
    events: Iterable[ev.AnyEvent], session_id: str | None = None, origin: Origin | None = None
) -> Timeline:
    """The timeline of one session. `session_id` may be a prefix, and None if there is only one session in the stream.

    `origin`: whose view makes the rows; None for the gateway's, if there is one. Raises TimelineError.
    """
    events = list(events)
    session_id = _choose(events, session_id)
    lost = sum(event.count for event in events if isinstance(event, ev.TelemetryLoss))
    own = [event for event in events if event.session_id == session_id]
    origins = {event.origin for event in own}
    if origin is None:
        origin = Origin.GATEWAY if Origin.GATEWAY in origins else Origin.CLIENT
    seen = [event for event in own if event.origin is origin]
    if not seen:
        raise TimelineError(f"session {session_id} has no events of a {origin} here")
    rows = _Rows(seen[0].ts_ms, _measured(own, origin))
    for event in seen:
        rows.take(event)
    return Timeline(
        session_id=session_id,
        origin=origin,
        nodes=list(dict.fromkeys(event.node_id for event in seen)),
        policy_version=next((e.policy_version for e in reversed(seen) if e.policy_version), ""),
        start_ms=seen[0].ts_ms,
        length_ms=max(event.ts_ms for event in seen) - seen[0].ts_ms,
        state=rows.state,
        state_version=rows.version,
        rows=rows.rows,
        lost=lost,
    )


def _choose(events: Iterable[ev.AnyEvent], wanted: str | None) -> str:
    there = list(dict.fromkeys(event.session_id for event in events if event.session_id))
    fitting = [session for session in there if session.startswith((wanted or "").lower())]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise TimelineError(f"no session {wanted} in this stream" if wanted else "no session in this stream")
    names = ", ".join(fitting[:5]) + (", …" if len(fitting) > 5 else "")
    raise TimelineError(f"{len(fitting)} sessions fit, name one: {names}")


def _measured(events: Iterable[ev.AnyEvent], but: Origin) -> dict[int, ev.TransportSwitch]:
    """What the other end measured of each switch, by version."""
    return {
        event.state_version: event
        for event in events
        if isinstance(event, ev.TransportSwitch) and event.origin is not but
    }


class _Rows:
    """Collects rows and notes in the order of the stream."""

    def __init__(self, start_ms: int, other_end: dict[int, ev.TransportSwitch]) -> None:
        self.rows: list[Row] = []
        self.state, self.version = State.BIRTH, 0
        self._start_ms, self._other_end = start_ms, other_end
        self._path: ev.PathRef | None = None

    def take(self, event: ev.AnyEvent) -> None:
        if isinstance(event, ev.StateChange):
            self._path = _path_of(event.details) or self._path
            self._row(event, event.from_, event.to, event.followed is True)
        elif (
            isinstance(event, ev.OwnershipEvent)
            and event.action == "acquired"
            and event.last_version is not None
        ):
            self._path = None
            self._row(event, self.state, State.RECOVERING, False, reason=f"taken over by {event.node_id}")
        elif isinstance(event, ev.TransportSwitch):
            self._switch(event)
        else:
            text = _note(event)
            if text:
                self._note(event, text)

    def _row(self, event: ev.Event, source: State, to: State, followed: bool, reason: str = "") -> None:
        self.state, self.version = to, event.state_version
        bound = to in (State.ATTACHED, State.VOLATILE) and event.reason_code in (
            Reason.HANDSHAKE_OK,
            Reason.REATTACH_OK,
        )
        self.rows.append(
            Row(
                offset_ms=event.ts_ms - self._start_ms,
                state_version=event.state_version,
                version=str(split_version(event.state_version)),
                source=source,
                to=to,
                reason=reason or event.reason_code,
                transport=self._path.transport if self._path and bound else "",
                path=self._path if bound else None,
                followed=followed,
                notes=[],
            )
        )

    def _switch(self, event: ev.TransportSwitch) -> None:
        other = self._other_end.get(event.state_version)
        client = event if event.origin is Origin.CLIENT else other

        def known(mine: float | None, name: str) -> float | None:
            return mine if mine is not None or other is None else getattr(other, name)

        self._path = event.new
        for number in range(len(self.rows) - 1, -1, -1):
            row = self.rows[number]
            if row.state_version == event.state_version and row.to is State.ATTACHED:
                switch = Switch(
                    old=event.old,
                    new=event.new,
                    explicit=event.explicit,
                    detect_ms=known(event.detect_ms, "detect_ms"),
                    reattach_ms=known(event.reattach_ms, "reattach_ms"),
                    gap_ms=None if client is None else client.gap_ms,
                    silent_ms=event.gap_ms if client is None else None,
                )
                self.rows[number] = msgspec.structs.replace(
                    row, switch=switch, transport=event.new.transport, path=event.new
                )
                return
        self._note(event, f"path changed to {event.new.transport}, but the bind is not in this stream")

    def _note(self, event: ev.Event, text: str) -> None:
        note = Note(offset_ms=event.ts_ms - self._start_ms, kind=_tag(event), text=text)
        if not self.rows:
            self._row(event, self.state, self.state, False, reason="(before the first transition here)")
        self.rows[-1].notes.append(note)


def _tag(event: ev.Event) -> str:
    return str(type(event).__struct_config__.tag)


def _path_of(details: dict[str, Any]) -> ev.PathRef | None:
    """Details may name the path that was bound, in PathRef's own field names."""
    try:
        return msgspec.convert(details, ev.PathRef)
    except msgspec.ValidationError:
        return None


def _note(event: ev.AnyEvent) -> str:
    """What happened besides, in a few words; empty for what the rows say already."""
    match event:
        case ev.TransportSwitchDenied():
            return f"{event.cause} refused: {event.reason_code}, again in {event.retry_after_ms} ms"
        case ev.ReattachResult(result="failed"):
            return f"attempt {event.attempt} failed: {event.reason_code}"
        case ev.ReattachResult(result="abandoned"):
            return f"attempt {event.attempt} abandoned: {event.reason_code}"
        case ev.SecurityEvent():
            more = f" ({event.suppressed} more not logged)" if event.suppressed else ""
            return f"{event.violation} from {event.source or 'unknown'}{more}"
        case ev.PolicyEvent():
            return f"{event.limit}: {event.observed:g}, threshold {event.threshold:g}"
        case ev.DecisionEvent():
            decision = event.record.decision
            return f"{decision.action} {decision.reason}{' to ' + decision.candidate if decision.candidate else ''}"
        case ev.QualityEvent():
            return f"{event.record.path}: {event.record.proposal}"
        case ev.CommitEvent(record=CommitRecord(commitment=Commitment(reason=""), claim=claim)):
            return f"{claim.proposed} proposed, and not taken over"
        case ev.AuditEvent():
            return f"{event.check}: {event.result}"
        case ev.KeyEvent():
            return f"key phase {event.phase} {event.action}{', ' + event.kem if event.kem else ''}"
        case ev.OwnershipEvent(action="transferred", reason_code="TAKEN_OVER"):
            return f"left this node{' for ' + event.owner if event.owner else ''}"
        case ev.OwnershipEvent(action="transferred"):
            return "moved to another worker of this node"
        case ev.OwnershipEvent(action="released", details={"by": by}):
            return f"over: its client has session {by}"
        case ev.OwnershipEvent(action="released"):
            return "over"
        case ev.OwnershipEvent(action="rejected" | "conflict"):
            return f"ownership {event.action}{', owner ' + event.owner if event.owner else ''}"
    return ""
