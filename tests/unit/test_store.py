"""The embedded ownership store: durable, sealed, and clear about what it cannot do."""

import sqlite3
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jvpn.session.machine import State, pack_version
from jvpn.session.record import SessionRecord
from jvpn.store.base import StoreError
from jvpn.store.sqlite import SqliteStore

RECORD = SessionRecord(
    session_id=b"i" * 16,
    client_public=b"c" * 32,
    policy_name="default",
    policy_version="0123abcd",
    owner_node="gw1",
    state=State.ATTACHED,
    state_version=pack_version(1, 1),
    secrets=b"secret session and phase keys".ljust(64, b"."),
    inner_v4="10.8.0.2",
    inner_v6=None,
    created_wall_ms=1,
    expires_wall_ms=2,
    expires_boot_ms=3,
    boot_id="boot",
    stored_wall_ms=4,
    last_bound_attempt=5,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "sessions.db"


def test_saving_returns_only_when_it_is_durable(path: Path) -> None:
    """The process dies without a word right after `save`."""
    script = (
        "import os, sys; from pathlib import Path; sys.path[:0] = sys.argv[2:]\n"
        "from test_store import RECORD; from jvpn.store.sqlite import SqliteStore\n"
        "SqliteStore(Path(sys.argv[1])).save(RECORD, 100); os._exit(9)"
    )
    here = Path(__file__).parent
    command = [sys.executable, "-c", script, str(path), str(here), str(here.parents[1])]
    assert subprocess.run(command, check=False).returncode == 9
    store = SqliteStore(path)
    assert [record.session_id for record in store.sessions()] == [RECORD.session_id]
    store.close()


def test_secrets_are_sealed_and_readable_by_their_owner_only(path: Path) -> None:
    store = SqliteStore(path)
    store.save(RECORD, 100)
    store.close()
    for file in path.parent.iterdir():
        assert RECORD.secrets[:16] not in file.read_bytes()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert RECORD.secrets.decode() not in repr(RECORD)


def test_a_record_under_another_key_or_of_another_session_is_left_out(path: Path) -> None:
    store = SqliteStore(path)
    store.save(RECORD, 100)
    other = replace(RECORD, session_id=b"j" * 16)
    store.save(other, 100)
    store.close()
    with sqlite3.connect(path) as database:
        database.execute(
            "UPDATE sessions SET sealed_secrets = (SELECT sealed_secrets FROM sessions WHERE session_id = ?) "
            "WHERE session_id = ?",
            (RECORD.session_id, other.session_id),
        )
    again = SqliteStore(path)
    assert again.sessions() == [RECORD]
    again.close()
    path.with_name("sessions.db.key").write_bytes(b"k" * 32)
    strange = SqliteStore(path)
    assert strange.sessions() == []
    assert strange.timestamps_us() == {RECORD.client_public: 100}
    strange.close()


def test_an_unwritable_store_says_so_and_keeps_what_it_had(path: Path) -> None:
    store = SqliteStore(path)
    store.save(RECORD, 100)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("PRAGMA query_only = 0")
    store._database.execute("PRAGMA query_only = 1")
    with pytest.raises(StoreError, match="cannot write the session store"):
        store.save(replace(RECORD, session_id=b"j" * 16), 200)
    with pytest.raises(StoreError):
        store.forget(RECORD.session_id)
    store._database.execute("PRAGMA query_only = 0")
    assert store.sessions() == [RECORD]
    assert store.timestamps_us() == {RECORD.client_public: 100}
    store.save(RECORD, 300)
    holder.close()
    store.close()


@pytest.mark.parametrize("damage", ["database", "key", "folder"])
def test_a_store_that_cannot_be_opened_is_named(path: Path, damage: str) -> None:
    path.parent.mkdir()
    if damage == "database":
        path.write_bytes(b"not a database, not at all, not even nearly" * 50)
    elif damage == "key":
        path.with_name("sessions.db.key").write_bytes(b"too short")
    else:
        path = path.parent / "file" / "sessions.db"
        path.parent.write_text("a file where a folder should be")
    with pytest.raises(StoreError, match=str(path)):
        SqliteStore(path)


def test_a_full_disk_is_called_full(path: Path) -> None:
    store = SqliteStore(path)
    # As SQLite does when a disk is full: it rolls the transaction back by itself.
    store._database.execute(
        "CREATE TEMP TRIGGER full BEFORE INSERT ON sessions "
        "BEGIN SELECT RAISE(ROLLBACK, 'database or disk is full'); END"
    )
    with pytest.raises(StoreError, match="database or disk is full"):
        store.save(RECORD, 1)
    store.close()
