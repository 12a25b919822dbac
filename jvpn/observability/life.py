"""One session's life as its events tell it, checked as they come. The auditor keeps one for each.

Whatever a check finds, the life goes on from what the event says: one mistake makes one finding, not a trail of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from jvpn.observability import events as ev
from jvpn.session.machine import Origin
from jvpn.session.ownership import Code
from jvpn.session.table import BINDINGS_ALLOWED, TABLE, Effect, Reason, State, is_row, rows_from
from jvpn.session.version import split_version

Severity: TypeAlias = Literal["violation", "lost"]


@dataclass(frozen=True, slots=True)
class Problem:
    severity: Severity
    code: str
    message: str


#: States "the state before" may be where the stream does not tell.
_ANY_BEFORE: Final = tuple({s: None for row in TABLE if row.to is State.RECOVERING for s in row.sources})
_REASONS: Final = {reason.value: reason for reason in Reason}


class Life:
    def __init__(self) -> None:
        self._state: State | None = None
        self._before: tuple[State, ...] = _ANY_BEFORE
        self._version: int | None = None
        self._local_seq = 0
        self._bindings: int | None = None
        self._bound_version: int | None = None
        self._binds_since_switch = 0
        self._path: ev.PathRef | None = None
        self._open: dict[tuple[str, int], int] = {}
        self._answered: set[tuple[str, int]] = set()
        self._incomplete = False
        self._problems: list[Problem] = []

    def take(self, event: ev.AnyEvent, line: int, excused: bool) -> list[Problem]:
        """Problems that `event`, on `line`, makes visible. `excused`: the stream has admitted losses before it."""
        self._problems = []
        self._incomplete = self._incomplete or excused
        if not isinstance(event, ev.StateChange | ev.OwnershipEvent):
            self._catch_up(event)
        if isinstance(event, ev.StateChange):
            self._state_change(event)
        elif isinstance(event, ev.OwnershipEvent) and event.action == "acquired":
            self._acquired(event)
        elif isinstance(event, ev.TransportSwitch):
            self._switch(event)
        elif isinstance(event, ev.ReattachAttempt):
            self._attempt(event, line)
        elif isinstance(event, ev.ReattachResult):
            self._result(event)
        return self._problems

    def finish(self) -> Iterator[tuple[int, Problem]]:
        """What is still open when the stream ends, with the line that opened it."""
        for (_, attempt), line in self._open.items():
            severity: Severity = "lost" if self._incomplete else "violation"
            yield line, Problem(severity, "NO_RESULT", f"attempt {attempt} has no REATTACH_RESULT")

    def _catch_up(self, event: ev.AnyEvent) -> None:
        """An event at a version no STATE_CHANGE has told: that one is missing."""
        now = split_version(event.state_version)
        if event.origin is Origin.CLIENT:
            self._incomplete = self._incomplete or (self._version is None and now.count > 0)
        elif self._version is None and now.count:
            self._missing("BEGINNING_MISSING", f"the stream begins at {now}")
            self._version = event.state_version
        elif self._version is not None and event.state_version > self._version:
            self._missing("VERSION_GAP", f"an event at {now}, told so far: {split_version(self._version)}")
            self._version, self._state = event.state_version, None

    def _wrong(self, code: str, message: str) -> None:
        self._problems.append(Problem("violation", code, message))

    def _missing(self, code: str, message: str) -> None:
        """Events are missing: from here on what depends on them is not held against the stream."""
        self._incomplete = True
        self._path, self._bindings, self._bound_version = None, None, None
        self._problems.append(Problem("lost", code, message))

    def _wrong_unless_incomplete(self, code: str, message: str) -> None:
        self._problems.append(Problem("lost" if self._incomplete else "violation", code, message))

    # --- STATE_CHANGE -------------------------------------------------------------------------------

    def _state_change(self, event: ev.StateChange) -> None:
        if self._state is State.TERMINATED:
            self._wrong("AFTER_END", f"{event.from_} → {event.to} after TERMINATED")
            return
        client = event.origin is Origin.CLIENT
        continues = self._client_order(event) if client else self._gateway_order(event)
        if continues and self._state is not None and event.from_ is not self._state:
            self._wrong("DISCONTINUOUS", f"leaves {event.from_}, but the session is {self._state}")
        before = self._before if continues and self._state is State.RECOVERING else _ANY_BEFORE
        if event.followed is not True:
            self._row(event, before)
        self._count_bindings(event)
        self._enter(event)

    def _gateway_order(self, event: ev.StateChange) -> bool:
        """Does `event` directly follow what is known?"""
        now = split_version(event.state_version)
        if self._version is None:
            if event.from_ is State.BIRTH and now.count == 1:
                self._state, self._bindings = State.BIRTH, 0
                return True
            self._missing("BEGINNING_MISSING", f"the stream begins at {now}, in {event.from_}")
            return False
        last = split_version(self._version)
        if now.epoch == last.epoch and now.count == last.count + 1:
            return True
        if now.epoch == last.epoch and now.count > last.count:
            self._missing("VERSION_GAP", f"{now.count - last.count - 1} transitions missing, {last} to {now}")
        elif now.epoch > last.epoch:
            self._wrong_unless_incomplete("EPOCH_NOT_OPENED", f"{now} after {last} without OWNERSHIP_EVENT")
        else:
            self._wrong("VERSION_WENT_BACK", f"{now} after {last}")
        return False

    def _client_order(self, event: ev.StateChange) -> bool:
        if not isinstance(event.local_seq, int):
            self._wrong("NO_LOCAL_SEQ", "a client's STATE_CHANGE carries its own number")
            return False
        if self._version is not None and event.state_version < self._version:
            now, last = split_version(event.state_version), split_version(self._version)
            self._wrong("VERSION_WENT_BACK", f"{now} after {last}")
        elif (
            self._version is not None and event.followed is not True and event.state_version != self._version
        ):
            self._wrong("CLIENT_COUNTED", "a client's own step changed state_version")
        expected = self._local_seq + 1
        if event.local_seq < expected:
            self._wrong("LOCAL_SEQ_WENT_BACK", f"{event.local_seq} after {self._local_seq}")
            return False
        if event.local_seq > expected:
            code = "VERSION_GAP" if self._local_seq else "BEGINNING_MISSING"
            self._missing(code, f"{event.local_seq - expected} of the client's steps missing")
            return False
        if self._state is None:
            self._state, self._bindings = State.BIRTH, 0
        return True

    def _row(self, event: ev.StateChange, before: tuple[State, ...]) -> None:
        reason = _REASONS.get(event.reason_code)
        if reason is None:
            self._wrong("UNKNOWN_REASON", f"{event.reason_code!r} is no reason code")
        elif not is_row(event.from_, event.to, reason, before):
            self._wrong("NOT_IN_TABLE", f"{event.from_} → {event.to} for {reason}")
        elif self._bindings is not None:
            self._effect(event, reason, self._bindings)

    def _effect(self, event: ev.StateChange, reason: Reason, had: int) -> None:
        effect = next(
            row.effect for row in rows_from(event.from_, reason) if row.to is event.to or row.to is None
        )
        possible = {Effect.BIND: {1}, Effect.DROP: {0}, Effect.KEEP: {had}}[effect]
        if effect is Effect.KEEP and event.from_ is State.RECOVERING:
            possible = {had, 0}  # the kept path may have died while the switch was in flight
        if event.bindings not in possible:
            self._wrong(
                "BINDING_CHANGED",
                f"{had} → {event.bindings} active bindings by {event.from_} → {event.to} for {reason}",
            )

    def _count_bindings(self, event: ev.StateChange) -> None:
        if event.bindings not in BINDINGS_ALLOWED[event.to]:
            self._wrong("BAD_BINDINGS", f"{event.to} with {event.bindings} active bindings")

    def _enter(self, event: ev.StateChange) -> None:
        if event.to is State.RECOVERING and event.from_ is not State.RECOVERING:
            self._before = (event.from_,)
        if event.reason_code == Reason.REATTACH_OK:
            self._bound_version = event.state_version
            self._binds_since_switch += 1
        self._state, self._bindings = event.to, event.bindings
        self._version = max(event.state_version, self._version or 0)
        if isinstance(event.local_seq, int):
            self._local_seq = max(event.local_seq, self._local_seq)

    # --- the other kinds --------------------------------------------------------------------------------

    def _acquired(self, event: ev.OwnershipEvent) -> None:
        now = split_version(event.state_version)
        if self._state is State.TERMINATED:
            self._wrong("AFTER_END", "acquired by a node after TERMINATED")
            return
        if now.count:
            self._wrong("EPOCH_NOT_AT_ZERO", f"an epoch opens with count 0, not {now}")
        if event.last_version is None:
            if self._version is not None:
                self._wrong(
                    "NO_LAST_VERSION", f"epoch {now.epoch} opens without naming the version before it"
                )
            self._state, self._bindings = State.BIRTH, 0
        else:
            self._taken_over(event.last_version, now.epoch)
        self._version = max(event.state_version, self._version or 0)

    def _taken_over(self, last_version: int, epoch: int) -> None:
        last = split_version(last_version)
        if epoch <= last.epoch or (self._version is not None and epoch <= split_version(self._version).epoch):
            self._wrong("EPOCH_WENT_BACK", f"epoch {epoch} opened after {last}")
        elif self._version is None:
            self._missing("BEGINNING_MISSING", f"the stream begins with the takeover of {last}")
        elif last_version > self._version:
            self._missing("VERSION_GAP", f"taken over at {last}, last seen {split_version(self._version)}")
        if self._open:
            # Whoever was judging them is gone; nobody can answer any more.
            for _, attempt in self._open:
                self._missing("NO_RESULT", f"attempt {attempt} was open when its owner went")
            self._open.clear()
        # The new owner knows of no attempt: one whose answer was lost is judged, and told, once more.
        self._answered.clear()
        self._state, self._before, self._bindings = State.RECOVERING, _ANY_BEFORE, 0
        self._path, self._bound_version = None, None

    def _switch(self, event: ev.TransportSwitch) -> None:
        if self._bound_version is None:
            self._wrong_unless_incomplete("SILENT_SWITCH", "a path changed without a bind through RECOVERING")
        elif event.state_version != self._bound_version or not self._binds_since_switch:
            now = split_version(event.state_version)
            self._wrong("SILENT_SWITCH", f"a path changed at {now} without a bind through RECOVERING")
        elif (
            self._binds_since_switch == 1
            and self._path is not None
            and event.old is not None
            and event.old.index != self._path.index
        ):
            self._wrong("SILENT_SWITCH", f"leaves index {event.old.index}, but {self._path.index} was bound")
        self._path, self._binds_since_switch = event.new, 0

    def _attempt(self, event: ev.ReattachAttempt, line: int) -> None:
        key = (event.node_id, event.attempt)
        if key in self._open:
            self._wrong("ATTEMPT_TWICE", f"attempt {event.attempt} is open since line {self._open[key]}")
        elif key in self._answered:
            self._wrong("ATTEMPT_TWICE", f"attempt {event.attempt} has its result already")
            return
        self._open[key] = line

    def _result(self, event: ev.ReattachResult) -> None:
        key = (event.node_id, event.attempt)
        if event.result == "bound" and self._state is State.TERMINATED:
            self._wrong("AFTER_END", f"attempt {event.attempt} bound after TERMINATED")
        if key in self._answered:
            self._wrong("SECOND_RESULT", f"attempt {event.attempt} has its result already")
        elif self._open.pop(key, None) is None:
            self._wrong_unless_incomplete("NO_ATTEMPT", f"a result for attempt {event.attempt}, never begun")
        self._answered.add(key)
        if event.origin is Origin.CLIENT and event.reason_code == Code.VERSION_CONFLICT:
            # The one way back for a client: the gateway has said which version is the right one.
            self._version = event.state_version
