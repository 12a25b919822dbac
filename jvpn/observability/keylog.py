"""The key log of a gateway or client in a laboratory (`--keylog FILE`): lines that open its captured sessions.

Whoever has the file reads every session of the process. So it is the file of the process's user alone, mode 0600, or it
is not written at all; and writing it never holds up who makes keys: one thread writes what a bounded queue keeps.
"""

import contextlib
import errno
import os
import queue
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from jvpn.observability.linefile import LineFile
from jvpn.protocol.keylog import line
from jvpn.protocol.keys import SessionSecrets

#: Lines that wait at most, 2 MB of them: the phases of some thousand sessions while a disk does not answer.
CAPACITY: Final = 16_384
#: A symbolic link is not followed; a pipe that nobody reads holds nobody up, and is refused like any.
_FLAGS: Final = os.O_NOFOLLOW | os.O_NONBLOCK
_MODE: Final = 0o600
_NOT_REGULAR: Final = "is no regular file; name another"


class _PrivateFile(LineFile):
    """Lines go only into a regular file that is its user's alone, however often it is opened again."""

    def require(self) -> None:
        """Raises OSError that says why nothing can be written."""
        self._open()

    def _open(self) -> int:
        try:
            fd = super()._open()
        except OSError as error:
            if error.errno == errno.ELOOP:
                self._refuse("is a symbolic link; name the file itself")
            if error.errno == errno.ENXIO:  # a pipe that nobody reads, or a socket
                self._refuse(_NOT_REGULAR)
            raise
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            self._refuse(_NOT_REGULAR)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            self._refuse(
                "can be read by others than this process's user; remove it, or chmod 600 and chown it"
            )
        return fd

    def _refuse(self, why: str) -> NoReturn:
        self.close()
        raise OSError(errno.EPERM, why)


class KeyLogFile:
    """Appends to `path` the keys that it is told of. The constructor raises OSError when that cannot be done."""

    def __init__(self, path: Path, *, capacity: int = CAPACITY) -> None:
        self._path = path
        self._file = _PrivateFile(path, _MODE, _FLAGS)
        try:
            self._file.require()
        except OSError as error:
            raise OSError(f"the key log {path}: {error.strerror}") from error
        self._queue: queue.Queue[bytes | None] = queue.Queue(capacity)
        self._overflowed = self._unwritten = self._written = 0
        self._thread = threading.Thread(target=self._run, name="jvpn-keylog", daemon=True)
        self._thread.start()

    @property
    def written(self) -> int:
        """Lines in the file."""
        return self._written

    @property
    def lost(self) -> int:
        """Lines that could not be written."""
        return self._overflowed + self._unwritten

    @property
    def warning(self) -> str:
        """What everybody is to know who looks at this process."""
        lost = f", {self.lost} lost" if self.lost else ""
        return (
            f"the keys of all sessions go to {self._path} ({self.written} lines{lost}): whoever has it reads their "
            "recorded traffic. For laboratories only"
        )

    def note(self, secrets: SessionSecrets, epoch: int) -> None:
        """Keys were made: of a phase, or of a known phase in another epoch. Never blocks, never raises."""
        try:
            self._queue.put_nowait(f"{line(secrets, epoch)}\n".encode())
        except queue.Full:
            self._overflowed += 1

    def close(self, timeout_s: float) -> None:
        """Write out what was taken, as far as the time suffices."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            done = self._file.append([entry])
            self._written += done
            self._unwritten += 1 - done
        self._file.close()


def open_keylog(path: Path | None, say: Callable[[str], None]) -> KeyLogFile | None:
    """The key log in `path`, with a warning; None for None. Raises OSError when nothing can be written there."""
    if path is None:
        return None
    keylog = KeyLogFile(path)
    say(f"WARNING: {keylog.warning}")
    return keylog
