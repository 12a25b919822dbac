"""The embedded store's files are removed or replaced while a gateway has them open."""

import os
import select
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from core_pair import CorePair
from test_store import RECORD
from test_store_addresses import SMALL

from jvpn.lab.running import wait_for
from jvpn.store import sealing, sqlite_files
from jvpn.store.base import StoreError
from jvpn.store.memory import MemoryStore
from jvpn.store.sqlite import SqliteStore
from jvpn.supervisor.effects import SaveSession
from jvpn.supervisor.keeping import Keeping
from jvpn.supervisor.store_desk import Answers, Batch, DirectDesk, ThreadDesk

LATER = replace(RECORD, session_id=b"j" * 16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "sessions.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(path)
    made.save(RECORD, 100)
    yield made
    made.close()


def every_file(path: Path) -> list[Path]:
    return sorted(path.parent.iterdir())


def remove_all(path: Path) -> None:
    shutil.rmtree(path.parent)


def remove_database(path: Path) -> None:
    path.unlink()


def remove_log(path: Path) -> None:
    path.with_name(path.name + "-wal").unlink()


def remove_index(path: Path) -> None:
    path.with_name(path.name + "-shm").unlink()


def remove_key(path: Path) -> None:
    path.with_name(path.name + ".key").unlink()


def replace_key(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"k" * 32)
    other.replace(path.with_name(path.name + ".key"))


def replace_database(path: Path) -> None:
    """By another store, as a backup would be put back by one who did not stop the gateway."""
    other = SqliteStore(path.parent / "backup" / path.name)
    other.save(replace(RECORD, session_id=b"k" * 16), 1)
    other.close()
    os.replace(path.parent / "backup" / path.name, path)


def put_a_folder_there(path: Path) -> None:
    path.unlink()
    (path / "full").mkdir(parents=True)


HANDS = [
    remove_all,
    remove_database,
    remove_log,
    remove_index,
    remove_key,
    replace_key,
    replace_database,
    put_a_folder_there,
]


@pytest.mark.parametrize("lay_hands_on", HANDS)
def test_what_a_gateway_keeps_outlives_its_files(
    store: SqliteStore, path: Path, lay_hands_on: Callable[[Path], None]
) -> None:
    assert store.look() == ""
    birth = store.bear(replace(RECORD, client_public=b"d" * 32, session_id=b"p" * 16), 7, SMALL)
    lay_hands_on(path)
    store.save(LATER, 200)
    assert "while this gateway ran" in store.look()
    assert store.look() == ""
    store.save(replace(LATER, session_id=b"l" * 16), 300)
    # As a start after a crash finds it: nothing was closed.
    with closing(SqliteStore(path)) as again:
        assert {record.session_id[:1] for record in again.sessions()} == {b"i", b"j", b"l", b"p"}
        assert again.timestamps_us() == {RECORD.client_public: 300, b"d" * 32: 7}
        assert birth.record is not None
        assert again.inner_addresses()[b"d" * 32] == (birth.record.inner_v4,)
        assert again.fleet_key == store.fleet_key
    assert not [name for name in every_file(path) if ".anew" in name.name]


def test_a_key_that_was_copied_back_is_the_key(store: SqliteStore, path: Path) -> None:
    key = path.with_name("sessions.db.key")
    kept = key.read_bytes()
    key.unlink()
    key.write_bytes(kept)
    os.utime(key)
    assert store.look() == ""


def test_what_was_put_in_the_place_of_a_store_is_kept_beside_it(store: SqliteStore, path: Path) -> None:
    replace_database(path)
    assert f"in {path.parent} somebody has replaced sessions.db while" in store.look()
    with closing(sqlite3.connect(path.with_name("sessions.db.displaced"))) as theirs:
        assert theirs.execute("SELECT session_id FROM sessions").fetchall() == [(b"k" * 16,)]


def test_what_cannot_be_put_back_is_an_error_until_it_can(store: SqliteStore, path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.write_text("in the way")
    with pytest.raises(StoreError, match="lost at the next start"):
        store.look()
    path.parent.unlink()
    wait_for("another attempt", lambda: mended(store))
    with closing(SqliteStore(path)) as again:
        assert again.sessions() == [RECORD]


def test_a_copy_that_cannot_be_put_in_place_is_gone_on_with(store: SqliteStore, path: Path) -> None:
    """The folder for what was displaced is taken, by a folder that is not empty."""
    put_a_folder_there(path)
    taken = path.with_name("sessions.db.displaced")
    (taken / "full").mkdir(parents=True)
    for number in range(2):
        with pytest.raises(StoreError, match="lost at the next start"):
            store.look()
        store._again_s = 0.0
        store.save(replace(RECORD, session_id=bytes([number]) * 16), 200)
    shutil.rmtree(taken)
    assert "while this gateway ran" in store.look()
    with closing(SqliteStore(path)) as again:
        assert len(again.sessions()) == 3
    assert not [name for name in every_file(path) if ".anew" in name.name]


def mended(store: SqliteStore) -> bool:
    try:
        return bool(store.look())
    except StoreError:
        return False


class HandledStore(MemoryStore):
    """`says` is what is found when it is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.says: str | StoreError = ""

    def look(self) -> str:
        if isinstance(self.says, StoreError):
            raise self.says
        said, self.says = self.says, ""
        return said


@pytest.fixture
def desk() -> Iterator[tuple[ThreadDesk, HandledStore]]:
    store = HandledStore()
    made = ThreadDesk(store)
    made.start()
    yield made, store
    made.close()


def wait(desk: ThreadDesk) -> None:
    poll = select.poll()
    poll.register(desk.fileno(), select.POLLIN)
    assert poll.poll(20_000)


def test_a_store_that_nobody_asks_is_looked_after(desk: tuple[ThreadDesk, HandledStore]) -> None:
    thread, store = desk
    store.says = "it was removed"
    wait(thread)
    assert list(thread.found()) == ["it was removed"]
    assert thread.answers() is None


def test_a_batch_that_is_lost_at_the_next_start_has_failed(desk: tuple[ThreadDesk, HandledStore]) -> None:
    thread, store = desk
    store.says = lost = StoreError("it was removed")
    thread.ask(Batch(writes=[SaveSession(RECORD, 1, lambda _kept, _now_ms: None)]))
    answers: list[Answers] = []
    wait_for("its answer", lambda: answers.extend(a for a in [thread.answers()] if a) or answers)
    assert answers[0].written is lost
    assert lost in list(thread.found())


def test_a_store_that_is_lost_is_said_once_counted_and_takes_nobody_new() -> None:
    pair = CorePair().attach()
    keeping = Keeping(DirectDesk(pair.store), pair.gateway, pair.told.append)
    for _ in range(3):
        keeping.found(StoreError("the store was removed"), pair.now_ms)
    assert pair.told == ["the store was removed"]
    assert not pair.context.narrator.durable
    assert pair.attached
    keeping.found("it was written anew", pair.now_ms)
    assert pair.told[1:] == ["it was written anew", "the store can be written again"]
    assert pair.context.narrator.durable
    assert pair.context.counters["store_lost"] == 1
    keeping.found("it was written anew again", pair.now_ms)
    assert pair.context.counters["store_lost"] == 2


@pytest.mark.parametrize("step", ["key", "folder"])
def test_what_fails_when_the_copy_is_nearly_in_place_costs_nothing(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_told: object) -> None:
        raise OSError(28, "No space left on device")

    remove_all(path)
    with monkeypatch.context() as once:
        once.setattr(*((sealing, "write_key", full) if step == "key" else (sqlite_files, "_sync", full)))
        with pytest.raises(StoreError, match="written anew"):
            store.look()
    assert store.load(RECORD.session_id) == RECORD
    store._again_s = 0.0
    store.look()
    assert store.load(RECORD.session_id) == RECORD
    store.close()
    again = SqliteStore(path)
    assert again.load(RECORD.session_id) == RECORD
    again.close()


def test_copies_that_fail_take_no_room(path: Path, store: SqliteStore) -> None:
    class Full:
        """A connection whose copies come half way."""

        def __init__(self, real: sqlite3.Connection) -> None:
            self._real = real

        def __getattr__(self, name: str) -> object:
            return getattr(self._real, name)

        def backup(self, target: sqlite3.Connection) -> None:
            target.execute("CREATE TABLE half (way)")
            raise sqlite3.OperationalError("database or disk is full")

    remove_all(path)
    real = store._database
    store._database = Full(real)  # type: ignore[assignment]
    for _ in range(3):
        store._again_s = 0.0
        with pytest.raises(StoreError):
            store.look()
    assert every_file(path) == []
    store._database = real


def test_a_copy_that_a_dead_gateway_has_left_goes(path: Path, store: SqliteStore) -> None:
    store.close()
    left = path.with_name(path.name + ".anew-1")
    left.write_bytes(b"half of it")
    SqliteStore(path).close()
    assert not left.exists()
