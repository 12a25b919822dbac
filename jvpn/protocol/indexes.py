"""Which indexes of a session a gateway has installed, and their steering ids.

With h the highest index on which anything was authenticated, installed are the active one, the draining one, and
h - max_candidates … h + max_candidates + 2 (docs/protocol.md, "Names").
"""

from jvpn.protocol.constants import MAX_INDEX
from jvpn.protocol.keys import SessionSecrets, steering_ids


def window(highest: int, max_candidates: int) -> range:
    """The contiguous part of the installed indexes."""
    return range(max(0, highest - max_candidates), min(MAX_INDEX, highest + max_candidates + 2) + 1)


class IndexTable:
    """Steering ids of the installed indexes of one session, kept up with what was authenticated and bound."""

    def __init__(self, secrets: SessionSecrets, max_candidates: int, highest_seen: int = 0) -> None:
        self._secrets = secrets
        self._max_candidates = max_candidates
        self.highest_seen = highest_seen
        self.ids: dict[int, bytes] = {}
        self._window = range(0)
        self.update(keep=())

    @property
    def highest_installed(self) -> int:
        top = self._window.stop - 1
        # Its steering id may be another session's.
        return top if top in self.ids else max(self.ids)

    def above(self, count: int) -> dict[int, bytes]:
        """Steering ids of the next `count` indexes, which are not installed yet."""
        first = self.highest_installed + 1
        return steering_ids(self._secrets, range(first, min(first + count, MAX_INDEX + 1)))

    def widen(self, max_candidates: int) -> None:
        """A wider window (call `update`). It never narrows: the client has been told how far it may go."""
        self._max_candidates = max(self._max_candidates, max_candidates)

    def saw(self, index: int) -> bool:
        """An authenticated datagram came on `index`. Returns whether the window has to move (call `update`)."""
        if index <= self.highest_seen:
            return False
        self.highest_seen = index
        return True

    def update(self, keep: tuple[int, ...]) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """Move the window; `keep` are the active and draining indexes. Returns (new ids, ids gone), by index."""
        moved = window(self.highest_seen, self._max_candidates)
        if moved == self._window and len(self.ids) == len(moved) and all(n in moved for n in keep):
            return {}, {}
        self._window, first, end = moved, moved.start, moved.stop
        missing = [n for n in (*keep, *moved) if n not in self.ids]
        left = [n for n in self.ids if not first <= n < end and n not in keep]
        added = steering_ids(self._secrets, sorted(set(missing))) if missing else {}
        gone = {n: self.ids.pop(n) for n in sorted(left)}
        self.ids.update(added)
        return added, gone
