"""What one batch asks of etcd, as one transaction.

Each session is one part of it with a comparison of its own, so that a claim that is lost, or a save by a node that has
lost its session, changes nothing and takes nothing else down. All comparisons see what was before the batch, and etcd
takes a key once in a transaction: of what is asked for one session in one batch, the last word is what goes there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from jvpn.session.pool import InnerPool
from jvpn.session.record import SessionRecord
from jvpn.session.version import MAX_VERSION, split_version
from jvpn.store.base import Birth, is_anothers, with_addresses
from jvpn.store.etcd_addresses import held_by, used_again
from jvpn.store.etcd_keys import (
    Json,
    Keys,
    absent,
    delete,
    end_of_epoch,
    number,
    owned_by,
    owner_value,
    put,
    value_above,
    value_below,
    when,
)
from jvpn.store.etcd_words import Answer, Wish, Word
from jvpn.store.sealing import AeadOf, row_of

#: Pools by client → addresses that clients have from now on, by version; nothing of clients for whom there are none.
Lease = Callable[[Mapping[bytes, InnerPool]], Mapping[bytes, Mapping[int, int]]]


class Batch:
    """`save`, `claim`, `forget`, `raise_timestamp`, `forget_timestamp`, then `operations` and `settle`."""

    def __init__(self, keys: Keys, aead_of: AeadOf) -> None:
        self._keys = keys
        self._aead_of = aead_of
        self._sessions: dict[bytes, Word] = {}
        #: By client: the timestamp, None to forget it; and whether it was forgotten in this batch.
        self._timestamps: dict[bytes, tuple[int | None, bool]] = {}
        self._clients: dict[bytes, bytes] = {}
        #: What owners are left word of, by key.
        self._nudges: dict[tuple[str, bytes], bytes | None] = {}
        #: Sessions that were saved for one owner after the batch had claimed them for another.
        self._overtaken: list[bytes] = []

    def save(self, record: SessionRecord, timestamp_us: int) -> None:
        self._clients[record.session_id] = record.client_public
        present = self._sessions.get(record.session_id)
        if present is None:
            self._sessions[record.session_id] = Word(record, update=not timestamp_us)
        elif present.record is not None and is_anothers(present.record, record):
            self._overtaken.append(record.session_id)
        else:
            present.update = present.update and not timestamp_us
            present.guarded = present.guarded and present.record is not None
            present.record = record
            present.saved_after = present.seen is not None
        if timestamp_us:
            self._raise(record.client_public, timestamp_us)

    def _raise(self, client_public: bytes, timestamp_us: int) -> None:
        newest, forgotten = self._timestamps.get(client_public, (0, False))
        self._timestamps[client_public] = (max(timestamp_us, newest or 0), forgotten)

    def bear(self, record: SessionRecord, timestamp_us: int, pool: InnerPool) -> Birth:
        """Of a session that this batch has not yet heard of. Its addresses come by `give` before `operations`."""
        answer = Birth()
        self._clients[record.session_id] = record.client_public
        birth = Wish(record.client_public, timestamp_us, pool, answer)
        self._sessions[record.session_id] = Word(record, birth=birth)
        return answer

    def give(self, lease: Lease) -> None:
        """Ask for the addresses of all that are born; those for which there are none are not."""
        births = [(i, s, s.birth) for i, s in self._sessions.items() if s.birth is not None]
        if not births:
            return
        leased = lease({birth.client_public: birth.pool for _i, _session, birth in births})
        holders = {place: client for client, held in leased.items() for place in held.items()}
        for session_id, session, birth in births:
            birth.held = leased.get(birth.client_public, {})
            # Another node may have taken it meanwhile, and may have lost it to the next one here.
            held = all(holders[place] == birth.client_public for place in birth.held.items())
            if not birth.held or not held:
                birth.answer.settle(None)
                del self._sessions[session_id]
                continue
            if session.record is not None:
                session.record = with_addresses(session.record, birth.held)
            self._raise(birth.client_public, birth.timestamp_us)

    def forget_timestamp(self, client_public: bytes) -> None:
        self._timestamps[client_public] = (None, True)

    def forget(self, session_id: bytes, version: int = MAX_VERSION) -> None:
        present = self._sessions.get(session_id)
        if present is None:
            self._sessions[session_id] = Word(None, ended_at=version)
        else:
            present.record, present.ended_at = None, version

    def claim(
        self, record: SessionRecord, seen_version: int, seen_owner: str, *, owner_gone: bool = False
    ) -> Answer:
        """What this batch has written of the session is seen; after a claim of it that is not what this one has seen,
        the answer is no, although that one may be lost and this one would not."""
        answer, seen = Answer(), (seen_version, seen_owner)
        given = record.epoch == split_version(seen_version).epoch and record.owner_node != seen_owner
        self._clients[record.session_id] = record.client_public
        present = self._sessions.get(record.session_id)
        if present is None:
            taken = Word(record, seen=seen, answers=[answer], owner_gone=owner_gone, given=given)
            self._sessions[record.session_id] = taken
        elif present.record is not None and not present.saved_after and present.written == seen:
            present.record, present.given = record, given
            present.answers.append(answer)
        else:
            answer.granted = False
        return answer

    def ask_owner(self, session_id: bytes, owner: str, asker: str, attempt: int) -> None:
        self._nudges[owner, session_id] = b"%d %s" % (attempt, asker.encode())

    def was_asked(self, session_id: bytes, owner: str) -> None:
        self._nudges[owner, session_id] = None

    def of_client(self, client_public: bytes) -> dict[bytes, SessionRecord]:
        """Sessions of a client that this batch writes."""
        written = ((session_id, session.record) for session_id, session in self._sessions.items())
        return {i: record for i, record in written if record and record.client_public == client_public}

    def forgets(self, session_id: bytes) -> bool:
        present = self._sessions.get(session_id)
        return present is not None and present.record is None

    def forgotten_of_unknown_clients(self) -> list[bytes]:
        return [
            i for i, session in self._sessions.items() if session.record is None and i not in self._clients
        ]

    def client_is(self, session_id: bytes, client_public: bytes) -> None:
        self._clients[session_id] = client_public

    def operations(self) -> list[Json]:
        last_births = {s.birth.client_public: i for i, s in self._sessions.items() if s.birth is not None}
        sessions = [
            self._session(i, session)
            if session.birth is None
            else self._born(i, session, session.birth, last_births[session.birth.client_public] == i)
            for i, session in self._sessions.items()
        ]
        timestamps = [self._timestamp(c, *wanted) for c, wanted in self._timestamps.items()]
        return [*sessions, *timestamps, *self._words()]

    def _words(self) -> Iterator[Json]:
        """What owners are left word of, and have heard of; claims see to theirs themselves."""
        for (owner, session_id), value in self._nudges.items():
            claimed = self._sessions.get(session_id)
            if claimed is None or claimed.seen is None:
                key = self._keys.nudge(owner, session_id)
                yield delete(key) if value is None else put(key, value)

    def settle(self, answers: Sequence[Json]) -> Iterator[bytes]:
        """What etcd says to `operations`: claims know now, and ids come of sessions that others have taken over or
        ended, whose save changed nothing."""
        for (session_id, session), answer in zip(self._sessions.items(), answers, strict=False):
            first = bool(answer["response_txn"].get("succeeded", False))
            if session.birth is not None:
                session.birth.answer.settle(session.record if first else None)
            granted = first
            if session.only_saved and session.guarded and not session.update:
                granted = first and not _taken_over(answer)
            for claim in session.answers:
                claim.granted = granted
            if session.birth is not None:
                continue
            late = session.only_saved and not granted
            if session.saved_after and not first and session.record is not None:
                late = _taken_over(answer)
            if late:
                yield session_id
        yield from self._overtaken

    def _born(self, session_id: bytes, session: Word, birth: Wish, last: bool) -> Json:
        """`last`: of this client's births in this batch. A key is written once in a transaction."""
        keys, client = self._keys, birth.client_public
        wanted = self._gone(session_id) if session.record is None else self._kept(session.record)
        again = used_again(keys, client, birth.held) if last else []
        return when(held_by(keys, client, birth.held), [*wanted, *again])

    def _session(self, session_id: bytes, session: Word) -> Json:
        if session.seen is not None:
            return self._claimed(session_id, session, session.seen)
        if session.record is not None:
            return self._saved(session_id, session, session.record)
        gone = self._gone(session_id)
        return (
            self._unless_taken_over(session_id, session.ended_at, gone) if session.guarded else when((), gone)
        )

    def _claimed(self, session_id: bytes, session: Word, seen: tuple[int, str]) -> Json:
        keys, record = self._keys, session.record
        last = self._gone(session_id) if record is None else self._kept(record)
        # Whoever was asked for it need not answer any more.
        done = [*last, delete(keys.nudge(seen[1], session_id))]
        otherwise: Sequence[Json] = last if record is None else ()
        if record is not None:
            done.append(self._mark(session_id, record, session.given))
            if session.saved_after:
                otherwise = [self._unless_taken_over(session_id, record.state_version, last)]
        compared = owned_by(keys.owner(session_id), *seen)
        if session.owner_gone:
            compared.append(absent(keys.node(seen[1])))
        return when(compared, done, otherwise)

    def _saved(self, session_id: bytes, session: Word, record: SessionRecord) -> Json:
        """What was given to another node waits for a claim: who had it before has no word there."""
        kept, version = self._kept(record), record.state_version
        if not session.guarded:
            return when((), [*kept, self._mark(session_id, record, session.given)])
        if session.given:
            kept.append(self._mark(session_id, record, given=True))
        still_ours = absent(self._keys.given(session_id))
        if session.update:
            return when([value_below(self._keys.owner(session_id), end_of_epoch(version)), still_ours], kept)
        return when([still_ours], [self._unless_taken_over(session_id, version, kept)])

    def _mark(self, session_id: bytes, record: SessionRecord, given: bool) -> Json:
        """Whether the session was given to its owner by the one before, who is not to write over that."""
        key = self._keys.given(session_id)
        return put(key, record.owner_node.encode()) if given else delete(key)

    def _unless_taken_over(self, session_id: bytes, version: int, operations: Sequence[Json]) -> Json:
        """A node that was away must not write over its successor, whose epoch is higher."""
        owner = self._keys.owner(session_id)
        return when([value_above(owner, end_of_epoch(version))], (), operations)

    def _kept(self, record: SessionRecord) -> list[Json]:
        keys, session_id = self._keys, record.session_id
        owner = owner_value(record.state_version, record.owner_node, record.inner_prefixes)
        return [
            put(keys.session(session_id), msgspec.msgpack.encode(row_of(record, self._aead_of))),
            put(keys.owner(session_id), owner),
            put(keys.session_of(record.client_public, session_id), b""),
        ]

    def _gone(self, session_id: bytes) -> list[Json]:
        keys = self._keys
        gone = [
            delete(keys.session(session_id)),
            delete(keys.owner(session_id)),
            delete(keys.given(session_id)),
        ]
        client_public = self._clients.get(session_id)
        if client_public is not None:
            gone.append(delete(keys.session_of(client_public, session_id)))
        return gone

    def _timestamp(self, client_public: bytes, timestamp_us: int | None, forgotten: bool) -> Json:
        key = self._keys.timestamp(client_public)
        if timestamp_us is None:
            return delete(key)
        kept = put(key, number(timestamp_us))
        return when((), [kept]) if forgotten else when([value_above(key, number(timestamp_us))], (), [kept])


def _taken_over(answer: Json) -> bool:
    """What etcd says to `_unless_taken_over` in a transaction of one session."""
    (nested,) = answer["response_txn"]["responses"]
    return bool(nested["response_txn"].get("succeeded", False))
