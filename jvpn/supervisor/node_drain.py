"""A node that is to be left: it takes no session, and asks the clients of its own to go to another node. Sans-I/O.

They are asked when the fleet has heard of it, so that whoever they go to may take their sessions at once; and not all
in one instant: each costs the others two REQUESTs and a claim. Who is here when all have been asked is asked again.
A session without a path cannot be asked, and need not: wherever its client comes back, it is taken from a node that
drains.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from jvpn.session.machine import Reason
from jvpn.supervisor.context import GatewayContext
from jvpn.supervisor.effects import Announce
from jvpn.supervisor.live_session import LiveSession

#: Sessions that are asked in a second, if nothing else is wished for.
DEFAULT_PER_S: Final = 50
MOST_PER_S: Final = 1_000
TICK_MS: Final = 100
#: After this node has seen its own word in the store, for the others to see it too.
SPREAD_MS: Final = 300
#: Between the beginnings of two rounds.
AGAIN_MS: Final = 3_000
#: How often it is looked whether anybody is left, when all have been asked.
LOOK_MS: Final = 500


@dataclass(frozen=True, slots=True)
class Progress:
    """Sessions that went to other nodes since the drain has begun, that are here with a path, and without one.

    `announced`: the fleet has heard of it.
    """

    for_ms: int
    announced: bool
    moved: int
    left: int
    away: int


class NodeDrain:
    """`ask(session, reason, now_ms)` sends SWITCH."""

    def __init__(self, context: GatewayContext, ask: Callable[[LiveSession, Reason, int], None]) -> None:
        self._context = context
        self._ask = ask
        self._began_ms = 0
        self._per_s = DEFAULT_PER_S
        self._gone_before = 0
        #: Of the next sessions to be asked; None until the fleet has heard of the drain.
        self._due_ms: int | None = None
        self._round: deque[LiveSession] = deque()
        self._round_ms = 0
        #: How often each session of this node was asked.
        self.asked: dict[bytes, int] = {}
        self._told_end = False

    def begin(self, per_s: int, by: str, now_ms: int) -> None:
        """Nothing but the rate changes where a drain is under way."""
        context = self._context
        self._per_s = per_s
        if context.draining:
            return
        context.draining = True
        self._began_ms, self._due_ms, self._told_end = now_ms, None, False
        self._gone_before = self._gone()
        self._round.clear()
        self._round_ms = now_ms - AGAIN_MS
        self.asked.clear()
        self._tell("begun", by, "its clients are asked to go to other nodes, and it takes nobody")
        context.do(Announce(draining=True))

    def undo(self, by: str) -> None:
        """The node takes sessions again; those that have gone stay where they are."""
        context = self._context
        if context.draining:
            context.draining = False
            self._tell("undone", by, "it takes sessions again, those that have gone stay where they are")
            context.do(Announce(draining=False))

    def progress(self, now_ms: int) -> Progress | None:
        """None while nothing drains."""
        context = self._context
        if not context.draining:
            return None
        left = sum(1 for session in context.sessions.values() if session.bindings.active is not None)
        away = len(context.sessions) - left
        moved = self._gone() - self._gone_before
        return Progress(now_ms - self._began_ms, self._due_ms is not None, moved, left, away)

    def _gone(self) -> int:
        counters = self._context.counters
        return counters["overtaken"] + counters["handed_over"]

    def get_timer(self) -> int | None:
        if not self._context.draining:
            return None
        if self._due_ms is not None:
            return self._due_ms
        return self._began_ms if self._announced() else None

    def handle_timer(self, now_ms: int) -> None:
        if not self._context.draining:
            return
        if self._due_ms is None:
            if self._announced():
                self._due_ms = now_ms + SPREAD_MS
        elif now_ms >= self._due_ms:
            if self._round or now_ms >= self._round_ms + AGAIN_MS:
                self._ask_some(now_ms)
            self._due_ms = now_ms + (TICK_MS if self._round else LOOK_MS)
            self._tell_end(now_ms)

    def _announced(self) -> bool:
        """Whether what the watch tells of this node is that it drains."""
        fleet, ours = self._context.fleet, self._context.facts.node_id
        about = None if fleet is None else fleet.about(ours)
        return about is not None and about.draining

    def _ask_some(self, now_ms: int) -> None:
        sessions = self._context.sessions
        if not self._round:
            self._round.extend(sessions.values())
            self._round_ms = now_ms
            self.asked = {i: count for i, count in self.asked.items() if i in sessions}
        wanted = max(1, self._per_s * TICK_MS // 1000)
        while self._round and wanted:
            session = self._round.popleft()
            if sessions.get(session.session_id) is session and self._can_be_asked(session):
                self.asked[session.session_id] = self.asked.get(session.session_id, 0) + 1
                self._ask(session, Reason.NODE_DRAIN, now_ms)
                wanted -= 1

    @staticmethod
    def _can_be_asked(session: LiveSession) -> bool:
        """It has a path, and no SWITCH under way, which is repeated by itself."""
        asked = session.switch_id
        return session.bindings.active is not None and (asked is None or not session.channel.awaits(asked))

    def _tell_end(self, now_ms: int) -> None:
        """Once, when the last client that could be asked has gone."""
        progress = self.progress(now_ms)
        if progress is not None and not progress.left and not self._told_end:
            self._told_end = True
            moved, away = progress.moved, progress.away
            self._tell(f"ended: {moved} moved, {away} without a path are taken when they come back")

    def _tell(self, result: str, by: str = "", more: str = "") -> None:
        """As an event, and in the log, with how far it is."""
        context = self._context
        context.narrator.drain(result, by)
        who = f", asked by {by}" if by else ""
        what = (
            f": {more} ({self._gone() - self._gone_before} moved, {len(context.sessions)} here)"
            if more
            else ""
        )
        context.worker_errors.append(f"drain {result}{who}{what}")
