"""A TCP connection that looks like a UDP socket to the stream gauge: fixed frames in place of datagrams."""

from __future__ import annotations

import contextlib
import socket

#: What may wait here while the kernel takes no more; beyond it the connection counts as stuck and frames are refused.
BACKLOG_BYTES = 1 << 22


class TcpSocket:
    """Frames of *size* bytes, both ways. Listens, and takes the first that connects, unless *peer* is given.

    OSError when the address is not there or nobody listens.
    """

    def __init__(self, bind: str, port: int, size: int, peer: tuple[str, int] | None) -> None:
        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        self._size = size
        self._connected = peer is not None
        self._sock = socket.socket(family, socket.SOCK_STREAM)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sock.bind((bind, port))
        self._in, self._out = bytearray(), bytearray()
        self._from: tuple[str, int] = peer or ("", 0)
        if peer is None:
            self._sock.listen(1)
        else:
            self._sock.connect(peer)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.setblocking(False)

    def fileno(self) -> int:
        return self._sock.fileno()

    def getsockname(self) -> tuple[str, int]:
        name: tuple[str, int] = self._sock.getsockname()[:2]
        return name

    def sendto(self, data: bytes, peer: tuple[str, int]) -> int:
        """Send a frame whole, now or later; *peer* is who is connected. OSError when it cannot be taken."""
        if len(self._out) > BACKLOG_BYTES:
            raise BlockingIOError("the connection takes no more")
        self._out += data
        with contextlib.suppress(BlockingIOError):
            del self._out[: self._sock.send(self._out)]
        return len(data)

    def recvfrom(self, size: int) -> tuple[bytes, tuple[str, int]]:
        """The next whole frame. BlockingIOError while there is none."""
        if not self._connected:
            self._accept()
        if len(self._in) < self._size:
            data = self._sock.recv(size)
            if not data:
                raise ConnectionResetError("the other end has closed")
            self._in += data
        if len(self._in) < self._size:
            raise BlockingIOError("no whole frame yet")
        frame = bytes(self._in[: self._size])
        del self._in[: self._size]
        return frame, self._from

    def _accept(self) -> None:
        accepted, name = self._sock.accept()
        self._sock.close()
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock, self._from, self._connected = accepted, name[:2], True
