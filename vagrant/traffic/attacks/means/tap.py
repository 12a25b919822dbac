"""JVP/1 datagrams as they pass: from a device (packet(7)) or from a capture file.

A device is read with its virtio headers (PACKET_VNET_HDR), so that of a superpacket each datagram is seen by itself.
"""

import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scapy.error import Scapy_Exception
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet
from scapy.utils import PcapReader

from vagrant.traffic.attacks.means.filters import End, Network, attach, udp_filter

#: UDP payload of an unfragmented IPv4 packet on the lab's links: what is longer in a file is several datagrams in one.
LONGEST: Final = 1_472

_SOL_PACKET: Final = 263
_STATISTICS, _VNET_HDR, _IGNORE_OUTGOING = 6, 15, 23
_ETH_P_ALL: Final = 0x0003
_SO_RCVBUFFORCE: Final = 33
_VNET: Final = struct.Struct("=BBHHHH")
_GSO_UDP_L4: Final = 5
_ETHERNET, _UDP_HEADER = 14, 8
_BUFFER_BYTES: Final = 32 << 20
_ROOM: Final = 65_536 + 64


@dataclass(frozen=True, slots=True)
class Datagram:
    """One UDP datagram with its ends."""

    data: bytes
    source: End
    destination: End


class Tap:
    """What comes in at a device of UDP from or to one end, from when it is made."""

    def __init__(self, device: str, *, source: End | None = None, destination: End | None = None,
                 beside: Network | None = None) -> None:  # fmt: skip
        """One of `source` and `destination` is given, and is the gateway's. Of what it sends, `beside` sees only what
        goes to that network. Raises OSError."""
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
        self._socket.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        gateway = source or destination
        assert gateway is not None
        attach(self._socket, udp_filter(gateway, sent=source is not None, to=beside))
        self._socket.setblocking(False)
        self._socket.bind((device, _ETH_P_ALL))
        self._buffer = bytearray(_ROOM)
        self._missed = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def frames(self, most: int = 1_000) -> Iterator[list[Datagram]]:
        """Of at most that many frames that wait the datagrams in each."""
        with contextlib.suppress(OSError):  # nothing more for now, or the device is down: it may come back
            for _ in range(most):
                length = self._socket.recv_into(self._buffer)
                yield list(datagrams(bytes(memoryview(self._buffer)[:length])))

    def take(self, most: int = 1_000) -> Iterator[Datagram]:
        """The same, one by one."""
        for frame in self.frames(most):
            yield from frame

    @property
    def missed(self) -> int:
        """Frames that the kernel could not keep for us."""
        statistics = self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 8)
        self._missed += struct.unpack("=II", statistics)[1]
        return self._missed

    def close(self) -> None:
        self._socket.close()


def datagrams(frame: bytes) -> Iterator[Datagram]:
    """The UDP datagrams of a virtio header and an Ethernet frame that `udp_filter` has passed; none if it is cut."""
    _, gso_type, _, gso_size, _, _ = _VNET.unpack_from(frame)
    packet = frame[_VNET.size + _ETHERNET :]
    if packet[0] >> 4 == 4:
        family, ends, start = socket.AF_INET, packet[12:20], 4 * (packet[0] & 15)
    else:
        family, ends, start = socket.AF_INET6, packet[8:40], 40
    sport, dport, length = struct.unpack_from("!HHH", packet, start)
    half = len(ends) // 2
    source, destination = (socket.inet_ntop(family, end) for end in (ends[:half], ends[half:]))
    data = packet[start + _UDP_HEADER : start + length]
    step = gso_size if gso_type & 0x7F == _GSO_UDP_L4 and gso_size else max(1, len(data))
    for at in range(0, len(data), step):
        yield Datagram(data[at : at + step], (source, sport), (destination, dport))


def read_capture(path: Path, gateway: End) -> tuple[list[Datagram], int]:
    """What a capture file (pcap, pcapng) has of datagrams to and from the gateway, and how many frames it had to leave
    out because they are several datagrams in one. Raises OSError and ValueError."""
    found: list[Datagram] = []
    joined = 0
    try:
        with PcapReader(str(path)) as packets:
            for packet in packets:
                datagram = _between(packet, gateway)
                if datagram is not None and len(datagram.data) > LONGEST:
                    joined += 1
                elif datagram is not None:
                    found.append(datagram)
    except Scapy_Exception as error:
        raise ValueError(f"{path} is no capture file that can be read: {error}") from None
    return found, joined


def _between(packet: Packet, gateway: End) -> Datagram | None:
    ip = packet.getlayer(IP) or packet.getlayer(IPv6)
    if ip is None or UDP not in ip:
        return None
    udp = ip[UDP]
    source, destination = (ip.src, udp.sport), (ip.dst, udp.dport)
    data = bytes(udp.payload)[: udp.len - _UDP_HEADER]
    return Datagram(data, source, destination) if gateway in (source, destination) and data else None
