"""Control datagrams over a dual-stack UDP socket, with the local address known and chosen (ipv6(7), IPV6_PKTINFO).

For the few datagrams of supervisor and agent; the data plane has its own batches in `workers`.
"""

import socket
import struct
from typing import NamedTuple

from jvpn.protocol import addresses
from workers.commands import Endpoint

_PKTINFO = struct.Struct("=16sI")
_ANCILLARY = socket.CMSG_SPACE(_PKTINFO.size) + socket.CMSG_SPACE(4)
_SOL_UDP = 17
_UDP_GRO = 104
#: GRO joins several datagrams of one sender into one read.
_BUFFER = 65_536


class Received(NamedTuple):
    data: bytes
    local: Endpoint
    remote: Endpoint


class UdpTransport:
    """Wraps a non-blocking AF_INET6 socket with IPV6_RECVPKTINFO; the socket is the caller's."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.port: int = sock.getsockname()[1]

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes, local: Endpoint, remote: Endpoint) -> bool:
        """False when the kernel would not take it (no route, full buffer, device gone): never fatal for UDP."""
        ancillary = []
        if local.address != addresses.ANY:
            info = _PKTINFO.pack(local.address, 0)
            ancillary = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)]
        target = (addresses.for_socket(remote.address), remote.port)
        try:
            self._socket.sendmsg([data], ancillary, 0, target)
        except OSError:
            return False
        return True

    def receive(self) -> list[Received]:
        """Everything that one read brings; empty when nothing waits. Errors of earlier sends are swallowed here."""
        try:
            data, ancillary, _flags, source = self._socket.recvmsg(_BUFFER, _ANCILLARY)
        except OSError:
            return []
        remote = Endpoint(addresses.to_bytes(source[0]), source[1])
        local, size = addresses.ANY, len(data)
        for level, kind, value in ancillary:
            if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                local = _PKTINFO.unpack_from(value)[0]
            elif (level, kind) == (_SOL_UDP, _UDP_GRO):
                size = int.from_bytes(value[:4], "little") or size
        end = Endpoint(local, self.port)
        return [Received(data[at : at + size], end, remote) for at in range(0, len(data), max(size, 1))]
