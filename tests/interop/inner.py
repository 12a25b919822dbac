"""The inner end of the tunnel without a TUN device: IPv4 with ICMP echo and UDP, and DATA of all segmentations.

An independent client, made from docs/protocol.md alone; imports nothing of jvpn.
"""

import ipaddress
import struct

from .wire import Refused

ICMP, TCP, UDP = 1, 6, 17
NEEDS_CHECKSUM, LAST = 1, 2


def ones_sum(data: bytes | bytearray) -> int:
    """Folded ones' complement sum (RFC 1071), not inverted."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) & ~1]))
    if len(data) & 1:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes | bytearray) -> int:
    return 0xFFFF - ones_sum(data)


def ipv4(source: str, destination: str, protocol: int, payload: bytes, identification: int = 0) -> bytes:
    ends = ipaddress.IPv4Address(source).packed + ipaddress.IPv4Address(destination).packed
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), identification & 0xFFFF, 0, 64, protocol, 0)
    return head[:10] + checksum(head + ends).to_bytes(2, "big") + ends + payload


def echo(source: str, destination: str, kind: int, identifier: int, sequence: int, data: bytes) -> bytes:
    """An ICMP echo request (kind 8) or reply (kind 0)."""
    head = struct.pack(">BBHHH", kind, 0, 0, identifier, sequence)
    body = head[:2] + checksum(head + data).to_bytes(2, "big") + head[4:] + data
    return ipv4(source, destination, ICMP, body, sequence)


def udp(source: str, destination: str, source_port: int, destination_port: int, data: bytes) -> bytes:
    head = struct.pack(">HHHH", source_port, destination_port, 8 + len(data), 0)
    ends = ipaddress.IPv4Address(source).packed + ipaddress.IPv4Address(destination).packed
    pseudo = ends + struct.pack(">BBH", 0, UDP, 8 + len(data))
    value = checksum(pseudo + head + data) or 0xFFFF
    return ipv4(source, destination, UDP, head[:6] + value.to_bytes(2, "big") + data)


def packet_is_sound(packet: bytes) -> bool:
    """An IPv4 packet whose lengths and checksums are all right."""
    if len(packet) < 20 or packet[0] != 0x45 or int.from_bytes(packet[2:4], "big") != len(packet):
        return False
    if ones_sum(packet[:20]) != 0xFFFF:
        return False
    body = packet[20:]
    if packet[9] == ICMP:
        return ones_sum(body) == 0xFFFF
    pseudo = packet[12:20] + struct.pack(">BBH", 0, packet[9], len(body))
    if packet[9] == UDP:
        return int.from_bytes(body[4:6], "big") == len(body) and ones_sum(pseudo + body) == 0xFFFF
    return packet[9] == TCP and ones_sum(pseudo + body) == 0xFFFF


def packet_of(plaintext: bytes) -> bytes:
    """The inner packet that a DATA plaintext becomes at its receiver. Raises Refused."""
    if len(plaintext) < 28:
        raise Refused("bad_offload")
    flags, segmentation, size, start, last = struct.unpack_from(">BBHHH", plaintext)
    packet = bytearray(plaintext[8:])
    if flags & ~3:
        raise Refused("bad_offload")
    transport, protocol, plain = _transport(packet)
    v4 = packet[0] >> 4 == 4
    if segmentation == 0:
        length = int.from_bytes(packet[2:4], "big") if v4 else int.from_bytes(packet[4:6], "big") + 40
        if length != len(packet):
            raise Refused("bad_inner")
        if flags & NEEDS_CHECKSUM:
            field, smallest = {TCP: (16, 20), UDP: (6, 8)}.get(protocol, (0, 0))
            if not (plain and field == last and start == transport and transport + smallest <= len(packet)):
                raise Refused("bad_offload")
            _put(packet, start + field, checksum(packet[start:]) or 0xFFFF)
        return bytes(packet)
    wanted = {1: (TCP, True), 4: (TCP, False), 5: (UDP, v4)}.get(segmentation)
    if not (flags & NEEDS_CHECKSUM and plain and start == transport and wanted == (protocol, v4)):
        raise Refused("bad_offload")
    return _segment(packet, transport, protocol, v4, size, last, bool(flags & LAST))


def _segment(
    packet: bytearray, transport: int, protocol: int, v4: bool, size: int, number: int, last: bool
) -> bytes:
    headers = transport + (8 if protocol == UDP else 20)
    if headers > len(packet):
        raise Refused("bad_offload")
    if protocol == TCP:
        headers = transport + (packet[transport + 12] >> 4) * 4
        if headers < transport + 20 or packet[transport + 13] & 0x26:
            raise Refused("bad_offload")
    piece = len(packet) - headers
    whole = piece == size or (0 < piece < size and last)
    if size < 64 or not whole or number * size + piece > 65535 - headers:
        raise Refused("bad_offload")
    if v4:
        _put(packet, 2, len(packet))
        _put(packet, 4, (int.from_bytes(packet[4:6], "big") + number) & 0xFFFF)
        _put(packet, 10, 0)
        _put(packet, 10, checksum(packet[: (packet[0] & 15) * 4]))
        ends = packet[12:20]
    else:
        _put(packet, 4, len(packet) - 40)
        ends = packet[8:40]
    field = 6
    if protocol == TCP:
        field = 16
        sequence = int.from_bytes(packet[transport + 4 : transport + 8], "big") + number * size
        packet[transport + 4 : transport + 8] = (sequence & 0xFFFFFFFF).to_bytes(4, "big")
        packet[transport + 13] &= 0xFF if last else ~0x09 & 0xFF
        packet[transport + 13] &= 0x7F if number else 0xFF
    else:
        _put(packet, transport + 4, 8 + piece)
    _put(packet, transport + field, 0)
    body = bytes(packet[transport:])
    pseudo = bytes(ends) + struct.pack(">II", len(body), protocol)
    _put(packet, transport + field, checksum(pseudo + body) or 0xFFFF)
    return bytes(packet)


def _transport(packet: bytearray) -> tuple[int, int, bool]:
    """Offset and protocol of the transport header, and whether the packet is plain. Raises Refused."""
    end = len(packet)
    if packet[0] >> 4 == 4:
        size = (packet[0] & 15) * 4
        if not 20 <= size <= end:
            raise Refused("bad_inner")
        return size, packet[9], int.from_bytes(packet[6:8], "big") & 0x3FFF == 0
    if packet[0] >> 4 != 6 or end < 40:
        raise Refused("bad_inner")
    at, following = 40, packet[6]
    for _ in range(8):
        if following not in (0, 43, 60):
            break
        if at + 8 > end:
            raise Refused("bad_inner")
        at, following = at + 8 * (packet[at + 1] + 1), packet[at]
        if at > end:
            raise Refused("bad_inner")
    return at, following, following != 44


def _put(packet: bytearray, at: int, value: int) -> None:
    packet[at : at + 2] = value.to_bytes(2, "big")
