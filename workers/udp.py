"""UDP sockets with segmentation (UDP_SEGMENT, udp(7)), GRO and the local address of every datagram.

All are AF_INET6 and dual-stack: IPv4 peers are ::ffff:a.b.c.d, on the socket as in every message.
"""

import errno
import socket
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

from jvpn.protocol.addresses import ANY, for_socket
from jvpn.protocol.constants import MAX_SEGMENTS, MAX_UDP_PAYLOAD
from workers.counters import Counter

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_PROBE: Final = 3

SOCKET_BUFFER_BYTES: Final = 16 << 20
#: A GRO superpacket is shorter than this.
RECEIVE_BYTES: Final = 1 << 16
#: Room for UDP_GRO (int) and IPV6_PKTINFO (address and interface).
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(20)

Ancillary = tuple[int, int, bytes]
#: As sockets name it: text and port; IPv4 is mapped.
Address = tuple[str, int]


def open_socket(
    address: str, port: int, device: str | None = None, *, reuseport: bool = False, offload: bool = True
) -> socket.socket:
    """A non-blocking dual-stack UDP socket, bound, with every option the workers rely on.

    `address` is text ("::" for any, IPv4 mapped as ::ffff:a.b.c.d); `device` binds to an interface; `offload`: with
    GRO where the kernel has it. Buffers are as large as the privileges allow. Raises OSError (EADDRINUSE, ENODEV,
    EPERM …).
    """
    opened = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        if offload:
            receive_joined(opened)
        if reuseport:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for forced, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                opened.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER_BYTES)
            except PermissionError:
                opened.setsockopt(socket.SOL_SOCKET, plain, SOCKET_BUFFER_BYTES)
        if device is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        opened.bind((address, port))
    except OSError:
        opened.close()
        raise
    return opened


def receive_joined(opened: socket.socket) -> bool:
    """Have runs of datagrams read at once. False before Linux 5.0: every datagram then comes alone."""
    return _takes(opened, UDP_GRO, 1)


def can_segment(opened: socket.socket) -> bool:
    """Whether one send can be many datagrams (Linux 4.18). A kernel that cannot would send one that is too long."""
    return _takes(opened, UDP_SEGMENT, 0)


def _takes(opened: socket.socket, option: int, value: int) -> bool:
    try:
        opened.setsockopt(SOL_UDP, option, value)
    except OSError:
        return False
    return True


def pktinfo(local: bytes) -> list[Ancillary]:
    """What makes `sendmsg` send from `local`; nothing when it is zero (the kernel chooses)."""
    if local == ANY:
        return []
    return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, local + bytes(4))]


def socket_address(address: bytes, port: int) -> Address:
    return for_socket(address), port


class SocketLike(Protocol):
    """The two calls of socket.socket that a worker makes, and what it asks of its name."""

    def sendmsg(
        self, buffers: Sequence[Any], ancdata: Sequence[Ancillary], flags: int, address: Address, /
    ) -> int: ...

    def recvmsg_into(
        self, buffers: Sequence[Any], ancbufsize: int, /
    ) -> tuple[int, list[Ancillary], int, Any]: ...

    def getsockname(self) -> Any: ...


class Received(NamedTuple):
    """A GRO run: `size` bytes, cut into datagrams of `segment` bytes, the last may be shorter."""

    size: int
    segment: int
    source: Address
    local: bytes


class UdpSocket:
    """A numbered socket. Sending never waits and never raises: it returns the Counter of why it did not."""

    def __init__(self, number: int, opened: SocketLike, *, segment: bool) -> None:
        self.number = number
        self.replace(opened, segment=segment)

    def replace(self, opened: SocketLike, *, segment: bool) -> None:
        self.opened: SocketLike | None = opened
        self.port: int = opened.getsockname()[1]
        self._segment = segment

    def detach(self) -> None:
        """Forget the socket; paths through it count errors until another takes its number."""
        self.opened = None

    def send(
        self, data: memoryview, segment: int, destination: Address, ancillary: list[Ancillary]
    ) -> Counter | None:
        """Send `data` as datagrams of `segment` bytes (the last may be shorter), at most 64 of them."""
        if self.opened is None:
            return Counter.SEND_ERROR
        assert len(data) <= min(MAX_UDP_PAYLOAD, MAX_SEGMENTS * segment)
        try:
            if len(data) <= segment:
                self.opened.sendmsg((data,), ancillary, 0, destination)
            elif self._segment:
                size = (SOL_UDP, UDP_SEGMENT, struct.pack("=H", segment))
                self.opened.sendmsg((data,), [*ancillary, size], 0, destination)
            else:
                for at in range(0, len(data), segment):
                    self.opened.sendmsg((data[at : at + segment],), ancillary, 0, destination)
        except BlockingIOError:
            return Counter.SEND_FULL
        except OSError as error:
            if error.errno == errno.EIO and self._segment and len(data) > segment:
                # The device cannot fill in checksums, which UDP_SEGMENT needs; singly it can be done.
                self._segment = False
                return self.send(data, segment, destination, ancillary)
            return _SEND_ERRORS.get(error.errno or 0, Counter.SEND_ERROR)
        return None

    def receive(self, buffer: memoryview) -> Received | None:
        """Read one GRO run into `buffer` (RECEIVE_BYTES); None when there is none.

        Raises OSError for an error that an earlier datagram left on the socket.
        """
        if self.opened is None:
            return None
        try:
            size, ancillary, _flags, source = self.opened.recvmsg_into((buffer,), _ANCILLARY_BYTES)
        except BlockingIOError:
            return None
        segment = size
        local = ANY
        for level, kind, data in ancillary:
            if level == SOL_UDP and kind == UDP_GRO:
                (segment,) = _INT.unpack_from(data)
            elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                local = data[:16]
        return Received(size, max(segment, 1), source[:2], local)


_INT = struct.Struct("=i")
_SEND_ERRORS = {
    errno.ENOBUFS: Counter.SEND_FULL,
    errno.ENOMEM: Counter.SEND_FULL,
    errno.EMSGSIZE: Counter.SEND_TOO_BIG,
}
