"""DATA that came before its bind: authentic, on an installed index that no source is bound to yet.

A client sends some behind its REQUEST; it is delivered when that index is bound to the source that it came from, and
forgotten when that takes too long. Until then no replay window knows of it: what is not delivered was not received.
"""

from typing import Final, NamedTuple

from jvpn.protocol.constants import PacketType
from workers.kept import NS_PER_MS
from workers.paths import PathEntry
from workers.sessions import Session
from workers.udp import Address

PER_SESSION: Final = 64
IN_ALL: Final = 4096


class Early(NamedTuple):
    """One opened datagram of `size` bytes."""

    time_ns: int
    entry: PathEntry
    source: Address
    kind: PacketType
    counter: int
    plaintext: memoryview
    size: int


class Held:
    """Bounded: PER_SESSION datagrams a session, IN_ALL together, each for the session's resend window."""

    def __init__(self) -> None:
        self._sessions: dict[Session, dict[tuple[int, int], Early]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def hold(self, early: Early) -> bool:
        """False when there is no room, or it is there already."""
        session = early.entry.session
        mine = self._sessions.get(session, {})
        number = early.entry.index, early.counter
        if (
            number in mine
            or len(mine) >= PER_SESSION
            or self._count >= IN_ALL
            or not session.resend_window_ms
        ):
            return False
        mine[number] = early
        self._sessions[session] = mine
        self._count += 1
        return True

    def take(self, entry: PathEntry, now_ns: int) -> tuple[list[Early], int]:
        """What is held on an index, now bound, in its order; and how many of it are too old or from elsewhere."""
        mine = self._sessions.get(entry.session, {})
        found = [early for early in mine.values() if early.entry is entry]
        for early in found:
            self._remove(early)
        oldest_ns = now_ns - entry.session.resend_window_ms * NS_PER_MS
        good = [early for early in found if early.source == entry.remote and early.time_ns >= oldest_ns]
        good.sort(key=lambda early: early.counter)
        return good, len(found) - len(good)

    def expire(self, now_ns: int) -> int:
        """Forget what nobody bound in time; returns how many."""
        old = [
            early
            for session, mine in self._sessions.items()
            for early in mine.values()
            if early.time_ns < now_ns - session.resend_window_ms * NS_PER_MS
        ]
        for early in old:
            self._remove(early)
        return len(old)

    def forget(self, session: Session) -> None:
        self._count -= len(self._sessions.pop(session, {}))

    def _remove(self, early: Early) -> None:
        session = early.entry.session
        mine = self._sessions[session]
        del mine[early.entry.index, early.counter]
        self._count -= 1
        if not mine:
            del self._sessions[session]
