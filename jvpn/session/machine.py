"""The session machine: theory of operation.

A session is in one of six states. It moves only along a row of `jvpn.session.table.TABLE`, each time for one
reason code, and each move is one `Transition`, numbered by the state version and handed to the hook exactly
once. So the stream of hook calls is the session's life, and nothing can change that the stream does not tell.

    BIRTH ──► ATTACHED ◄──► VOLATILE          delivering: exactly one active binding
                 ▲  │           │
                 │  ▼           ▼
              RECOVERING ◄──► DEGRADED        zero bindings, or one that still delivers
    any of them ──► TERMINATED                absorbing, zero bindings

*Bindings.* A binding changes only by passing through RECOVERING. Death and a changed address drop it on the way
in; a voluntary switch keeps it, remembers the state it came from (`state_before`), and goes back there when
refused. If the kept path dies while the switch is in flight, `lose_binding()` says so: no transition, but the
way back is closed.

*Versions.* The gateway decides and counts: 0 in BIRTH, +1 for every transition, gapless within an epoch.
Whoever loads a session from the store opens a new epoch (`Machine.open_epoch`): RECOVERING with count 0,
announced by an OWNERSHIP_EVENT instead of a STATE_CHANGE. The last count of an epoch is kept for the transition
that ends the session.

*The client* runs the same table as a `View`: it moves by what it sees itself (`apply`), numbered by a local
sequence, and by what the gateway says in authenticated messages (`follow`), which may skip versions but never
go back.

Time is an argument, in milliseconds of any one clock; nothing here reads a clock, does I/O or allocates beyond
one Transition.
"""

from jvpn.session.errors import (
    IllegalTransition,
    InvariantBroken,
    LocalProtocolError,
    RemoteProtocolError,
    SessionError,
    VersionExhausted,
)
from jvpn.session.precedence import PRECEDENCE, Trigger, first_of, trigger_of
from jvpn.session.table import LOSS_CAUSES, TABLE, VOLUNTARY_CAUSES, Effect, Reason, Row, State, is_row
from jvpn.session.version import MAX_COUNT, MAX_EPOCH, Version, epoch_of, pack_version, split_version
from jvpn.session.view import View
from jvpn.session.walker import Hook, Origin, Transition, Walker, check_bindings

__all__ = [
    "LOSS_CAUSES",
    "PRECEDENCE",
    "TABLE",
    "VOLUNTARY_CAUSES",
    "Effect",
    "IllegalTransition",
    "InvariantBroken",
    "LocalProtocolError",
    "Machine",
    "Origin",
    "Reason",
    "RemoteProtocolError",
    "Row",
    "SessionError",
    "State",
    "Transition",
    "Trigger",
    "Version",
    "VersionExhausted",
    "View",
    "Walker",
    "first_of",
    "is_row",
    "pack_version",
    "split_version",
    "trigger_of",
]


class Machine(Walker):
    """The gateway's machine of one session: it decides, and it counts."""

    __slots__ = ()
    origin = Origin.GATEWAY

    def __init__(self, epoch: int = 1, hook: Hook | None = None) -> None:
        super().__init__(pack_version(epoch, 0), hook)

    @classmethod
    def open_epoch(
        cls, last_version: int, last_state: State, now_ms: int, hook: Hook | None = None
    ) -> "Machine":
        """The machine of a session just loaded from the store: RECOVERING, no binding, next epoch, count 0.

        The caller has made owner and epoch durable and writes the OWNERSHIP_EVENT that names `last_version`.
        Raises IllegalTransition for a session that was never attached or is over, VersionExhausted after the
        last epoch.
        """
        if last_state in (State.BIRTH, State.TERMINATED):
            raise IllegalTransition(f"a session stored as {last_state} cannot be taken over")
        epoch = epoch_of(last_version) + 1
        if epoch > MAX_EPOCH:
            raise VersionExhausted(f"epoch {MAX_EPOCH} was the last")
        machine = cls(epoch, hook)
        machine._state, machine._since_ms = State.RECOVERING, now_ms
        return machine

    @classmethod
    def adopt(
        cls,
        state: State,
        version: int,
        bindings: int,
        now_ms: int,
        before: State | None = None,
        hook: Hook | None = None,
    ) -> "Machine":
        """The machine of a session that outlived its supervisor: same epoch, no transition, as the shared page has it.

        Raises InvariantBroken when the state cannot have that many bindings.
        """
        check_bindings(state, bindings)
        machine = cls(epoch_of(version), hook)
        machine._state, machine._version, machine._bindings = state, version, bindings
        machine._since_ms = now_ms
        machine._before = before if state is State.RECOVERING else None
        return machine

    def _number(self, target: State) -> tuple[int, int]:
        last = MAX_COUNT if target is State.TERMINATED else MAX_COUNT - 1
        if self._version & MAX_COUNT >= last:
            now = split_version(self._version)
            raise VersionExhausted(f"epoch {now.epoch} has counted to {now.count}: only an end may follow")
        return self._version + 1, 0
