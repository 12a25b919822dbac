"""What the gateway's machine and the client's view share: a place in the table, and the step along a row."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from jvpn.session.errors import IllegalTransition, InvariantBroken
from jvpn.session.table import BINDINGS_ALLOWED, STATE_BEFORE, Effect, Reason, Row, State, rows_from

NO_DETAILS: Final[Mapping[str, object]] = MappingProxyType({})


class Origin(StrEnum):
    GATEWAY = "gateway"
    CLIENT = "client"


class Transition(NamedTuple):
    """One step of a session. `local_seq` counts a client's own steps (0 on a gateway); `followed` marks one that was
    told by the gateway and may skip versions; `at_ms` is the caller's clock."""

    source: State
    to: State
    reason: Reason
    version: int
    at_ms: int
    origin: Origin
    bindings: int
    local_seq: int = 0
    followed: bool = False
    details: Mapping[str, object] = NO_DETAILS


Hook = Callable[[Transition], None]


def untold(_: Transition) -> None:
    """The hook of whoever has nobody to tell."""


class Walker(ABC):
    """What gateway and client share: a place in the table. Not used by itself."""

    __slots__ = ("_before", "_bindings", "_hook", "_local_seq", "_since_ms", "_state", "_version")
    origin: Origin

    def __init__(self, version: int, hook: Hook | None = None) -> None:
        self._state = State.BIRTH
        self._before: State | None = None
        self._bindings = 0
        self._version = version
        self._local_seq = 0
        self._since_ms = 0
        self._hook = hook or untold

    @property
    def state(self) -> State:
        return self._state

    @property
    def state_before(self) -> State | None:
        """In RECOVERING: the state it was entered from, None after a takeover. Elsewhere None."""
        return self._before

    @property
    def state_version(self) -> int:
        return self._version

    @property
    def active_bindings(self) -> int:
        return self._bindings

    @property
    def since_ms(self) -> int:
        """When the present state was entered, on the caller's clock."""
        return self._since_ms

    @property
    def terminated(self) -> bool:
        return self._state is State.TERMINATED

    def allows(self, reason: Reason, to: State | None = None) -> bool:
        """Would `apply` find a row? (It may still raise VersionExhausted.)"""
        return self._find(reason, to) is not None

    def apply(
        self,
        reason: Reason,
        now_ms: int,
        to: State | None = None,
        details: Mapping[str, object] | None = None,
    ) -> Transition:
        """Take the row for `reason`; `to` chooses where a reason has several destinations.

        Raises IllegalTransition (nothing changed, no hook call) when the table has no such row from here.
        """
        found = self._find(reason, to)
        if found is None:
            where = f" to {to}" if to is not None else ""
            raise IllegalTransition(
                f"no transition{where} for {reason} from {self._state} with {self._bindings} active binding(s)"
            )
        row, target = found
        version, local_seq = self._number(target)
        bindings = self._bindings if row.effect is Effect.KEEP else int(row.effect is Effect.BIND)
        return self._move(target, reason, now_ms, version, local_seq, bindings, False, details or NO_DETAILS)

    def retire(self) -> None:
        """No step follows. The hook is let go of, with all that it holds: its owner, for one, who holds this."""
        self._hook = untold

    def lose_binding(self) -> bool:
        """The old path died while a voluntary switch was in flight. Returns whether there was one to lose.

        Raises IllegalTransition outside RECOVERING, where a death is the transition TRANSPORT_DEAD.
        """
        if self._state is not State.RECOVERING:
            raise IllegalTransition(f"in {self._state} a lost binding is TRANSPORT_DEAD, a transition")
        had, self._bindings = self._bindings == 1, 0
        return had

    def _find(self, reason: Reason, to: State | None) -> tuple[Row, State] | None:
        for row in rows_from(self._state, reason):
            target = self._before if row.to is STATE_BEFORE else row.to
            if target is None or (to is not None and target is not to):
                continue
            if row.needs is None or row.needs == self._bindings:
                return row, target
        return None

    @abstractmethod
    def _number(self, target: State) -> tuple[int, int]:
        """state_version and local sequence number of a step to `target`."""

    def _move(
        self,
        target: State,
        reason: Reason,
        now_ms: int,
        version: int,
        local_seq: int,
        bindings: int,
        followed: bool,
        details: Mapping[str, object],
    ) -> Transition:
        step = Transition(
            self._state, target, reason, version, now_ms, self.origin, bindings, local_seq, followed, details
        )
        check_bindings(target, bindings)
        if version < self._version or self._state is State.TERMINATED:
            raise InvariantBroken(f"{self._state} {self._version} → {target} {version}")
        if target is not State.RECOVERING:
            self._before = None
        elif self._state is not State.RECOVERING:
            self._before = self._state
        self._state, self._bindings, self._since_ms = target, bindings, now_ms
        self._version, self._local_seq = version, local_seq
        self._hook(step)
        return step


def check_bindings(state: State, bindings: int) -> None:
    """A real `if`, not `assert`: it must hold under `python -O` too."""
    if bindings not in BINDINGS_ALLOWED[state]:
        raise InvariantBroken(f"{state} with {bindings} active bindings")
