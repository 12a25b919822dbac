"""What the gateway has its store keep, and what becomes of it while the store cannot.

Without the store there is no new ownership: a session that is being born ends. A running one goes on; its events are
marked `non_durable` until the store has kept something again, and what it missed is brought to it then.
"""

from collections.abc import Callable

from jvpn.session.machine import Reason
from jvpn.session.record import SessionRecord
from jvpn.store.base import OwnershipStore, StoreError
from jvpn.supervisor.core import GatewayCore


class Keeping:
    def __init__(self, store: OwnershipStore, core: GatewayCore, say: Callable[[str], None]) -> None:
        self._store = store
        self._core = core
        self._say = say
        self._narrator = core.context.narrator

    def save(self, record: SessionRecord, timestamp_us: int, now_ms: int) -> None:
        try:
            self._store.save(record, timestamp_us)
        except StoreError as error:
            self._failed(error)
            self._core.not_durable(record.session_id, now_ms)
            return
        if not self._narrator.durable:
            self._narrator.durable = True
            self._say("the store can be written again")
        for session_id in list(self._core.context.unforgotten):
            self.forget(session_id)

    def forget(self, session_id: bytes) -> None:
        try:
            self._store.forget(session_id)
        except StoreError as error:
            self._core.context.counters["store_errors"] += 1
            self._failed(error)
        else:
            self._core.context.unforgotten.discard(session_id)

    def forget_others(self, client_public: bytes, session_id: bytes) -> None:
        """While the store cannot, it is the session that lives here which bars those from coming back."""
        try:
            others = self._store.forget_others(client_public, session_id)
        except StoreError as error:
            self._core.context.counters["store_errors"] += 1
            self._failed(error)
            return
        for other in others:
            self._core.context.counters["superseded"] += 1
            self._narrator.released(other, Reason.SUPERSEDED, session_id)

    def _failed(self, error: StoreError) -> None:
        """Said once for as long as it lasts."""
        if self._narrator.durable:
            self._say(str(error))
        self._narrator.durable = False
