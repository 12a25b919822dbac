"""Where the supervisor's loop leaves what it wants of the store, and fetches the answer: one batch after another.

A disk may take seconds and a fleet's store may have no majority; sessions that run are not to wait for either. So the
store lives in a thread of its own, and the loop is woken when it has answered.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import NamedTuple, Protocol, assert_never

from jvpn.session.record import SessionRecord
from jvpn.store.base import Birth, Claimed, OwnershipStore, StoreError
from jvpn.supervisor.effects import (
    AskOwner,
    BearSession,
    ClaimSession,
    ForgetExpired,
    ForgetOthers,
    ForgetSession,
    LoadExpired,
    SaveSession,
    StoreRead,
    StoreWrite,
    WasAsked,
)

#: How long `close` waits for the batch that is under way.
LAST_BATCH_S = 3.0
#: How often a store that nobody asks for anything is looked after.
LOOK_S = 0.5

#: What was read, or that it could not be.
Loaded = SessionRecord | list[SessionRecord] | StoreError | None
#: Of a claim: whether it was granted. Of a birth with inner addresses: the record. Of ForgetOthers: what was forgotten.
Written = bool | SessionRecord | list[SessionRecord] | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Reads, then writes as one transaction. `ended`: sessions to be forgotten besides, with their last versions."""

    loads: Sequence[StoreRead] = ()
    writes: Sequence[StoreWrite] = ()
    ended: Sequence[ForgetSession] = ()


class Answers(NamedTuple):
    """In the order of the batch's loads and writes. `overtaken`: ids of sessions that are another node's by now."""

    loaded: Sequence[Loaded]
    written: Sequence[Written] | StoreError
    overtaken: Sequence[bytes]


class StoreDesk(Protocol):
    def ask(self, batch: Batch) -> None:
        """Not before the last one is answered."""

    def answers(self) -> Answers | None:
        """What the store says to the last batch, once; None while it has not."""

    def at_once(self, do: Callable[[OwnershipStore], None], timeout_s: float) -> None:
        """For an operator, who waits: have the store do something and wait for it.

        Raises StoreError: what `do` raised, or that the store is busy for so long; `do` may still happen then.
        """


def serve(store: OwnershipStore, batch: Batch) -> Answers:
    """Have the store do all that a batch asks for."""
    loaded = [_load(store, wanted) for wanted in batch.loads]
    if not batch.writes and not batch.ended:
        return Answers(loaded, [], [])
    try:
        with store.batch():
            said = [_write(store, wanted) for wanted in batch.writes]
            for ended in batch.ended:
                store.forget(ended.session_id, ended.version)
        written = [_word(one) for one in said]
    except StoreError as error:
        return Answers(loaded, error, [])
    return Answers(loaded, written, store.overtaken())


def _word(said: "Claimed | Birth | list[SessionRecord] | None") -> Written:
    """Whether a claim was granted, and what was born, is known at the batch's end."""
    if isinstance(said, Birth):
        return said.record
    return said if said is None or isinstance(said, list) else bool(said)


def _load(store: OwnershipStore, wanted: StoreRead) -> Loaded:
    try:
        if isinstance(wanted, LoadExpired):
            return store.expired(wanted.before_wall_ms)
        return store.load(wanted.session_id)
    except StoreError as error:
        return error


def _write(store: OwnershipStore, wanted: StoreWrite) -> Claimed | Birth | list[SessionRecord] | None:
    match wanted:
        case SaveSession(record, timestamp_us):
            store.save(record, timestamp_us)
        case BearSession(record, timestamp_us, pool):
            return store.bear(record, timestamp_us, pool)
        case ClaimSession(record, version, owner, owner_gone):
            return store.claim(record, version, owner, owner_gone=owner_gone)
        case ForgetSession(session_id, version):
            store.forget(session_id, version)
        case ForgetOthers(client_public, session_id):
            return store.forget_others(client_public, session_id)
        case ForgetExpired(over):
            forget_expired(store, over)
        case AskOwner(session_id, owner, asker, attempt):
            store.ask_owner(session_id, owner, asker, attempt)
        case WasAsked(session_id, owner):
            store.was_asked(session_id, owner)
        case _:
            assert_never(wanted)
    return None


def forget_expired(store: OwnershipStore, over: Callable[[SessionRecord], bool]) -> None:
    for record in store.sessions():
        if over(record):
            store.forget(record.session_id, record.state_version)


class DirectDesk:
    """Serves at once, in the caller's thread: for stores that never make anybody wait, and for virtual time."""

    def __init__(self, store: OwnershipStore) -> None:
        self._store = store
        self._answers: Answers | None = None

    def ask(self, batch: Batch) -> None:
        self._answers = serve(self._store, batch)

    def answers(self) -> Answers | None:
        answers, self._answers = self._answers, None
        return answers

    def at_once(self, do: Callable[[OwnershipStore], None], timeout_s: float) -> None:
        do(self._store)


class ThreadDesk:
    """Serves in a thread, which from `start` on alone uses the store. `fileno()` is readable when it has answered, or
    found something: `found` then says what. A batch that is not where the next start finds it has failed."""

    def __init__(self, store: OwnershipStore) -> None:
        self._store = store
        self._wanted: SimpleQueue[Batch | Callable[[], None] | None] = SimpleQueue()
        self._given: SimpleQueue[Answers] = SimpleQueue()
        self._found: SimpleQueue[str | StoreError] = SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def fileno(self) -> int:
        return self._wake

    def _run(self) -> None:
        while True:
            try:
                wanted = self._wanted.get(timeout=LOOK_S)
            except Empty:
                self._look()
                continue
            if wanted is None:
                return
            if isinstance(wanted, Batch):
                answers = serve(self._store, wanted)
                lost = self._look()
                self._given.put(answers if lost is None else answers._replace(written=lost))
                os.eventfd_write(self._wake, 1)
            else:
                wanted()

    def _look(self) -> StoreError | None:
        """Why what is kept is lost at the next start, if it is."""
        lost: StoreError | None = None
        try:
            found: str | StoreError = self._store.look()
        except StoreError as error:
            found = lost = error
        if found:
            self._found.put(found)
            os.eventfd_write(self._wake, 1)
        return lost

    def found(self) -> Iterator[str | StoreError]:
        """What has become of the store by itself since this was called last: mended, or not."""
        with suppress(Empty):
            while True:
                yield self._found.get_nowait()

    def ask(self, batch: Batch) -> None:
        self._wanted.put(batch)

    def answers(self) -> Answers | None:
        # In this order: an answer that comes in between wakes the loop again.
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        try:
            return self._given.get_nowait()
        except Empty:
            return None

    def at_once(self, do: Callable[[OwnershipStore], None], timeout_s: float) -> None:
        done, errors = threading.Event(), list[StoreError]()

        def run() -> None:
            try:
                do(self._store)
            except StoreError as error:
                errors.append(error)
            done.set()

        self._wanted.put(run)
        if not done.wait(timeout_s):
            raise StoreError(f"the session store has not answered for {timeout_s:g} s")
        if errors:
            raise errors[0]

    def close(self) -> None:
        """What was asked for is finished first, unless that takes too long: the thread then ends with the process."""
        if self._thread.ident is not None:
            self._wanted.put(None)
            self._thread.join(LAST_BATCH_S)
        if not self._thread.is_alive():
            with suppress(StoreError):
                self._store.look()
            os.close(self._wake)
            self._store.close()
