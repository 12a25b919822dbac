"""Typed messages with descriptors over SEQPACKET Unix sockets (unix(7), SCM_RIGHTS)."""

import array
import socket
from typing import Final

#: Linux refuses more in one message (SCM_MAX_FD).
MAX_DESCRIPTORS: Final = 253
_SPACE: Final = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)


def send(channel: socket.socket, message: bytes, descriptors: list[int] | None = None) -> None:
    """One message. Raises OSError as sendmsg does, ValueError beyond MAX_DESCRIPTORS."""
    descriptors = descriptors or []
    if len(descriptors) > MAX_DESCRIPTORS:
        raise ValueError(f"{len(descriptors)} descriptors do not fit one message")
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
    channel.sendmsg([message], [rights] if descriptors else [])


def receive(channel: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """One message and the descriptors beside it, which are the caller's now; b"" when the other end closed."""
    message, ancillary, _flags, _address = channel.recvmsg(size, _SPACE)
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return message, list(descriptors)
