"""What the gateway has its store keep, and what becomes of it while the store cannot.

All that comes while the store is busy is its next batch: a disk or a majority is waited for once, however many sessions
that concerns. Nothing but a session's own birth, claim or rekey waits for it.

Without the store there is no new ownership: a session that is being born ends. A running one goes on; its events are
marked `non_durable` until the store has kept something again, and what it missed is brought to it then. A store that
takes longer than STORE_PATIENCE_MS counts as one that cannot: whatever it makes of that batch in the end, nobody
counts on it.
"""

from collections.abc import Callable, Iterable

from jvpn.session.machine import Reason
from jvpn.session.record import SessionRecord
from jvpn.store.base import StoreError
from jvpn.supervisor.context import STORE_RETRY_MS
from jvpn.supervisor.core import GatewayCore
from jvpn.supervisor.effects import (
    FOR_STORE,
    BearSession,
    ClaimSession,
    Effect,
    ForgetOthers,
    ForgetSession,
    LoadExpired,
    SaveSession,
    StoreRead,
    StoreWrite,
)
from jvpn.supervisor.store_desk import Answers, Batch, Loaded, StoreDesk, Written

Carry = Callable[[Iterable[Effect]], None]

#: Reads, writes and ended sessions in one batch, of each so many: etcd takes 1.5 MiB at once.
MOST_AT_ONCE = 256
#: A batch that has not been answered for so long has failed.
STORE_PATIENCE_MS = 1_000


class Keeping:
    """`carry_out` after each step of a turn, `settle` at its end and when the desk has an answer."""

    def __init__(self, desk: StoreDesk, core: GatewayCore, say: Callable[[str], None]) -> None:
        self._desk = desk
        self._core = core
        self._say = say
        self._narrator = core.context.narrator
        self._loads: list[StoreRead] = []
        self._writes: list[StoreWrite] = []
        self._asked: Batch | None = None
        self._patient_until_ms = 0
        #: What is under way counts as failed.
        self._late = False
        self._retry_ms = 0
        #: Whether the store is known to be lost at the next start.
        self._lost = False

    def carry_out(self, do: Carry) -> None:
        """The core's effects, but for what is the store's: that waits for `settle`."""
        effects = self._core.effects()
        for effect in effects:
            if type(effect) in FOR_STORE:
                do(self._without_store(effects))
                return
        do(effects)

    def _without_store(self, effects: Iterable[Effect]) -> list[Effect]:
        others: list[Effect] = []
        for effect in effects:
            if isinstance(effect, StoreRead):
                self._loads.append(effect)
            elif isinstance(effect, StoreWrite):
                self._writes.append(effect)
            else:
                others.append(effect)
        return others

    def settle(self, do: Carry, now_ms: int) -> None:
        """All that the turn has brought, with what the store's answers bring: but for what waits for the store."""
        self.carry_out(do)
        while self._step(now_ms):
            self.carry_out(do)

    def get_timer(self) -> int | None:
        """When `settle` is due although nothing has happened, ms."""
        if self._asked is not None:
            return None if self._late else self._patient_until_ms
        return self._retry_ms if self._core.context.unforgotten else None

    def _step(self, now_ms: int) -> bool:
        """Whether there was something to do."""
        answers = self._desk.answers()
        if answers is not None:
            self._answered(answers, now_ms)
            return True
        if self._asked is not None:
            return self._lose_patience(now_ms)
        batch = self._next(now_ms)
        if batch is None:
            return False
        self._asked, self._late = batch, False
        self._patient_until_ms = now_ms + STORE_PATIENCE_MS
        self._desk.ask(batch)
        return True

    def _next(self, now_ms: int) -> Batch | None:
        unforgotten = self._core.context.unforgotten
        again = unforgotten and now_ms >= self._retry_ms
        if not self._loads and not self._writes and not again:
            return None
        loads, self._loads = self._loads[:MOST_AT_ONCE], self._loads[MOST_AT_ONCE:]
        writes, self._writes = self._writes[:MOST_AT_ONCE], self._writes[MOST_AT_ONCE:]
        ended: list[ForgetSession] = []
        if again:
            named = {write.session_id for write in writes if isinstance(write, ForgetSession)}
            others = [ForgetSession(i, version) for i, version in unforgotten.items() if i not in named]
            ended = others[:MOST_AT_ONCE]
            self._retry_ms = now_ms + STORE_RETRY_MS
        return Batch(loads, writes, ended)

    # Answers

    def _answered(self, answers: Answers, now_ms: int) -> None:
        asked, late = self._asked, self._late
        self._asked, self._late = None, False
        assert asked is not None
        if not late:
            for load, found in zip(asked.loads, answers.loaded, strict=True):
                _read(load, found, now_ms)
        if isinstance(answers.written, StoreError):
            if not late:
                self._failed(answers.written, asked.writes, now_ms)
            return
        if any(isinstance(write, SaveSession | BearSession | ClaimSession) for write in asked.writes):
            # A full disk still forgets what is not there.
            self._works_again()
        for effect in (*asked.ended, *asked.writes):
            if isinstance(effect, ForgetSession):
                self._core.context.unforgotten.pop(effect.session_id, None)
        if not late:
            for write, said in zip(asked.writes, answers.written, strict=True):
                self._kept(write, said, now_ms)
        self._core.others.doubt(answers.overtaken)

    def _works_again(self) -> None:
        if not self._narrator.durable:
            self._narrator.durable = True
            self._say("the store can be written again")

    def _kept(self, write: StoreWrite, said: Written, now_ms: int) -> None:
        if isinstance(write, SaveSession):
            write.then(True, now_ms)
        elif isinstance(write, BearSession):
            write.then(said if isinstance(said, SessionRecord) else None, now_ms)
        elif isinstance(write, ClaimSession):
            write.then(said is True, now_ms)
        elif isinstance(write, ForgetOthers) and isinstance(said, list):
            for other in said:
                self._released(other, write.session_id)

    def _released(self, record: SessionRecord, by: bytes) -> None:
        self._core.context.counters["superseded"] += 1
        self._narrator.released(record, Reason.SUPERSEDED, by)

    def found(self, what: str | StoreError, now_ms: int) -> None:
        """Somebody has touched the store: it was put right again, or what it keeps is lost at the next start."""
        self._core.context.counters["store_lost"] += not self._lost
        self._lost = isinstance(what, StoreError)
        if isinstance(what, StoreError):
            self._failed(what, (), now_ms)
            return
        self._say(what)
        self._works_again()

    # Failures

    def _lose_patience(self, now_ms: int) -> bool:
        """Whether anything has failed by that."""
        assert self._asked is not None
        if not self._late and now_ms < self._patient_until_ms:
            return False
        error = StoreError(f"the session store has not answered for {STORE_PATIENCE_MS / 1000:g} s")
        loads, writes = self._loads, self._writes
        if not self._late:
            self._core.context.counters["store_late"] += 1
            loads, writes = [*self._asked.loads, *loads], [*self._asked.writes, *writes]
        self._late, self._loads, self._writes = True, [], []
        for load in loads:
            load.then(error, now_ms)
        if writes:
            self._failed(error, writes, now_ms)
        return bool(loads or writes)

    def _failed(self, error: StoreError, writes: Iterable[StoreWrite], now_ms: int) -> None:
        """None of it is kept. It is said once for as long as it lasts.

        What was to be forgotten is in `unforgotten`; of a client's earlier sessions, the one that lives here bars
        those from coming back.
        """
        if self._narrator.durable:
            self._say(str(error))
        self._narrator.durable = False
        self._retry_ms = now_ms + STORE_RETRY_MS
        for write in writes:
            self._core.context.counters["store_errors"] += 1
            if isinstance(write, SaveSession):
                write.then(False, now_ms)
            elif isinstance(write, BearSession):
                write.then(error, now_ms)
            elif isinstance(write, ClaimSession):
                write.then(None, now_ms)


def _read(load: StoreRead, found: Loaded, now_ms: int) -> None:
    """Tell who asked what was read; each sort of reading has its own sort of answer."""
    if isinstance(load, LoadExpired):
        assert isinstance(found, list | StoreError)
        load.then(found, now_ms)
    else:
        assert not isinstance(found, list)
        load.then(found, now_ms)
