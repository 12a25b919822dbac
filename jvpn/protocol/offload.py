"""The DATA plaintext: offload header, inner headers, payload slice (docs/protocol.md, "DATA plaintext").

    flags 1 ‖ segmentation 1 ‖ segment size 2 ‖ checksum start 2 ‖ checksum offset or segment index 2

`check` says whether a plaintext is valid. `segment` and `deliver` turn superpackets (a packet behind the kernel's
10-byte virtio_net_hdr, Linux include/uapi/linux/virtio_net.h) into plaintexts and back, one datagram at a time:
they are the reference that the batch pipelines in `workers` are tested against, and what these use for anything
out of the ordinary. Segmentation follows the kernel's (net/ipv4/tcp_offload.c, udp_offload.c).
"""

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Final, NamedTuple

from jvpn.protocol.constants import HEADER_SIZE, MAX_SEGMENTS, MAX_UDP_PAYLOAD, TAG_SIZE

Buffer = bytes | bytearray | memoryview


class Segmentation(IntEnum):
    """As in virtio_net_hdr.gso_type; its ECN bit (0x80) is not carried."""

    NONE = 0
    TCPV4 = 1
    TCPV6 = 4
    UDP = 5


#: Flags of the offload header. PARTIAL equals VIRTIO_NET_HDR_F_NEEDS_CSUM.
PARTIAL: Final = 1
LAST: Final = 2

OFFLOAD: Final = struct.Struct(">BBHHH")
#: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset; native order, as a TUN has it by default.
VIRTIO: Final = struct.Struct("=BBHHHH")
GSO_ECN: Final = 0x80

MIN_SEGMENT: Final = 64
MAX_PACKET: Final = 65_535

TCP: Final = 6
UDP: Final = 17
_CHECKSUM_OFFSET: Final = {TCP: 16, UDP: 6}
_MIN_TRANSPORT: Final = {TCP: 20, UDP: 8}
_FIN, _SYN, _RST, _PSH, _URG, _CWR = 0x01, 0x02, 0x04, 0x08, 0x20, 0x80
#: TCP flags that no segmented packet has.
UNSEGMENTED_TCP: Final = _SYN | _RST | _URG

_IPV4 = struct.Struct(">BxHxxHxBxx4s")
_IPV6 = struct.Struct(">BxxxHBx16s")
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
_EXTENSIONS = frozenset({_HOP_BY_HOP, _ROUTING, _DESTINATION})
_MAX_EXTENSIONS = 8

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")


class OffloadError(Exception):
    """A plaintext or superpacket that breaks the rules; `reason` is `bad_offload` or `bad_inner`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class Inner(NamedTuple):
    """A valid plaintext. `headers` is the length of the inner headers (0 for kind NONE, which has no slice).

    For kind NONE `segment_index` is the checksum offset. `source` is the inner source, 4 or 16 bytes.
    """

    flags: int
    kind: int
    size: int
    start: int
    segment_index: int
    headers: int
    source: bytes


def check(plaintext: Buffer) -> Inner:
    """Apply every validity rule of the protocol to one DATA plaintext. Raises OffloadError."""
    end = len(plaintext) - 8
    if end < 20:
        raise OffloadError("bad_inner", "shorter than an IP header")
    flags, kind, size, start, index = OFFLOAD.unpack_from(plaintext)
    if flags > 3:
        raise OffloadError("bad_offload", "unknown flags")
    first = plaintext[8]
    if first >> 4 == 4:
        _, total, fragment, protocol, source = _IPV4.unpack_from(plaintext, 8)
        transport = (first & 15) * 4
        if transport < 20 or transport > end:
            raise OffloadError("bad_inner", "IPv4 header length")
        plain = not fragment & 0x3FFF
        version = 4
    elif first >> 4 == 6 and end >= 40:
        _, payload, protocol, source = _IPV6.unpack_from(plaintext, 8)
        total, transport, plain = payload + 40, 40, True
        if protocol in _EXTENSIONS or protocol == _FRAGMENT:
            protocol, transport, plain = _walk(plaintext, protocol, end, kind)
        version = 6
    else:
        raise OffloadError("bad_inner", "neither IPv4 nor IPv6")
    if kind == 0:
        if total != end:
            raise OffloadError("bad_inner", "IP length")
        if flags & PARTIAL:
            if not plain or start != transport or _CHECKSUM_OFFSET.get(protocol) != index:
                raise OffloadError("bad_offload", "checksum position")
            if start + _MIN_TRANSPORT[protocol] > end:
                raise OffloadError("bad_inner", "transport header cut off")
        return Inner(flags, kind, size, start, index, 0, source)
    if not flags & PARTIAL or start != transport or not plain:
        raise OffloadError("bad_offload", "segmentation without a transport header to segment")
    headers = _segmented_headers(plaintext, kind, version, protocol, start, end)
    length = end - headers
    if size < MIN_SEGMENT or not (length == size or (flags & LAST and 0 < length < size)):
        raise OffloadError("bad_offload", "slice and segment size")
    if index * size + length > MAX_PACKET - headers:
        raise OffloadError("bad_offload", "segment index")
    return Inner(flags, kind, size, start, index, headers, source)


def _segmented_headers(
    plaintext: Buffer, kind: int, version: int, protocol: int, start: int, end: int
) -> int:
    """Length of the inner headers of a segmented packet."""
    if kind == Segmentation.UDP:
        matches, minimum = protocol == UDP, 8
    else:
        matches = protocol == TCP and kind == (Segmentation.TCPV4 if version == 4 else Segmentation.TCPV6)
        minimum = 20
    if not matches:
        raise OffloadError("bad_offload", "segmentation and protocol")
    if start + minimum > end:
        raise OffloadError("bad_inner", "transport header cut off")
    if protocol == UDP:
        return start + 8
    length = (plaintext[8 + start + 12] >> 4) * 4
    if length < 20 or start + length > end:
        raise OffloadError("bad_inner", "TCP header length")
    if plaintext[8 + start + 13] & UNSEGMENTED_TCP:
        raise OffloadError("bad_inner", "segmented SYN, RST or URG")
    return start + length


def _walk(plaintext: Buffer, protocol: int, end: int, kind: int) -> tuple[int, int, bool]:
    """Protocol and offset behind IPv6 extension headers (RFC 8200, 4); False when it is a fragment."""
    at = 40
    # One turn more than headers: the last looks at what follows them.
    for _ in range(_MAX_EXTENSIONS + 1):
        if protocol == _FRAGMENT:
            return protocol, at, False
        if protocol not in _EXTENSIONS:
            return protocol, at, True
        if protocol == _ROUTING and kind:
            # The pseudo header has the final destination, which only the routing header tells.
            raise OffloadError("bad_inner", "segmented packet with a routing header")
        if at + 8 > end:
            raise OffloadError("bad_inner", "extension header cut off")
        protocol, at = plaintext[8 + at], at + (plaintext[8 + at + 1] + 1) * 8
    raise OffloadError("bad_inner", "too many extension headers")


def longest_superpacket(mtu: int) -> int:
    """gso_max_size for a TUN of that MTU: the longest superpacket whose datagrams leave in one UDP_SEGMENT send.

    A longer one would cost two sends, two receives and two writes to the other TUN. The kernel takes its own reserve
    for headers off (sk_setup_caps in net/core/sock.c), more than the 40 bytes that a slice is shorter than the MTU.
    """
    datagrams = min(MAX_SEGMENTS, MAX_UDP_PAYLOAD // (HEADER_SIZE + OFFLOAD.size + mtu + TAG_SIZE))
    return datagrams * (mtu - 40)


def rewrite(headers: bytearray, at: int, inner: Inner, payload: int, last: bool) -> None:
    """Make the headers of a superpacket (at `at` in `headers`, to its end) fit a run of its segments.

    The run starts at segment inner.segment_index, has `payload` bytes and holds the last segment when `last`.
    Lengths, IP id and checksum, sequence number and TCP flags follow; the transport checksum becomes the pseudo
    header's sum.
    """
    size = len(headers) - at
    total = size + payload
    start = at + inner.start
    if headers[at] >> 4 == 4:
        _U16.pack_into(headers, at + 2, total)
        if inner.segment_index:
            (identification,) = _U16.unpack_from(headers, at + 4)
            _U16.pack_into(headers, at + 4, (identification + inner.segment_index) & 0xFFFF)
        headers[at + 10 : at + 12] = b"\0\0"
        _U16.pack_into(headers, at + 10, 0xFFFF - ones_sum(headers[at:start]))
        addresses = headers[at + 12 : at + 20]
    else:
        _U16.pack_into(headers, at + 4, total - 40)
        addresses = headers[at + 8 : at + 40]
    length = total - inner.start
    if inner.kind == Segmentation.UDP:
        _U16.pack_into(headers, start + 4, length)
        _U16.pack_into(headers, start + 6, ones_sum(addresses, UDP + length))
        return
    if inner.segment_index:
        (sequence,) = _U32.unpack_from(headers, start + 4)
        _U32.pack_into(headers, start + 4, (sequence + inner.segment_index * inner.size) & 0xFFFFFFFF)
        headers[start + 13] &= ~_CWR
    if not last:
        headers[start + 13] &= ~(_FIN | _PSH)
    _U16.pack_into(headers, start + 16, ones_sum(addresses, TCP + length))


def ones_sum(data: Buffer, initial: int = 0) -> int:
    """The folded ones' complement sum of RFC 1071 (not inverted) of `data`, zero-padded to 16-bit words."""
    # 65 536 is 1 modulo 65 535, so the sum of the words is the number itself modulo 65 535; 0 and 65 535 differ.
    number = int.from_bytes(data, "big")
    if len(data) & 1:
        number <<= 8
    number += initial
    return (number - 1) % 0xFFFF + 1 if number else 0


def segment(superpacket: Buffer, path_mtu: int = MAX_PACKET) -> list[bytes]:
    """The DATA plaintexts of one read from a TUN (virtio_net_hdr and packet), in order.

    TCP is cut so that no inner packet is longer than `path_mtu`. What the protocol cannot say as a segmented packet
    (small segments, SYN, RST, URG) becomes packets of kind NONE. Raises OffloadError when it is no such read.
    """
    if len(superpacket) < VIRTIO.size + 20:
        raise OffloadError("bad_inner", "shorter than an IP header")
    flags, kind, _header_length, size, start, offset = VIRTIO.unpack_from(superpacket)
    packet = bytes(superpacket[VIRTIO.size :])
    kind &= ~GSO_ECN
    if kind == Segmentation.NONE:
        return [_whole(packet, flags & PARTIAL, start, offset)]
    if kind not in (Segmentation.TCPV4, Segmentation.TCPV6, Segmentation.UDP) or not flags & PARTIAL:
        raise OffloadError("bad_offload", f"segmentation {kind} is not known")
    if start + 20 > len(packet):
        raise OffloadError("bad_inner", "transport header cut off")
    minimum = start + (8 if kind == Segmentation.UDP else 20)
    headers = minimum if kind == Segmentation.UDP else start + (packet[start + 12] >> 4) * 4
    if not minimum <= headers < len(packet) or size == 0:
        raise OffloadError("bad_inner", "transport header length")
    if kind != Segmentation.UDP:
        size = max(1, min(size, path_mtu - headers))
    slices = [packet[at : at + size] for at in range(headers, len(packet), size)]
    inners = [Inner(PARTIAL, kind, size, start, i, headers, b"") for i in range(len(slices))]
    inners[-1] = inners[-1]._replace(flags=PARTIAL | LAST)
    plaintexts = [
        OFFLOAD.pack(*inner[:5]) + packet[:headers] + piece
        for inner, piece in zip(inners, slices, strict=True)
    ]
    tcp_flags = packet[start + 13] if kind != Segmentation.UDP else 0
    if size >= MIN_SEGMENT and not tcp_flags & UNSEGMENTED_TCP:
        for plaintext in plaintexts:
            check(plaintext)
        return plaintexts
    offset = _CHECKSUM_OFFSET[UDP if kind == Segmentation.UDP else TCP]
    return [
        _whole(_single(plaintext, inner), PARTIAL, start, offset)
        for plaintext, inner in zip(plaintexts, inners, strict=True)
    ]


def deliver(plaintexts: Iterable[Buffer]) -> list[tuple[bytes, bytes]]:
    """(virtio_net_hdr, packet) of each DATA plaintext, each by itself. Raises OffloadError on the first invalid one."""
    out = []
    for plaintext in plaintexts:
        inner = check(plaintext)
        if inner.kind == Segmentation.NONE:
            out.append((virtio_header(inner, 0, False), bytes(plaintext[8:])))
        else:
            out.append((virtio_header(inner, inner.headers, False), _single(plaintext, inner)))
    return out


def virtio_header(inner: Inner, headers: int, several: bool, cwr: bool = False) -> bytes:
    """What to write to the TUN before a packet: of one segment, or of `several` that the kernel takes as one."""
    if inner.kind == Segmentation.NONE:
        if inner.flags & PARTIAL:
            return VIRTIO.pack(PARTIAL, 0, 0, 0, inner.start, inner.segment_index)
        return bytes(VIRTIO.size)
    offset = _CHECKSUM_OFFSET[UDP if inner.kind == Segmentation.UDP else TCP]
    if not several:
        return VIRTIO.pack(PARTIAL, 0, headers, 0, inner.start, offset)
    kind = inner.kind | (GSO_ECN if cwr else 0)
    return VIRTIO.pack(PARTIAL, kind, headers, inner.size, inner.start, offset)


def has_cwr(headers: Buffer, at: int, inner: Inner) -> bool:
    """Whether a TCP header says that its sender reduced its window (RFC 3168): such a superpacket needs GSO_ECN."""
    return inner.kind != Segmentation.UDP and bool(headers[at + inner.start + 13] & _CWR)


def _single(plaintext: Buffer, inner: Inner) -> bytes:
    """One segment as a packet, its checksum partial."""
    end = 8 + inner.headers
    headers = bytearray(plaintext[8:end])
    rewrite(headers, 0, inner, len(plaintext) - end, bool(inner.flags & LAST))
    return bytes(headers) + bytes(plaintext[end:])


def _whole(packet: bytes, partial: int, start: int, offset: int) -> bytes:
    """A packet as plaintext of kind NONE; a checksum that the protocol cannot leave out is filled in."""
    if not partial:
        plaintext = bytes(OFFLOAD.size) + packet
        check(plaintext)
        return plaintext
    plaintext = OFFLOAD.pack(PARTIAL, 0, 0, start, offset) + packet
    try:
        check(plaintext)
    except OffloadError:
        return _whole(fill_checksum(packet, start, offset), 0, 0, 0)
    return plaintext


def fill_checksum(packet: Buffer, start: int, offset: int) -> bytes:
    """Do what VIRTIO_NET_HDR_F_NEEDS_CSUM asks for. Raises OffloadError when the field is outside the packet."""
    if start + offset + 2 > len(packet):
        raise OffloadError("bad_inner", "checksum outside the packet")
    filled = bytearray(packet)
    # Zero means "no checksum" in UDP; 0xffff is the same number.
    _U16.pack_into(filled, start + offset, (0xFFFF - ones_sum(filled[start:])) or 0xFFFF)
    return bytes(filled)
