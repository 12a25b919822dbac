"""DATA plaintexts that no honest end seals, made of Scapy's layers (docs/protocol.md, "Validity").

Each maker takes the dice and the inner addresses (source, destination) of the session's genuine packets.
"""

import random
from collections.abc import Callable
from typing import Final

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

from vagrant.traffic.plaintexts import JVPOffload

#: Sources that are no session's own.
FOREIGN: Final = {4: "10.8.0.253", 6: "fd00:8::fd"}
_TCPV4, _UDP = 1, 5
_SLICE: Final = 500

Ends = tuple[str, str]


def abusive(dice: random.Random, genuine: Packet) -> tuple[str, Packet]:
    """The name of an abuse and a plaintext with it; `genuine` is the plaintext of one of the session's DATA."""
    inner = genuine.getlayer(IP) or genuine.getlayer(IPv6)
    ends = (inner.src, inner.dst) if inner is not None else ("10.8.0.2", "10.8.0.1")
    name = dice.choice(sorted(MAKERS))
    return name, MAKERS[name](dice, ends)


def bad_header(dice: random.Random, ends: Ends) -> Packet:
    """A good packet behind an offload header whose fields are at their edges."""
    transport = dice.choice((TCP, UDP))
    flags, segmentation = 0, 0
    while not flags and not segmentation:
        flags, segmentation = dice.choice((0, 1, 2, 3, 4, 255)), dice.choice((0, 1, 2, 3, 4, 5, 255))
    header = JVPOffload(
        flags=flags,
        segmentation=segmentation,
        segment_size=dice.choice((0, 1, 63, 64, 172, 180, 65_535)),
        checksum_start=dice.choice((0, 19, 20, 21, 40, 199, 65_535)),
        checksum_offset=dice.choice((0, 6, 16, 400, 65_535)),
    )
    return header / _ip(ends) / transport(sport=4_000, dport=9) / Raw(dice.randbytes(180))


def beyond_a_packet(dice: random.Random, ends: Ends) -> Packet:
    """A slice of a large packet that would end behind its 65 535 bytes, or that is longer than it says."""
    size = dice.choice((64, _SLICE, 65_535))
    header = JVPOffload(
        flags=dice.choice((1, 3)),
        segmentation=_TCPV4,
        segment_size=size,
        checksum_start=20,
        checksum_offset=dice.choice((65_535 // size + 1, 65_535, 0)),
    )
    return header / _ip(ends) / _segment() / Raw(dice.randbytes(_SLICE + dice.randrange(1, 64)))


def bad_segment(dice: random.Random, ends: Ends) -> Packet:
    """Headers that a large packet cannot have: SYN, RST or URG, a data offset beyond the end, a fragment."""
    ip, tcp = _ip(ends), _segment()
    what = dice.randrange(3)
    if what == 0:
        tcp.setfieldval("flags", dice.choice(("S", "R", "U", "SA", "FSRPAU")))
    elif what == 1:
        tcp.setfieldval("dataofs", dice.choice((0, 4, 15)))
    elif isinstance(ip, IP):
        ip.setfieldval("frag", dice.randrange(1, 0x2000))
    header = JVPOffload(flags=1, segmentation=_TCPV4, segment_size=_SLICE, checksum_start=20)
    return header / ip / tcp / Raw(bytes(_SLICE if what != 1 else 30))


def foreign_source(dice: random.Random, ends: Ends) -> Packet:
    """What is right in all but whom it says it is from, whole and as a slice."""
    version = 6 if ":" in ends[1] else 4
    ip = _ip((FOREIGN[version], ends[1]))
    if dice.randrange(2) or version == 6:
        return JVPOffload() / ip / UDP(sport=4_000, dport=9) / Raw(dice.randbytes(100))
    header = JVPOffload(flags=3, segmentation=_TCPV4, segment_size=_SLICE, checksum_start=20)
    return header / ip / _segment() / Raw(dice.randbytes(_SLICE))


def bad_packet(dice: random.Random, ends: Ends) -> Packet:
    """No offload, and an inner packet that tells lies about itself, is cut, or is none."""
    data = bytearray(bytes(_ip(ends) / UDP(sport=4_000, dport=9) / Raw(dice.randbytes(80))))
    what = dice.randrange(4)
    if what == 0:
        data[2:4] = dice.choice((b"\0\0", b"\xff\xff", b"\0\x14"))
    elif what == 1:
        data[0] = dice.choice((0x41, 0x4F, 0x55, 0x00, 0x60, 0xFF))
    elif what == 2:
        del data[dice.randrange(1, len(data)) :]
    else:
        data[:] = dice.randbytes(dice.randrange(1, 1_300))
    return JVPOffload() / Raw(bytes(data))


def too_short(dice: random.Random, _ends: Ends) -> Packet:
    """Less than an offload header and an IP header."""
    return Raw(dice.randbytes(dice.randrange(1, 28)))


MAKERS: Final[dict[str, Callable[[random.Random, Ends], Packet]]] = {
    maker.__name__: maker
    for maker in (bad_header, beyond_a_packet, bad_segment, foreign_source, bad_packet, too_short)
}


def _ip(ends: Ends) -> Packet:
    return (IPv6 if ":" in ends[1] else IP)(src=ends[0], dst=ends[1])


def _segment() -> Packet:
    return TCP(sport=4_000, dport=9, flags="A", seq=1, ack=1)
