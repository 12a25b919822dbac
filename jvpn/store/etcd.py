"""The ownership store of a fleet: etcd 3.4 or newer, which all its nodes share with one key file.

What is read is linearizable: etcd asks a majority. What is written is one transaction, of a batch or of one method.
Without a majority everything is a StoreError within the access's timeout.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from jvpn.session.pool import InnerPool
from jvpn.session.record import SessionRecord
from jvpn.session.version import MAX_VERSION
from jvpn.store import etcd_keys as ops
from jvpn.store import sealing
from jvpn.store.base import Birth, Claimed, StoreError
from jvpn.store.etcd_addresses import EtcdAddresses
from jvpn.store.etcd_batch import Batch
from jvpn.store.etcd_client import EtcdAccess, EtcdClient
from jvpn.store.etcd_fleet_key import FleetKey
from jvpn.store.etcd_keys import Json, Keys

#: Keys in one answer when all sessions are read.
_PAGE = 512


class EtcdStore:
    """`key_file`: 32 bytes, mode 0600, the same on every node; never made here.

    Raises StoreError: no such file, no majority, or the fleet's records are under another key. One thread.
    """

    def __init__(self, access: EtcdAccess, key_file: Path, prefix: str = "/jvpn") -> None:
        try:
            self._keys = Keys(prefix)
            key = sealing.shared_key(key_file)
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot use etcd as the session store: {error}") from error
        self._aead_of = sealing.key_for_each(key)
        self.fleet_key = sealing.fleet_key(key)
        self._client = EtcdClient(access)
        self._addresses = EtcdAddresses(self._client, self._keys, self._read, self._all)
        self._batch: Batch | None = None
        self._overtaken: list[bytes] = []
        #: What `look` is to say.
        self._found = ""
        #: The key that was looked at last for `expired`.
        self._looked_to = ""
        self.mark = FleetKey(self._keys.fleet_check, key, key_file)
        self.mark.see_to(self._client)

    @contextmanager
    def batch(self) -> Iterator[None]:
        with self._writing():
            yield

    @contextmanager
    def _writing(self) -> Iterator[Batch]:
        """The open batch, or one of its own, which is kept at the end."""
        if self._batch is not None:
            yield self._batch
            return
        self._batch = Batch(self._keys, self._aead_of)
        try:
            yield self._batch
            self._keep(self._batch)
        finally:
            self._batch = None

    def _keep(self, batch: Batch) -> None:
        unknown = batch.forgotten_of_unknown_clients()
        for session_id, kvs in zip(unknown, self._read_sessions(unknown), strict=True):
            for kv in kvs:
                batch.client_is(session_id, self._row(session_id, kv)[1])
        batch.give(self._addresses.lease)
        operations = batch.operations()
        if not operations:
            return
        reply = self._client.write("/v3/kv/txn", self.mark.guarded(operations))
        if not reply.get("succeeded", False):
            self._found = self.mark.was_gone if self.mark.see_to(self._client) else self._found
            reply = self._client.write("/v3/kv/txn", self.mark.guarded(operations))
        if not reply.get("succeeded", False):
            raise StoreError(f"somebody takes {self.mark.name} out of etcd again and again: nothing was kept")
        self._overtaken += batch.settle(list(ops.answers_of(reply, len(operations))))

    def overtaken(self) -> list[bytes]:
        overtaken, self._overtaken = self._overtaken, []
        return overtaken

    def save(self, record: SessionRecord, timestamp_us: int) -> None:
        with self._writing() as batch:
            batch.save(record, timestamp_us)

    def bear(self, record: SessionRecord, timestamp_us: int, pool: InnerPool) -> Birth:
        """Addresses stay with the client also where the session's batch fails."""
        with self._writing() as batch:
            answer = batch.bear(record, timestamp_us, pool)
        return answer

    def inner_addresses(self) -> dict[bytes, tuple[str, ...]]:
        return self._addresses.all()

    def release_addresses(self, client_public: bytes) -> bool:
        return self._addresses.release(client_public)

    def claim(
        self, record: SessionRecord, seen_version: int, seen_owner: str, *, owner_gone: bool = False
    ) -> Claimed:
        with self._writing() as batch:
            answer = batch.claim(record, seen_version, seen_owner, owner_gone=owner_gone)
        return answer

    def forget(self, session_id: bytes, version: int = MAX_VERSION) -> None:
        with self._writing() as batch:
            batch.forget(session_id, version)

    def ask_owner(self, session_id: bytes, owner: str, asker: str, attempt: int) -> None:
        with self._writing() as batch:
            batch.ask_owner(session_id, owner, asker, attempt)

    def was_asked(self, session_id: bytes, owner: str) -> None:
        with self._writing() as batch:
            batch.was_asked(session_id, owner)

    def forget_timestamp(self, client_public: bytes) -> None:
        with self._writing() as batch:
            batch.forget_timestamp(client_public)

    def forget_others(self, client_public: bytes, session_id: bytes) -> list[SessionRecord]:
        with self._writing() as batch:
            written = batch.of_client(client_public)
            reply = self._client.read(
                "/v3/kv/range", {**ops.whole(self._keys.sessions_of(client_public)), "keys_only": True}
            )
            found = [ops.hex_tail(ops.data(kv["key"]).decode()) for kv in reply.get("kvs", [])]
            others = [i for i in found if i and i not in written and not batch.forgets(i) and i != session_id]
            released = [record for i, record in written.items() if i != session_id]
            for other, kvs in zip(others, self._read_sessions(others), strict=True):
                records = (self._record(other, kv) for kv in kvs)
                released += [record for record in records if record is not None]
            for other in [*others, *(record.session_id for record in released)]:
                batch.client_is(other, client_public)
                batch.forget(other)
        return released

    def load(self, session_id: bytes) -> SessionRecord | None:
        for kv in self._read([ops.get(self._keys.session(session_id))])[0]:
            record = self._record(session_id, kv)
            if record is None:
                raise StoreError(f"session {session_id.hex()} in etcd cannot be opened: it was tampered with")
            return record
        return None

    def sessions(self) -> list[SessionRecord]:
        records = []
        for kv in self._all(self._keys.sessions):
            session_id = ops.hex_tail(ops.data(kv["key"]).decode())
            record = None if session_id is None else self._record(session_id, kv)
            records += [] if record is None else [record]
        return records

    def expired(self, before_wall_ms: int) -> list[SessionRecord]:
        prefix = self._keys.sessions
        wanted = ops.rest(prefix, self._looked_to) if self._looked_to else ops.whole(prefix)
        reply = self._client.read("/v3/kv/range", {**wanted, "limit": str(sealing.LOOKED_AT)})
        kvs = reply.get("kvs", [])
        self._looked_to = ops.data(kvs[-1]["key"]).decode() if kvs and reply.get("more") else ""
        records = (self._expired(kv, before_wall_ms) for kv in kvs)
        return [record for record in records if record is not None]

    def _expired(self, kv: Json, before_wall_ms: int) -> SessionRecord | None:
        session_id = ops.hex_tail(ops.data(kv["key"]).decode())
        try:
            row = None if session_id is None else self._row(session_id, kv)
        except StoreError:
            return None
        if row is None or sealing.expires_wall_ms(row) >= before_wall_ms:
            return None
        return sealing.record_of(row, self._aead_of)

    def timestamps_us(self) -> dict[bytes, int]:
        timestamps_us = {}
        for kv in self._all(self._keys.clients):
            client, _, _ = ops.data(kv["key"]).decode().removeprefix(self._keys.clients).partition("/")
            try:
                timestamps_us[bytes.fromhex(client)] = int(ops.value_of(kv))
            except ValueError as error:
                raise StoreError(
                    f"the handshake timestamp of client {client} in etcd is no number"
                ) from error
        return timestamps_us

    def owner_alive(self, node_id: str) -> bool:
        """Whether the node's lease goes on (jvpn/store/etcd_lease.py)."""
        return bool(self._read([ops.get(self._keys.node(node_id))])[0])

    def look(self) -> str:
        """Members see to what they keep; the mark is seen to where something is kept."""
        found, self._found = self._found, ""
        return found

    def close(self) -> None:
        self._client.close()

    def _record(self, session_id: bytes, kv: Json) -> SessionRecord | None:
        try:
            return sealing.record_of(self._row(session_id, kv), self._aead_of)
        except StoreError:
            return None

    def _row(self, session_id: bytes, kv: Json) -> sealing.Row:
        """Raises StoreError for what is no row, or one of another session."""
        try:
            row: sealing.Row = msgspec.msgpack.decode(ops.value_of(kv), type=sealing.Row)
        except msgspec.MsgspecError as error:
            raise StoreError(f"session {session_id.hex()} in etcd is no record: {error}") from error
        if row[0] != session_id:
            raise StoreError(f"the record of session {session_id.hex()} in etcd is another session's")
        return row

    def _read_sessions(self, session_ids: list[bytes]) -> list[list[Json]]:
        return self._read([ops.get(self._keys.session(session_id)) for session_id in session_ids])

    def _read(self, reads: list[Json]) -> list[list[Json]]:
        """Key-values for each read, all of one moment."""
        if not reads:
            return []
        reply = self._client.read("/v3/kv/txn", ops.together(reads))
        return [answer["response_range"].get("kvs", []) for answer in ops.answers_of(reply, len(reads))]

    def _all(self, prefix: str) -> Iterator[Json]:
        """Everything under `prefix` as it is at one moment, a page at a time."""
        wanted, revision = ops.whole(prefix), "0"
        while True:
            reply = self._client.read("/v3/kv/range", {**wanted, "limit": str(_PAGE), "revision": revision})
            kvs = reply.get("kvs", [])
            yield from kvs
            if not kvs or not reply.get("more"):
                return
            revision = reply["header"]["revision"] if revision == "0" else revision
            wanted = ops.rest(prefix, ops.data(kvs[-1]["key"]).decode())
