"""The embedded ownership store: one SQLite file in WAL mode, session secrets sealed with a key file beside it."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jvpn.entropy import RandomPool
from jvpn.session.pool import InnerPool
from jvpn.session.record import SessionRecord
from jvpn.session.version import MAX_VERSION, first_of_epoch, last_of_epoch
from jvpn.store import sealing, sqlite_addresses
from jvpn.store.base import Birth, StoreError, with_addresses
from jvpn.store.sqlite_addresses import SqliteAddresses
from jvpn.store.sqlite_files import StoreFiles

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    session_id BLOB PRIMARY KEY, client_public BLOB NOT NULL, policy TEXT NOT NULL, owner_node TEXT NOT NULL,
    state TEXT NOT NULL, state_version INTEGER NOT NULL, sealed_secrets BLOB NOT NULL, inner_v4 TEXT, inner_v6 TEXT,
    created_wall_ms INTEGER NOT NULL, expires_wall_ms INTEGER NOT NULL, expires_boot_ms INTEGER NOT NULL,
    boot_id TEXT NOT NULL, stored_wall_ms INTEGER NOT NULL, last_bound_attempt INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS sessions_of_clients ON sessions (client_public);
CREATE TABLE IF NOT EXISTS timestamps (client_public BLOB PRIMARY KEY, timestamp_us INTEGER NOT NULL) STRICT;
"""
#: What changes of a session. Its client does not, and what is named here costs the indexes that it is in.
_CHANGING = (
    "policy", "owner_node", "state", "state_version", "sealed_secrets", "inner_v4", "inner_v6", "created_wall_ms",
    "expires_wall_ms", "expires_boot_ms", "boot_id", "stored_wall_ms", "last_bound_attempt",
)  # fmt: skip
#: Changes nothing of a session that is another owner's by now (`base.is_anothers`). The last parameters are the lowest
#: and the highest version of the record's epoch.
_KEEP = f"""
INSERT INTO sessions VALUES ({",".join("?" * 15)}) ON CONFLICT (session_id)
DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _CHANGING)}
WHERE sessions.state_version < ? OR (sessions.state_version <= ? AND sessions.owner_node = excluded.owner_node)
"""
#: The same for a session that is there, in half the time.
_CHANGE = f"""
UPDATE sessions SET {", ".join(f"{name} = ?" for name in _CHANGING)}
WHERE session_id = ? AND (state_version < ? OR (state_version <= ? AND owner_node = ?))
"""
#: The whole compare-and-swap: one statement, in which nothing but the row of that version and owner is changed.
_CLAIM = f"""
UPDATE sessions SET {", ".join(f"{name} = ?" for name in _CHANGING)}
WHERE session_id = ? AND state_version = ? AND owner_node = ?
"""
_KEEP_TIMESTAMP = """
INSERT INTO timestamps VALUES (?, ?) ON CONFLICT (client_public)
DO UPDATE SET timestamp_us = excluded.timestamp_us WHERE timestamps.timestamp_us < excluded.timestamp_us
"""
#: SQLite's integers are signed.
_LARGEST = 2**63 - 1
#: Between attempts to write the files anew: each copies all sessions.
_ANEW_EVERY_S = 1.0


def _last_number(version: int) -> int:
    return min(last_of_epoch(version), _LARGEST)


class SqliteStore:
    """Opens or creates `path` and `path`.key (mode 0600). Raises StoreError when it cannot. One thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            key = sealing.own_key(path.with_name(path.name + ".key"))
            self._aead_of = sealing.one_key(key)
            self._random_bytes = RandomPool().take
            self.fleet_key = sealing.fleet_key(key)
            self._files = StoreFiles(path, key)
            self._files.clear()
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._open(path)
            self._files.opened()
            #: When files that were lost may be written anew again, seconds of time.monotonic, and why they were not.
            self._again_s, self._why_lost = 0.0, ""
            self._batching = False
            self._overtaken: list[bytes] = []
            #: The row that was looked at last for `expired`.
            self._looked_to = 0
        except (OSError, sqlite3.Error, ValueError) as error:
            raise StoreError(f"cannot open the session store {path}: {error}") from error

    def _open(self, path: Path) -> None:
        self._at = path
        # It is there: one that SQLite made in its stead would be an empty one.
        there = f"{path.absolute().as_uri()}?mode=rw"
        self._database = sqlite3.connect(there, uri=True, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.executescript(_SCHEMA + sqlite_addresses.SCHEMA)
        self._addresses = SqliteAddresses(self._database)
        self._shut = False

    def look(self) -> str:
        lost = ""
        try:
            lost = self._files.lost()
            if not lost:
                return ""
            if time.monotonic() >= self._again_s:
                self._write_anew()
                return (
                    f"{lost} while this gateway ran: its session store was written anew, with all its sessions; stop a "
                    "gateway before its store is touched"
                )
        except (OSError, sqlite3.Error) as error:
            self._again_s, self._why_lost = time.monotonic() + _ANEW_EVERY_S, f"{lost}: {error}"
        raise StoreError(
            f"the session store is lost at the next start unless it can be written anew, which is tried each second: "
            f"{self._why_lost}"
        )

    def _write_anew(self) -> None:
        if self._shut:
            self._open(self._at)
        was_at, copy = self._at, self._files.copied(self._database)
        self._database.close()
        self._shut = True
        try:
            self._files.put_in_place(copy)
        except OSError:
            # All that there is is in the copy: it is gone on with until it can be put in its place, or from there.
            self._open(copy if copy.exists() else self._path)
            raise
        else:
            self._open(self._path)
            self._files.opened()
        finally:
            if was_at != self._path:
                self._files.remove(was_at)

    @contextmanager
    def batch(self) -> Iterator[None]:
        with self._transaction():
            self._batching = True
            try:
                yield
            finally:
                self._batching = False

    def save(self, record: SessionRecord, timestamp_us: int) -> None:
        with self._transaction():
            self._save(record, timestamp_us)

    def _save(self, record: SessionRecord, timestamp_us: int) -> None:
        row = self._row(record)
        epoch = first_of_epoch(record.state_version), _last_number(record.state_version)
        # Without a timestamp it is no new session: it is there, or has been.
        if (timestamp_us or not self._change(row, epoch)) and not self._keep(row, epoch):
            self._overtaken.append(record.session_id)
        if timestamp_us:
            self._database.execute(_KEEP_TIMESTAMP, (record.client_public, timestamp_us))

    def _row(self, record: SessionRecord) -> sealing.Row:
        return sealing.row_of(record, self._aead_of, self._random_bytes)

    def _change(self, row: sealing.Row, epoch: tuple[int, int]) -> bool:
        """False, and nothing is changed, when the session is another owner's by now, or not there."""
        return self._database.execute(_CHANGE, (*row[2:], row[0], *epoch, row[3])).rowcount == 1

    def _keep(self, row: sealing.Row, epoch: tuple[int, int]) -> bool:
        """False, and nothing is changed, when the session is another owner's by now."""
        return self._database.execute(_KEEP, (*row, *epoch)).rowcount == 1

    def bear(self, record: SessionRecord, timestamp_us: int, pool: InnerPool) -> Birth:
        birth, client = Birth(), record.client_public
        with self._transaction():
            given = pool.give(client, self._addresses.held(client), self._addresses)
            if given is None:
                birth.settle(None)
                return birth
            for one in given:
                self._addresses.keep(client, one)
            born = with_addresses(record, {one.version: one.address for one in given})
            self._save(born, timestamp_us)
        birth.settle(born)
        return birth

    def inner_addresses(self) -> dict[bytes, tuple[str, ...]]:
        try:
            return self._addresses.all()
        except sqlite3.Error as error:
            raise StoreError(f"cannot read the session store {self._path}: {error}") from error

    def release_addresses(self, client_public: bytes) -> bool:
        with self._transaction():
            return self._addresses.release(client_public)

    def overtaken(self) -> list[bytes]:
        overtaken, self._overtaken = self._overtaken, []
        return overtaken

    def ask_owner(self, session_id: bytes, owner: str, asker: str, attempt: int) -> None:
        return

    def was_asked(self, session_id: bytes, owner: str) -> None:
        return

    def forget(self, session_id: bytes, version: int = MAX_VERSION) -> None:
        with self._transaction():
            self._database.execute(
                "DELETE FROM sessions WHERE session_id = ? AND state_version <= ?",
                (session_id, _last_number(version)),
            )

    def forget_others(self, client_public: bytes, session_id: bytes) -> list[SessionRecord]:
        others = "FROM sessions WHERE client_public = ? AND session_id <> ?"
        with self._transaction():
            rows = self._database.execute(f"SELECT * {others}", (client_public, session_id)).fetchall()
            self._database.execute(f"DELETE {others}", (client_public, session_id))
        return [record for record in map(self._record, rows) if record is not None]

    def forget_timestamp(self, client_public: bytes) -> None:
        with self._transaction():
            self._database.execute("DELETE FROM timestamps WHERE client_public = ?", (client_public,))

    def load(self, session_id: bytes) -> SessionRecord | None:
        try:
            found = self._database.execute("SELECT * FROM sessions WHERE session_id = ?", (session_id,))
            row = found.fetchone()
        except sqlite3.Error as error:
            raise StoreError(f"cannot read the session store {self._path}: {error}") from error
        if row is None:
            return None
        record = self._record(row)
        if record is None:
            raise StoreError(
                f"a session in {self._path} cannot be opened: is {self._path}.key the right one?"
            )
        return record

    def claim(
        self, record: SessionRecord, seen_version: int, seen_owner: str, *, owner_gone: bool = False
    ) -> bool:
        row = self._row(record)
        with self._transaction():
            claimed = self._database.execute(_CLAIM, (*row[2:], row[0], seen_version, seen_owner))
        return claimed.rowcount == 1

    def sessions(self) -> list[SessionRecord]:
        try:
            rows = self._database.execute("SELECT * FROM sessions").fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"cannot read the session store {self._path}: {error}") from error
        return [record for record in map(self._record, rows) if record is not None]

    def expired(self, before_wall_ms: int) -> list[SessionRecord]:
        try:
            found = self._database.execute(
                "SELECT rowid, * FROM sessions WHERE rowid > ? ORDER BY rowid LIMIT ?",
                (self._looked_to, sealing.LOOKED_AT),
            ).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"cannot read the session store {self._path}: {error}") from error
        self._looked_to = found[-1][0] if len(found) == sealing.LOOKED_AT else 0
        rows: list[sealing.Row] = [row for _rowid, *row in found]
        over = [row for row in rows if sealing.expires_wall_ms(row) < before_wall_ms]
        return [record for record in map(self._record, over) if record is not None]

    def _record(self, row: sealing.Row) -> SessionRecord | None:
        """None for a row that the key file does not open."""
        return sealing.record_of(row, self._aead_of)

    def timestamps_us(self) -> dict[bytes, int]:
        try:
            return dict(self._database.execute("SELECT client_public, timestamp_us FROM timestamps"))
        except sqlite3.Error as error:
            raise StoreError(f"cannot read the session store {self._path}: {error}") from error

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, durable at its end, or at that of the batch that it is in. Raises StoreError."""
        try:
            if self._batching:
                yield
                return
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                # On a full disk SQLite has rolled back by itself, and an error of ours would hide its own.
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreError(f"cannot write the session store {self._path}: {error}") from error
