"""An ownership store in memory, for tests and the simulator: the same contract, durable as long as the object lives."""

from collections.abc import Iterator
from contextlib import contextmanager

from jvpn.session.pool import InnerPool
from jvpn.session.record import SessionRecord
from jvpn.session.version import MAX_VERSION, last_of_epoch
from jvpn.store.base import Birth, StoreError, is_anothers, with_addresses
from jvpn.store.memory_addresses import MemoryAddresses


class MemoryStore:
    """`broken` makes every call fail, as a full disk would."""

    def __init__(self, fleet_key: bytes = bytes(32)) -> None:
        self.fleet_key = fleet_key
        self.broken = False
        self._records: dict[bytes, SessionRecord] = {}
        self._timestamps_us: dict[bytes, int] = {}
        self._overtaken: list[bytes] = []
        self._addresses = MemoryAddresses(self._has_session)
        #: Nodes whose lease goes on.
        self.alive: set[str] = set()
        #: What owners were left word of: session, owner, asker, attempt.
        self.asked: list[tuple[bytes, str, str, int]] = []

    def _has_session(self, client_public: bytes) -> bool:
        return any(record.client_public == client_public for record in self._records.values())

    def _check(self) -> None:
        if self.broken:
            raise StoreError("the store in memory is told to fail")

    @contextmanager
    def batch(self) -> Iterator[None]:
        self._check()
        before = dict(self._records), dict(self._timestamps_us)
        addresses = self._addresses.copy()
        try:
            yield
        except StoreError:
            self._records, self._timestamps_us = before
            self._addresses.put_back(addresses)
            raise

    def save(self, record: SessionRecord, timestamp_us: int) -> None:
        self._check()
        present = self._records.get(record.session_id)
        if present is not None and is_anothers(present, record):
            self._overtaken.append(record.session_id)
        else:
            self._records[record.session_id] = record
        newest = self._timestamps_us.get(record.client_public, 0)
        self._timestamps_us[record.client_public] = max(timestamp_us, newest)

    def bear(self, record: SessionRecord, timestamp_us: int, pool: InnerPool) -> Birth:
        self._check()
        birth, client = Birth(), record.client_public
        given = pool.give(client, self._addresses.held(client), self._addresses)
        if given is None:
            birth.settle(None)
            return birth
        for one in given:
            self._addresses.keep(client, one)
        born = with_addresses(record, {one.version: one.address for one in given})
        self.save(born, timestamp_us)
        birth.settle(born)
        return birth

    def inner_addresses(self) -> dict[bytes, tuple[str, ...]]:
        self._check()
        return self._addresses.all()

    def release_addresses(self, client_public: bytes) -> bool:
        self._check()
        return self._addresses.release(client_public)

    def load(self, session_id: bytes) -> SessionRecord | None:
        self._check()
        return self._records.get(session_id)

    def claim(
        self, record: SessionRecord, seen_version: int, seen_owner: str, *, owner_gone: bool = False
    ) -> bool:
        self._check()
        present = self._records.get(record.session_id)
        if present is None or (present.state_version, present.owner_node) != (seen_version, seen_owner):
            return False
        if owner_gone and seen_owner in self.alive:
            return False
        self._records[record.session_id] = record
        return True

    def overtaken(self) -> list[bytes]:
        overtaken, self._overtaken = self._overtaken, []
        return overtaken

    def ask_owner(self, session_id: bytes, owner: str, asker: str, attempt: int) -> None:
        self._check()
        self.asked.append((session_id, owner, asker, attempt))

    def was_asked(self, session_id: bytes, owner: str) -> None:
        self._check()
        self.asked = [word for word in self.asked if word[:2] != (session_id, owner)]

    def forget(self, session_id: bytes, version: int = MAX_VERSION) -> None:
        self._check()
        present = self._records.get(session_id)
        if present is not None and present.state_version <= last_of_epoch(version):
            del self._records[session_id]

    def forget_others(self, client_public: bytes, session_id: bytes) -> list[SessionRecord]:
        self._check()
        kept = self._records.values()
        others = [r for r in kept if r.client_public == client_public and r.session_id != session_id]
        for other in others:
            del self._records[other.session_id]
        return others

    def forget_timestamp(self, client_public: bytes) -> None:
        self._check()
        self._timestamps_us.pop(client_public, None)

    def sessions(self) -> list[SessionRecord]:
        self._check()
        return list(self._records.values())

    def expired(self, before_wall_ms: int) -> list[SessionRecord]:
        """All at once: there is nothing to wait for."""
        self._check()
        return [record for record in self._records.values() if record.expires_wall_ms < before_wall_ms]

    def timestamps_us(self) -> dict[bytes, int]:
        self._check()
        return dict(self._timestamps_us)

    def look(self) -> str:
        return ""

    def close(self) -> None:
        return
