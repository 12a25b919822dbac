"""The worker's end of the SEQPACKET socket to its supervisor: commands in with descriptors, reports out."""

import socket
from collections import deque
from typing import Final

from workers.commands import MAX_MESSAGE, Report, encode

#: Reports that wait because they must not be lost; a supervisor that leaves more unread has stopped reading.
WAITING: Final = 65_536
_DESCRIPTORS: Final = 4


class ChannelClosed(Exception):
    """The other end is gone."""


class Channel:
    """`wants_write` says whether `flush` has something to do once the socket is writable."""

    def __init__(self, opened: socket.socket) -> None:
        opened.setblocking(False)
        self._socket = opened
        self._waiting: deque[bytes] = deque()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        return bool(self._waiting)

    def receive(self) -> tuple[bytes, list[int]] | None:
        """The next message and the descriptors beside it, which the caller now owns; None when there is none.

        Raises ChannelClosed.
        """
        try:
            data, descriptors, _flags, _address = socket.recv_fds(
                self._socket, MAX_MESSAGE, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except ConnectionError as error:
            raise ChannelClosed from error
        if not data:
            raise ChannelClosed
        return data, descriptors

    def offer(self, report: Report) -> bool:
        """Send a report that may be lost; False when it would have to wait."""
        if self._waiting:
            return False
        return self._send(encode(report))

    def post(self, report: Report) -> None:
        """Send a report that may wait but not be lost. Raises ChannelClosed."""
        message = encode(report)
        if self._waiting or not self._send(message):
            if len(self._waiting) >= WAITING:
                raise ChannelClosed
            self._waiting.append(message)

    def flush(self) -> None:
        """Send what waits, as far as it goes. Raises ChannelClosed."""
        while self._waiting and self._send(self._waiting[0]):
            self._waiting.popleft()

    def _send(self, message: bytes) -> bool:
        try:
            self._socket.send(message)
        except BlockingIOError:
            return False
        except ConnectionError as error:
            raise ChannelClosed from error
        return True
