"""IP packets with UDP in them, put together quickly: floods need thousands, and what passes is sent on at once.

Headers after RFC 791, RFC 8200 and RFC 768; Scapy makes what is inside.
"""

import socket
import struct
from typing import Final

from vagrant.traffic.attacks.means.filters import End

_UDP: Final = struct.Struct("!HHHH")
_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
_IPV6: Final = struct.Struct("!IHBB16s16s")
HOPS: Final = 64
IPV4_OVERHEAD, IPV6_OVERHEAD = _IPV4.size + _UDP.size, _IPV6.size + _UDP.size


def packet(source: End, destination: End, data: bytes) -> bytes:
    """A whole IP packet, of the family of its source; the sum of an IPv4 header is left to the kernel (raw(7))."""
    family = socket.AF_INET6 if ":" in source[0] else socket.AF_INET
    ends = socket.inet_pton(family, source[0]), socket.inet_pton(family, destination[0])
    length = _UDP.size + len(data)
    pseudo = b"".join(ends) + struct.pack("!HH", socket.IPPROTO_UDP, length)
    checksum = _checksum(pseudo + _UDP.pack(source[1], destination[1], length, 0) + data)
    udp = _UDP.pack(source[1], destination[1], length, checksum) + data
    if family == socket.AF_INET6:
        return _IPV6.pack(6 << 28, length, socket.IPPROTO_UDP, HOPS, *ends) + udp
    return _IPV4.pack(0x45, 0, _IPV4.size + length, 0, 0, HOPS, socket.IPPROTO_UDP, 0, *ends) + udp


def _checksum(data: bytes) -> int:
    """The ones' complement of the ones' complement sum (RFC 1071): that of 16-bit words is the number modulo 0xFFFF."""
    number = int.from_bytes(data + b"\0" * (len(data) % 2), "big") % 0xFFFF
    return (0xFFFF - number) or 0xFFFF
