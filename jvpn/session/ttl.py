"""The three clocks of a session, as pure functions: lifetime, transport loss, recovery window.

Times are CLOCK_BOOTTIME milliseconds. A deadline fires at its instant, not after it: `now_ms >= deadline`.

* The session TTL runs from creation, in every state.
* The transport-loss TTL runs while there is no active binding, from the moment the last one went; states passed
  meanwhile do not restart it.
* The recovery window runs while RECOVERING, from the entry.
"""

from dataclasses import dataclass
from typing import NamedTuple

from jvpn.session.precedence import first_of
from jvpn.session.record import SessionRecord
from jvpn.session.table import Reason, State

#: How often a session with a binding is stored in one transport-loss TTL, and how often at most.
HEARTBEATS_A_TTL = 4
MIN_HEARTBEAT_MS = 1_000


class Fired(NamedTuple):
    """What to apply: a reason and, where it has two destinations, which."""

    reason: Reason
    to: State | None = None


class TtlClock(NamedTuple):
    """Deadlines of one session; None while not running."""

    session_deadline_ms: int
    loss_deadline_ms: int | None = None
    window_deadline_ms: int | None = None

    def entered(
        self, state: State, bindings: int, now_ms: int, transport_loss_ttl_ms: int, recovery_window_ms: int
    ) -> "TtlClock":
        """The clock after a transition into `state`, or after a lost binding in RECOVERING (same state, other
        count)."""
        if state in (State.BIRTH, State.TERMINATED):
            return TtlClock(self.session_deadline_ms)
        loss = self.loss_deadline_ms
        if bindings:
            loss = None
        elif loss is None:
            loss = now_ms + transport_loss_ttl_ms
        window = self.window_deadline_ms
        if state is not State.RECOVERING:
            window = None
        elif window is None:
            window = now_ms + recovery_window_ms
        return TtlClock(self.session_deadline_ms, loss, window)

    def moved(self, lifetime_ms: int, transport_loss_ms: int, window_ms: int) -> "TtlClock":
        """The clock under another policy: each limit is so much longer, or shorter, than it was."""
        loss, window = self.loss_deadline_ms, self.window_deadline_ms
        return TtlClock(
            self.session_deadline_ms + lifetime_ms,
            None if loss is None else loss + transport_loss_ms,
            None if window is None else window + window_ms,
        )

    def next_deadline_ms(self) -> int:
        """When `fired` has to be asked again."""
        due_ms = self.session_deadline_ms
        for deadline in (self.loss_deadline_ms, self.window_deadline_ms):
            if deadline is not None and deadline < due_ms:
                due_ms = deadline
        return due_ms

    def fired(self, state: State, bindings: int, now_ms: int, window_terminates: bool) -> Fired | None:
        """What is over at `now_ms`, by precedence; None if nothing is.

        A voluntary switch that outlasts the window while its old path still delivers is a refused switch, not a
        lost session, whatever `on_recovery_window_exceeded` says.
        """
        if state is State.TERMINATED:
            return None
        over = []
        if now_ms >= self.session_deadline_ms:
            over.append(Reason.SESSION_TTL_EXPIRED)
        if not bindings and self.loss_deadline_ms is not None and now_ms >= self.loss_deadline_ms:
            over.append(Reason.TRANSPORT_LOSS_TTL_EXPIRED)
        if (
            state is State.RECOVERING
            and self.window_deadline_ms is not None
            and now_ms >= self.window_deadline_ms
        ):
            over.append(Reason.REATTACH_FAIL if bindings else Reason.RECOVERY_WINDOW_EXCEEDED)
        reason = first_of(over)
        if reason is None:
            return None
        if reason is Reason.RECOVERY_WINDOW_EXCEEDED:
            return Fired(reason, State.TERMINATED if window_terminates else State.DEGRADED)
        return Fired(reason)


def store_heartbeat_ms(transport_loss_ttl_ms: int) -> int:
    """How often a session with a binding is stored, although nothing has changed: should its host die, it lived for as
    long as this after what the store says, perhaps."""
    return max(MIN_HEARTBEAT_MS, transport_loss_ttl_ms // HEARTBEATS_A_TTL)


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment as one node saw it: wall clock, CLOCK_BOOTTIME, and which boot that one belongs to."""

    wall_ms: int
    boot_ms: int
    boot_id: str


def last_life(record: SessionRecord, transport_loss_ttl_ms: int, now_ms: int) -> Instant:
    """The old owner's last sign of life: its record's own time is what is durable. A session with a binding may have
    had it for as long as until it would have been stored again; one without has had none since."""
    recovering = record.state is State.RECOVERING
    alive_ms = 0 if recovering else store_heartbeat_ms(transport_loss_ttl_ms)
    return Instant(record.stored_wall_ms + alive_ms, now_ms, "")


def revive(
    record: SessionRecord,
    heartbeat: Instant,
    now: Instant,
    transport_loss_ttl_ms: int,
    recovery_window_ms: int,
) -> TtlClock | Reason:
    """The clock of a session loaded from the store, RECOVERING without a binding; or the reason why it stays dead.

    `heartbeat`: the old owner's last sign of life in the store; zero bindings count from there. Within one boot
    CLOCK_BOOTTIME counts. Otherwise wall time does, and a wall clock that reads earlier than the record's own
    time revives nothing: it could stretch any lifetime.
    """
    if now.boot_id == record.boot_id:
        session_left_ms = record.expires_boot_ms - now.boot_ms
    elif now.wall_ms < record.stored_wall_ms:
        return Reason.SESSION_TTL_EXPIRED
    else:
        session_left_ms = record.expires_wall_ms - now.wall_ms
    if session_left_ms <= 0:
        return Reason.SESSION_TTL_EXPIRED
    same_boot = now.boot_id == heartbeat.boot_id
    silent_ms = now.boot_ms - heartbeat.boot_ms if same_boot else now.wall_ms - heartbeat.wall_ms
    # Clocks of two nodes differ a little: a heartbeat from the near future has been silent for no time.
    silent_ms = max(0, silent_ms)
    if silent_ms >= transport_loss_ttl_ms:
        return Reason.TRANSPORT_LOSS_TTL_EXPIRED
    return TtlClock(
        session_deadline_ms=now.boot_ms + session_left_ms,
        loss_deadline_ms=now.boot_ms + transport_loss_ttl_ms - silent_ms,
        window_deadline_ms=now.boot_ms + recovery_window_ms,
    )
