"""Sessions that come to this node and go to others, in lines for its log: one a second at most. Sans-I/O.

Each is an event, too. A line is for a person, who is not to be told ten thousand times in a second that a node died.
"""

from collections import Counter
from enum import Enum
from typing import Final

#: Between two lines; what comes meanwhile is in the next one.
EVERY_MS: Final = 1_000


class Move(Enum):
    """What became of a session, and what is said of that: for one, and for more."""

    REVIVED = "brought back {what} out of the store"
    TAKEN = "took over {what} from {node}, whose lease has ended"
    LEFT = "took over {what} from {node}, which drains"
    GIVEN = "took over {what} that other nodes handed over"
    HANDED_OVER = "handed over {what} to {node}, on its request"
    OVERTAKEN = "{what} went to {node}"


class Moves:
    """`note` each; `lines` when `get_timer` says."""

    def __init__(self) -> None:
        self._noted: Counter[tuple[Move, str]] = Counter()
        #: One of each, to be named where it is the only one.
        self._names: dict[tuple[Move, str], str] = {}
        self._next_ms = 0

    def note(self, move: Move, node: str, name: str) -> None:
        """`node`: where it was, or is now; "" where nobody knows. `name`: whose session it is, for people."""
        self._noted[move, node] += 1
        self._names[move, node] = name

    def get_timer(self) -> int | None:
        return self._next_ms if self._noted else None

    def lines(self, now_ms: int) -> list[str]:
        """What is to be said now: nothing, or one line."""
        if not self._noted or now_ms < self._next_ms:
            return []
        self._next_ms = now_ms + EVERY_MS
        parts = [
            self._words(move, node, count) for (move, node), count in sorted(self._noted.items(), key=_order)
        ]
        self._noted.clear()
        self._names.clear()
        return ["; ".join(parts)]

    def _words(self, move: Move, node: str, count: int) -> str:
        what = f"the session of {self._names[move, node]}" if count == 1 else f"{count} sessions"
        return move.value.format(what=what, node=node or "another node")


def _order(noted: tuple[tuple[Move, str], int]) -> tuple[str, str]:
    (move, node), _count = noted
    return move.name, node
