"""The other nodes of a fleet, and whether a stored session may be taken from the one that owns it. Sans-I/O.

A session is taken without asking when its owner's lease has ended, or when the owner is draining. An owner that lives
has probably just not been asked yet: the client is sent there first. If it comes back under the same attempt, it cannot
reach the owner, whom only the store still reaches: that one is asked to hand the session over. It knows best whether
the client has found it meanwhile.
"""

from collections.abc import Mapping

from jvpn.session.record import SessionRecord
from jvpn.store.node_about import NodeAbout
from jvpn.supervisor.moves import Move

#: A client that is sent to the owner is not to come back earlier.
ASK_AGAIN_MS = 200
#: An owner that was asked hears of it by its watch, at once or when that is back.
OWNER_PATIENCE_MS = 1_000
#: Sessions of which it is known when their clients were first sent elsewhere.
MOST_REFERRED = 4_096


class Fleet:
    """`nodes`: those whose lease goes on, as the watch last told; None before it has told anything."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self.nodes: Mapping[str, NodeAbout] | None = None
        #: By session: the attempt, and when its owner is to be asked, or asked again.
        self._referred: dict[bytes, tuple[int, int]] = {}

    def about(self, node_id: str) -> NodeAbout | None:
        """What a node whose lease goes on says of itself, as far as is known."""
        return None if self.nodes is None else self.nodes.get(node_id)

    def bars(self, record: SessionRecord) -> bool:
        """Whether the session's owner is another node that goes on serving, as far as is known."""
        if record.owner_node == self._node_id:
            return False
        if self.nodes is None:
            return True
        owner = self.about(record.owner_node)
        return owner is not None and not owner.draining

    def must_be_gone(self, owner: str) -> bool:
        """Whether a session of `owner` is taken only because its lease has ended: by the time of the claim it may have
        another."""
        about = self.about(owner)
        return owner != self._node_id and (about is None or not about.draining)

    def endpoint_of(self, node_id: str) -> str:
        """Where clients reach a node; empty when that is not known."""
        about = self.about(node_id)
        return about.advertise[0] if about is not None and about.advertise else ""

    def referred(self, session_id: bytes, attempt: int, now_ms: int) -> bool:
        """The client of a session that is barred asks here under `attempt`. Returns whether its owner is to be asked:
        the client was sent there long enough ago, and the owner has not been asked lately."""
        known, due_ms = self._referred.pop(session_id, (-1, 0))
        if known == attempt:
            due = now_ms >= due_ms
            self._referred[session_id] = (attempt, now_ms + OWNER_PATIENCE_MS if due else due_ms)
            return due
        while len(self._referred) >= MOST_REFERRED:
            self._referred.pop(next(iter(self._referred)))
        self._referred[session_id] = (attempt, now_ms + ASK_AGAIN_MS)
        return False

    def settled(self, session_id: bytes, owner: str) -> Move:
        """The session lives here now; how it came, if `owner` had it in the store."""
        referred = self._referred.pop(session_id, None) is not None
        if owner == self._node_id:
            return Move.GIVEN if referred else Move.REVIVED
        return Move.TAKEN if self.must_be_gone(owner) else Move.LEFT
