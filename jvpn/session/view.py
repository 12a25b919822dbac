"""The client's side of the machine: what it sees itself, and what the gateway has said."""

from collections.abc import Mapping

from jvpn.session.errors import RemoteProtocolError
from jvpn.session.table import BINDINGS_ALLOWED, Reason, State
from jvpn.session.version import pack_version, split_version
from jvpn.session.walker import NO_DETAILS, Hook, Origin, Transition, Walker


class View(Walker):
    """The client's view of its session: an observer that records the last authenticated version."""

    __slots__ = ()
    origin = Origin.CLIENT

    def __init__(self, epoch: int = 1, hook: Hook | None = None) -> None:
        super().__init__(pack_version(epoch, 0), hook)

    @property
    def local_seq(self) -> int:
        """Number of the last step taken here, own or followed; 0 before the first."""
        return self._local_seq

    def follow(
        self,
        state: State,
        version: int,
        reason: Reason,
        now_ms: int,
        details: Mapping[str, object] | None = None,
    ) -> Transition | None:
        """Believe an authenticated STATE, ACK or FAIL. None, and nothing changes, unless it is newer than what
        is known.

        A client with a request in flight follows only its answer (ACK, FAIL): a STATE sent before the gateway
        knew of the request would undo what the client has seen since.
        Raises RemoteProtocolError for a state no gateway may report (BIRTH).
        """
        if state is State.BIRTH:
            raise RemoteProtocolError("the gateway reported BIRTH for a session that has been confirmed")
        split_version(version)
        if version <= self._version or self._state is State.TERMINATED:
            return None
        bindings = self._bindings_in(state, reason)
        return self._move(
            state, reason, now_ms, version, self._local_seq + 1, bindings, True, details or NO_DETAILS
        )

    def correct(self, version: int) -> bool:
        """Believe an authenticated FAIL VERSION_CONFLICT: the gateway never gave a version as high as ours. False, and
        nothing changes, when its own is not lower or of another epoch."""
        mine, theirs = split_version(self._version), split_version(version)
        if theirs.epoch != mine.epoch or theirs.count >= mine.count or self._state is State.TERMINATED:
            return False
        self._version = version
        return True

    def _bindings_in(self, state: State, reason: Reason) -> int:
        allowed = BINDINGS_ALLOWED[state]
        if len(allowed) == 1:
            return min(allowed)
        lost = reason in (Reason.TRANSPORT_DEAD, Reason.ADDRESS_CHANGED)
        return 0 if lost else self._bindings

    def _number(self, target: State) -> tuple[int, int]:
        return self._version, self._local_seq + 1
