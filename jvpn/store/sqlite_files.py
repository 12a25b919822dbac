"""The files of the embedded store: whether they are still those that are open, and how they are written anew.

SQLite goes on writing what it has open, whatever becomes of the names: a file that was removed or replaced takes what
is kept with it when the process ends. All that it held is still there to be read until then.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from jvpn.store import sealing

#: Of a database: its log and what its processes share, which must be those of the file that they are named after.
_BESIDE = ("-wal", "-shm", "-journal")
#: Of copies until they are in their place; a number follows.
_ANEW = ".anew-"
#: What was found in the place of a file that had been replaced is kept under this name.
DISPLACED = ".displaced"

#: Device, inode, and where nothing keeps that inode from being used again, when it was written.
_Identity = tuple[int, int, int]


class StoreFiles:
    """Of the database at `path`, with its key, 32 bytes, in `path`.key. One thread; raises OSError, sqlite3.Error."""

    def __init__(self, path: Path, key: bytes) -> None:
        self.path = path
        self._key_path = path.with_name(path.name + ".key")
        self._key = key
        self._known: dict[Path, _Identity | None] = {}
        self._copies = 0

    def clear(self) -> None:
        """What a gateway that died over it has left of a copy goes."""
        for left in self.path.parent.glob(f"{self.path.name}{_ANEW}*"):
            left.unlink(missing_ok=True)

    def opened(self) -> None:
        """The database is open: what is there now is what it uses."""
        names = [self.path, *(self._beside(self.path, end) for end in _BESIDE[:2]), self._key_path]
        self._known = {name: _identity(name, stable=name != self._key_path) for name in names}

    def lost(self) -> str:
        """What has become of them since, in words; nothing where all is well."""
        became: dict[str, list[str]] = {}
        for path, known in self._known.items():
            now = _identity(path, stable=path != self._key_path)
            if now != known and path == self._key_path and self._has_key():
                self._known[path] = now
            elif now != known:
                became.setdefault("removed" if now is None else "replaced", []).append(path.name)
        words = [f"{how} {' and '.join(names)}" for how, names in became.items()]
        return f"in {self.path.parent} somebody has {', '.join(words)}" if words else ""

    def copied(self, database: sqlite3.Connection) -> Path:
        """All that an open database holds, durable in a file of its own beside its place."""
        self._copies += 1
        copy = self.path.with_name(f"{self.path.name}{_ANEW}{self._copies}")
        self.remove(copy)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(copy, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            with closing(sqlite3.connect(copy)) as target:
                database.backup(target)
        except BaseException:
            # Where there is too little room for it, it must not take what there is.
            self.remove(copy)
            raise
        return copy

    def put_in_place(self, copy: Path) -> None:
        """Nobody has the database open: SQLite removes a log by its name when it closes one, also that of another."""
        known = self._known.get(self.path)
        for end in _BESIDE:
            self._beside(self.path, end).unlink(missing_ok=True)
        there = _identity(self.path)
        if there is not None and there != known:
            self._displace(self.path)
        # First: a database without its key is nobody's.
        self._put_key_back()
        os.replace(copy, self.path)
        _sync(self.path.parent)

    def _put_key_back(self) -> None:
        """Without it nobody could open what was put in place."""
        if self._has_key():
            return
        if _identity(self._key_path) is not None:
            self._displace(self._key_path)
        sealing.write_key(self._key_path, self._key)

    def _has_key(self) -> bool:
        return self._key_path.is_file() and self._key_path.read_bytes() == self._key

    @staticmethod
    def _displace(path: Path) -> None:
        os.replace(path, path.with_name(path.name + DISPLACED))

    def remove(self, database: Path) -> None:
        for name in (database, *(self._beside(database, end) for end in _BESIDE)):
            name.unlink(missing_ok=True)

    @staticmethod
    def _beside(database: Path, end: str) -> Path:
        return database.with_name(database.name + end)


def _identity(path: Path, stable: bool = True) -> _Identity | None:
    """`stable`: somebody has the file open, so no other one gets its inode."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino, 0 if stable else found.st_mtime_ns


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
