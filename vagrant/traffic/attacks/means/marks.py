"""Ethernet frames with marks for segmentation and checksum that do not suit them (virtio 1.2, 5.1.6, by packet(7))."""

import random
import socket
import struct
from typing import Final

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from jvpn.protocol.constants import HEADER_SIZE
from vagrant.traffic.attacks.means.filters import End
from vagrant.traffic.attacks.means.sources import next_hop
from vagrant.traffic.attacks.means.tap import Datagram

_SOL_PACKET: Final = 263
_VNET_HDR: Final = 15
_VNET: Final = struct.Struct("=BBHHHH")
#: VIRTIO_NET_HDR_GSO_NONE, TCPV4, UDP, TCPV6, UDP_L4; the last two with the bit that says ECN.
_SEGMENTATIONS: Final = (0, 1, 3, 4, 5, 0x81, 0x85)
#: VIRTIO_NET_HDR_F_NEEDS_CSUM, DATA_VALID, RSC_INFO.
_FLAGS: Final = (0, 1, 2, 3, 4)


class MarkedFrames:
    """A packet socket on the device towards the gateway."""

    def __init__(self, device: str, gateway: End) -> None:
        """Raises Failed when the next hop is not known, and OSError."""
        self._gateway = gateway
        self._head = Ether(dst=next_hop(device, gateway[0]))
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
        self._socket.bind((device, 0))
        self._head.src = self._socket.getsockname()[4]

    def send(self, dice: random.Random, shown: Datagram) -> int | None:
        """One frame with the client's source and the header that was shown. Its bytes; None: the kernel has refused it,
        as it refuses most that it can see through."""
        data = shown.data[:HEADER_SIZE] + dice.randbytes(dice.choice((44, 1_400, 3_000, 20_000)))
        ip = (IPv6 if ":" in self._gateway[0] else IP)(src=shown.source[0], dst=self._gateway[0])
        frame = self._head / ip / UDP(sport=shown.source[1], dport=self._gateway[1]) / Raw(data)
        try:
            self._socket.send(marks(dice, udp_at=len(self._head / ip), size=len(data)) + bytes(frame))
        except OSError:
            return None
        return len(data)

    def close(self) -> None:
        self._socket.close()


def marks(dice: random.Random, *, udp_at: int, size: int) -> bytes:
    """A virtio header for a UDP datagram of `size` bytes whose UDP header is at `udp_at`: seldom right, often near."""
    if dice.randrange(4) == 0:
        # Right but for the size of its segments, so that it arrives as one.
        return _VNET.pack(
            1, 5, udp_at + 8, dice.choice((1, 7, 19, 20, 63, 1_000, max(1, size - 1))), udp_at, 6
        )
    return _VNET.pack(
        dice.choice(_FLAGS),
        dice.choice(_SEGMENTATIONS),
        dice.choice((0, udp_at, udp_at + 8, 65_535)),
        dice.choice((0, 1, 536, 1_400, 65_535)),
        dice.choice((0, udp_at, udp_at + 1, 65_535)),
        dice.choice((0, 6, 16, 65_535)),
    )
