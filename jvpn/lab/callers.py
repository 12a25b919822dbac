"""Who asks the emulator something: one line of JSON, one line for an answer, over a pair of pipes or a Unix socket."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import msgspec

#: A line longer than this is nobody's request.
LINE_BYTES = 65_536


class Caller:
    """Reads requests from *read_fd* and answers on *write_fd*."""

    def __init__(self, read_fd: int, write_fd: int, sock: socket.socket | None = None) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._socket = sock
        self._pending = b""

    @classmethod
    def over(cls, sock: socket.socket) -> Self:
        """The other end of a connection. It is never waited for: who does not read its answers has hung up."""
        sock.setblocking(False)
        return cls(sock.fileno(), sock.fileno(), sock)

    def fileno(self) -> int:
        """Readable when there is something to read."""
        return self._read_fd

    def lines(self) -> list[bytes] | None:
        """The whole lines that have come; None: the caller has gone, or says what no request is."""
        try:
            data = os.read(self._read_fd, LINE_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            return None
        *lines, self._pending = (self._pending + data).split(b"\n")
        return lines if data and len(self._pending) <= LINE_BYTES else None

    def answer(self, answer: dict[str, Any]) -> bool:
        """Whether the caller took it."""
        line = msgspec.json.encode(answer) + b"\n"
        try:
            return os.write(self._write_fd, line) == len(line)
        except OSError:
            return False

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


@contextlib.contextmanager
def listen(path: str | None) -> Iterator[socket.socket | None]:
    """A Unix socket at *path* that only its owner may connect to, replacing one that was left; None for None."""
    if path is None:
        yield None
        return
    left = Path(path)
    if left.is_socket():
        left.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        before = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.listen()
        try:
            yield sock
        finally:
            left.unlink(missing_ok=True)
