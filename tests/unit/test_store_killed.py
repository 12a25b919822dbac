"""The embedded store's process is killed at every statement and at every few bytes that it writes: all of a batch is
there then, or nothing of it, and what was there before is whole."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_store import RECORD

from jvpn.store.sqlite import SqliteStore

HERE = Path(__file__).parent
PATHS = [str(HERE), str(HERE.parents[1])]
#: One that is replaced, one that goes, and what stays.
REPLACED = RECORD
GOES = replace(RECORD, session_id=b"g" * 16, client_public=b"g" * 32)
STAYS = replace(RECORD, session_id=b"s" * 16, client_public=b"s" * 32)
NEW = [replace(RECORD, session_id=bytes([n]) * 16, client_public=bytes([n]) * 32) for n in range(1, 9)]
NEWER = replace(REPLACED, last_bound_attempt=77)

CHILD = """
import os, resource, signal, sys
from pathlib import Path
path, how, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
sys.path[:0] = sys.argv[4:]
from test_store_killed import GOES, NEW, NEWER
from jvpn.store.sqlite import SqliteStore
store = SqliteStore(path)
left = limit
def statement(_text):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
if how == "statements":
    store._database.set_trace_callback(statement)
else:
    # The kernel writes up to the limit, and kills who wants to write more.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
with store.batch():
    store.save(NEWER, 0)
    for number, record in enumerate(NEW):
        store.save(record, 1000 + number)
    store.forget(GOES.session_id)
os._exit(0)
"""


def prepared(path: Path) -> tuple[object, object]:
    store = SqliteStore(path)
    for record in (REPLACED, GOES, STAYS):
        store.save(record, 100)
    before = contents(store)
    store.close()
    return before, ({r.session_id: r for r in (NEWER, STAYS, *NEW)}, _timestamps())


def _timestamps() -> dict[bytes, int]:
    old = {record.client_public: 100 for record in (REPLACED, GOES, STAYS)}
    return old | {record.client_public: 1000 + number for number, record in enumerate(NEW)}


def contents(store: SqliteStore) -> tuple[object, object]:
    return {record.session_id: record for record in store.sessions()}, store.timestamps_us()


def killed(path: Path, how: str, limit: int) -> bool:
    """Whether the child was killed before it was through."""
    command = [sys.executable, "-c", CHILD, str(path), how, str(limit), *PATHS]
    status = subprocess.run(command, check=False).returncode
    assert status in (0, -signal.SIGKILL, -signal.SIGXFSZ)
    return status != 0


@pytest.mark.parametrize("how", ["statements", "bytes"])
def test_all_of_a_batch_or_nothing(tmp_path: Path, how: str) -> None:
    # A log as long as one batch makes it, in steps that do not divide a page; a dozen statements, each.
    limit, step = (0, 1) if how == "statements" else (0, 1_777)
    seen = set()
    while True:
        path = tmp_path / str(limit) / "sessions.db"
        before, after = prepared(path)
        through = not killed(path, how, limit)
        store = SqliteStore(path)
        found = contents(store)
        store.close()
        assert found in (before, after), limit
        seen.add(found == after)
        assert not through or found == after
        if through:
            break
        limit += step
    assert seen == {False, True}
    assert limit > 8 * step
