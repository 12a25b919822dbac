"""One client in a run directory: a locked file that holds its pid. The lock ends with the process, however it ends."""

import fcntl
import os
import time
from pathlib import Path

FILE_NAME = "client.pid"
#: `running_pid` takes the lock for an instant: one refusal proves nothing.
_TRIES = 5
_PAUSE_S = 0.02


class AlreadyRunning(OSError):
    """Another client holds the run directory; `pid` is its, 0 when it has not written it yet."""

    def __init__(self, run_dir: Path, pid: int) -> None:
        super().__init__(f"a client runs already with run_dir {run_dir}, pid {pid}; stop it with: jvpn down")
        self.pid = pid


class PidFile:
    """Held from construction to `close`. Raises AlreadyRunning, or another OSError for an unwritable directory."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / FILE_NAME
        self._descriptor = self._lock()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def _lock(self) -> int:
        for _ in range(_TRIES):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(descriptor, self._path):
                    return descriptor
                # Its owner removed it between our open and our lock.
            except BlockingIOError:
                time.sleep(_PAUSE_S)
            os.close(descriptor)
        raise AlreadyRunning(self._path.parent, running_pid(self._path.parent) or 0)

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def running_pid(run_dir: Path) -> int | None:
    """The pid of the client that holds `run_dir`, None when none does, 0 when it has only just begun."""
    try:
        descriptor = os.open(run_dir / FILE_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(descriptor)
    return None


def clear(run_dir: Path, *names: str) -> None:
    """Remove what a client that was killed left here: its pid file, and the files of these names.

    Nothing happens while a client runs. Raises OSError when one cannot be removed.
    """
    if not any((run_dir / name).exists() for name in (FILE_NAME, *names)):
        return
    try:
        held = PidFile(run_dir)
    except AlreadyRunning:
        return
    try:
        for name in names:
            (run_dir / name).unlink(missing_ok=True)
    finally:
        held.close()
