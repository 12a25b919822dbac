"""Frames as packet sockets with PACKET_VNET_HDR have them: behind a virtio_net_hdr (virtio 1.2 section 5.1.6)."""

from __future__ import annotations

import struct

VNET_BYTES = 10
ETHERNET_BYTES = 14
_VNET = struct.Struct("=BBHHHH")
GSO_NONE, GSO_UDP_L4, GSO_ECN = 0, 5, 0x80
NEEDS_CSUM, DATA_VALID = 1, 2


def wire_size(frame: bytearray | memoryview, length: int) -> tuple[int, int]:
    """(bytes on the wire, frames on the wire) of *length* bytes of virtio header and frame in *frame*."""
    frame_bytes = length - VNET_BYTES
    _, gso_type, _, gso_size, transport, _ = _VNET.unpack_from(frame)
    if gso_type == GSO_NONE or gso_size == 0:
        return frame_bytes, 1
    if gso_type & ~GSO_ECN == GSO_UDP_L4:
        header_bytes = transport + 8
    else:
        header_bytes = transport + (frame[VNET_BYTES + transport + 12] >> 4) * 4
    segments = max(1, -(-(frame_bytes - header_bytes) // gso_size))
    return frame_bytes + (segments - 1) * header_bytes, segments


def carries_ip(frame: bytearray) -> bool:
    """Whether the frame behind the virtio header is IPv4 or IPv6."""
    return bytes(frame[VNET_BYTES + 12 : VNET_BYTES + ETHERNET_BYTES]) in (b"\x08\x00", b"\x86\xdd")


def damage(frame: bytearray, length: int, bit: int) -> None:
    """Flip *bit*, counted from the end of the Ethernet header, in *length* bytes of virtio header and frame.

    A checksum that the sender left to its device is filled in before, as it is on a wire, and none is vouched for:
    who receives sees for itself. A superpacket's cannot be, its segments get good ones.
    """
    flags, gso_type, _, _, start, offset = _VNET.unpack_from(frame)
    if gso_type == GSO_NONE:
        if flags & NEEDS_CSUM:
            begin = VNET_BYTES + start
            checksum = internet_checksum(frame[begin:length])
            struct.pack_into("!H", frame, begin + offset, checksum or 0xFFFF)
        frame[0] = flags & ~(NEEDS_CSUM | DATA_VALID)
    frame[VNET_BYTES + ETHERNET_BYTES + bit // 8] ^= 1 << bit % 8


def internet_checksum(data: bytes | bytearray) -> int:
    """RFC 1071 over *data*, which has the pseudo header's sum where the checksum goes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
