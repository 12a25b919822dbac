"""Inner packets and a path that carries less than they hope for: MSS in SYNs, Packet Too Big."""

import struct
from typing import Final

from jvpn.protocol.offload import TCP, ones_sum

_SYN: Final = 0x02
_MSS_OPTION, _NOP, _END = 2, 1, 0
_ICMP, _ICMPV6 = 1, 58
_ICMP_ECHO: Final = frozenset({0, 8})
_DF: Final = 0x40
_U16 = struct.Struct(">H")


def clamp_mss(packet: memoryview, mtu: int, partial: bool) -> None:
    """Lower the MSS option of a TCP SYN to what packets of `mtu` bytes hold (RFC 9293, 3.7.1).

    `partial`: the checksum field covers the pseudo header only; else it is corrected (RFC 1624).
    """
    ipv4 = packet[0] >> 4 == 4
    start = (packet[0] & 15) * 4 if ipv4 else 40
    protocol = packet[9] if ipv4 else packet[6]
    if protocol != TCP or len(packet) < start + 20 or not packet[start + 13] & _SYN:
        return
    if ipv4 and (packet[6] & 0x3F or packet[7]):
        return
    at, end = start + 20, min(len(packet), start + (packet[start + 12] >> 4) * 4)
    while at + 1 < end and packet[at] != _END:
        if packet[at] == _NOP:
            at += 1
        elif packet[at] == _MSS_OPTION and packet[at + 1] == 4 and at + 4 <= end:
            _lower(packet, start, at + 2, mtu - start - 20, partial)
            return
        else:
            at += max(2, packet[at + 1])


def _lower(packet: memoryview, start: int, at: int, mss: int, partial: bool) -> None:
    (before,) = _U16.unpack_from(packet, at)
    if before <= mss:
        return
    _U16.pack_into(packet, at, mss)
    if partial:
        return
    # An option may stand at an odd place: then its bytes lie in two words of the sum, each in the other half.
    swap = (at - start) & 1
    old, new = (_swapped(before), _swapped(mss)) if swap else (before, mss)
    (checksum,) = _U16.unpack_from(packet, start + 16)
    total = (~checksum & 0xFFFF) + (~old & 0xFFFF) + new
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    _U16.pack_into(packet, start + 16, ~total & 0xFFFF)


def _swapped(word: int) -> int:
    return (word >> 8) | (word & 0xFF) << 8


def packet_too_big(packet: memoryview, mtu: int) -> bytes | None:
    """The ICMP answer that says so to the sender of `packet`, as if from its destination (RFC 1191, RFC 4443).

    None where there is none: IPv4 that may be fragmented, and ICMP errors.
    """
    return _too_big_4(packet, mtu) if packet[0] >> 4 == 4 else _too_big_6(packet, mtu)


def _too_big_4(packet: memoryview, mtu: int) -> bytes | None:
    header = (packet[0] & 15) * 4
    if not packet[6] & _DF or header < 20 or len(packet) < header + 8:
        return None
    if packet[9] == _ICMP and packet[header] not in _ICMP_ECHO:
        return None
    message = struct.pack(">BBHHH", 3, 4, 0, 0, mtu) + bytes(packet[: header + 8])
    message = message[:2] + _U16.pack(0xFFFF - ones_sum(message)) + message[4:]
    outer = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(message), 0, 0, 64, _ICMP, 0)
    outer += bytes(packet[16:20]) + bytes(packet[12:16])
    return outer[:10] + _U16.pack(0xFFFF - ones_sum(outer)) + outer[12:] + message


def _too_big_6(packet: memoryview, mtu: int) -> bytes | None:
    if packet[6] == _ICMPV6 and packet[40] < 128:
        return None
    message = struct.pack(">BBHI", 2, 0, 0, mtu) + bytes(packet[: 1280 - 48])
    addresses = bytes(packet[24:40]) + bytes(packet[8:24])
    pseudo = addresses + struct.pack(">II", len(message), _ICMPV6)
    checksum = 0xFFFF - ones_sum(pseudo + message)
    message = message[:2] + _U16.pack(checksum) + message[4:]
    return struct.pack(">IHBB", 6 << 28, len(message), _ICMPV6, 64) + addresses + message
