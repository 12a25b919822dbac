"""Stored sessions whose clients never came back: what nobody asks for again leaves the store some days after its end.

A session that lives ends by its own clock, and one that a client asks for is judged then. This is for the others, which
no event ever touches. A few records are looked at each minute, so that a large store is not read in one go, and what
is forgotten goes the way of every session that has ended: at the version that was read, again and again until it is.
"""

from collections.abc import Callable

from jvpn.session.machine import Reason
from jvpn.session.record import SessionRecord
from jvpn.store.base import StoreError
from jvpn.supervisor.context import GatewayContext
from jvpn.supervisor.effects import LoadExpired

#: After a start clients come back; the store has better things to do.
FIRST_MS = 300_000
EVERY_MS = 60_000
#: So long past its end a record stays: a wall clock that is wrong by days, here or where it was written, ends nothing.
MARGIN_MS = 7 * 86_400_000


class Sweeping:
    """`begin`, then `get_timer` and `handle_timer`. `claiming(session_id)`: whether a session is being taken over."""

    def __init__(self, context: GatewayContext, claiming: Callable[[bytes], bool]) -> None:
        self._context = context
        self._claiming = claiming
        self._due_ms: int | None = None

    def begin(self, now_ms: int) -> None:
        self._due_ms = now_ms + FIRST_MS

    def get_timer(self) -> int | None:
        return self._due_ms

    def handle_timer(self, now_ms: int) -> None:
        if self._due_ms is None or now_ms < self._due_ms:
            return
        self._due_ms = now_ms + EVERY_MS
        self._context.do(LoadExpired(self._context.wall_ms() - MARGIN_MS, self._found))

    def _found(self, found: list[SessionRecord] | StoreError, now_ms: int) -> None:
        """What cannot be read now is looked at in a later round."""
        context = self._context
        if isinstance(found, StoreError) or context.fenced(now_ms):
            return
        for record in found:
            if self._may_live(record, now_ms):
                continue
            context.counters["swept"] += 1
            context.narrator.released(record, Reason.SESSION_TTL_EXPIRED)
            context.forget(record.session_id, record.state_version)

    def _may_live(self, record: SessionRecord, now_ms: int) -> bool:
        """The record is as good as the wall clock of who wrote it: where more is known, that counts."""
        context, session_id = self._context, record.session_id
        here = (context.sessions, context.confirming, context.unforgotten, context.departing)
        if any(session_id in sessions for sessions in here) or self._claiming(session_id):
            return True
        if record.boot_id == context.facts.boot_id:
            return now_ms < record.expires_boot_ms + MARGIN_MS
        return context.fleet is not None and context.fleet.bars(record)
