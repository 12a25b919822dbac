"""What the gateway has its store keep, and what becomes of it while the store cannot.

All that one turn brings is one batch: a disk is waited for once, however many sessions that concerns.

Without the store there is no new ownership: a session that is being born ends. A running one goes on; its events are
marked `non_durable` until the store has kept something again, and what it missed is brought to it then.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import assert_never

from jvpn.session.machine import Reason
from jvpn.session.record import SessionRecord
from jvpn.store.base import OwnershipStore, StoreError
from jvpn.supervisor.core import GatewayCore
from jvpn.supervisor.effects import (
    ClaimSession,
    Effect,
    ForgetOthers,
    ForgetSession,
    SaveSession,
    StoreEffect,
)

Carry = Callable[[list[Effect]], None]

#: Sessions written in one batch: more of them would keep everything else waiting.
MOST_WRITES = 64


class Keeping:
    """Holds a turn's effects back until the store has done its: `carry_out` after each step, `settle` at its end."""

    def __init__(self, store: OwnershipStore, core: GatewayCore, say: Callable[[str], None]) -> None:
        self._store = store
        self._core = core
        self._say = say
        self._narrator = core.context.narrator
        self._held: list[Effect] = []
        self._writes = 0

    def carry_out(self, do: Carry, now_ms: int) -> None:
        """What of the core's effects waits for nothing."""
        do(self.held(self._core.effects(), now_ms))

    def settle(self, do: Carry, now_ms: int) -> None:
        """All that the turn has brought. What the store could not keep brings more."""
        self.carry_out(do, now_ms)
        while self._held:
            do(self.due(now_ms))
            self.carry_out(do, now_ms)

    @property
    def holds(self) -> bool:
        return bool(self._held)

    def held(self, effects: list[Effect], now_ms: int) -> list[Effect]:
        """What of `effects`, and of those held before, may be carried out now: all until the store is asked for
        something, then nothing until many wait or `due` is called. Their order stays."""
        writes = sum(isinstance(effect, SaveSession | ClaimSession) for effect in effects)
        if not self._held and not writes and not any(isinstance(e, StoreEffect) for e in effects):
            return effects
        self._held += effects
        self._writes += writes
        return self.due(now_ms) if self._writes >= MOST_WRITES else []

    def due(self, now_ms: int) -> list[Effect]:
        """Have the store do its part of what is held; returns the rest, to be carried out now."""
        held, self._held, self._writes = self._held, [], 0
        wanted = [effect for effect in held if isinstance(effect, StoreEffect)]
        if wanted:
            self._keep(wanted, now_ms)
        return [effect for effect in held if not isinstance(effect, StoreEffect)]

    def _keep(self, wanted: Sequence[StoreEffect], now_ms: int) -> None:
        ended = {effect.session_id for effect in wanted if isinstance(effect, ForgetSession)}
        unforgotten = self._core.context.unforgotten - ended
        after: list[Callable[[], None]] = []
        try:
            with self._store.batch():
                for effect in wanted:
                    self._ask(effect, after, now_ms)
                for session_id in unforgotten:
                    self._store.forget(session_id)
        except StoreError as error:
            self._failed(error, wanted, now_ms)
            return
        if not self._narrator.durable:
            self._narrator.durable = True
            self._say("the store can be written again")
        self._core.context.unforgotten.difference_update(unforgotten | ended)
        for follow in after:
            follow()

    def _ask(self, effect: StoreEffect, after: list[Callable[[], None]], now_ms: int) -> None:
        """`after`: what follows once the batch is durable."""
        match effect:
            case SaveSession(record, timestamp_us):
                self._store.save(record, timestamp_us)
            case ClaimSession(record, version, owner, then):
                claimed = self._store.claim(record, version, owner)
                after.append(lambda: then(bool(claimed), now_ms))
            case ForgetSession(session_id):
                self._store.forget(session_id)
            case ForgetOthers(client_public, session_id):
                for other in self._store.forget_others(client_public, session_id):
                    after.append(partial(self._released, other, session_id))
            case _:
                assert_never(effect)

    def _released(self, record: SessionRecord, by: bytes) -> None:
        self._core.context.counters["superseded"] += 1
        self._narrator.released(record, Reason.SUPERSEDED, by)

    def _failed(self, error: StoreError, wanted: Sequence[StoreEffect], now_ms: int) -> None:
        """None of it is kept. It is said once for as long as it lasts.

        What was to be forgotten is in `unforgotten`; of a client's earlier sessions, the one that lives here bars
        those from coming back.
        """
        if self._narrator.durable:
            self._say(str(error))
        self._narrator.durable = False
        for effect in wanted:
            if isinstance(effect, SaveSession):
                self._core.not_durable(effect.record.session_id, now_ms)
            elif isinstance(effect, ClaimSession):
                effect.then(None, now_ms)
            else:
                self._core.context.counters["store_errors"] += 1
