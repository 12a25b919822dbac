"""FRAGMENT: DATA plaintexts that are too long for one datagram, cut and put together.

An independent client, made from docs/protocol.md alone; imports nothing of jvpn.
"""

import struct
from collections import OrderedDict
from dataclasses import dataclass, field

from .wire import Refused

LAST, RESENT = 1, 2
INCOMPLETE_KEPT = 32


def cut(plaintext: bytes, packet_id: int, size: int) -> list[bytes]:
    """The FRAGMENT plaintexts of a DATA plaintext, each with at most `size` bytes of it."""
    starts = range(0, len(plaintext), size)
    return [
        struct.pack(">IHBB", packet_id, at, LAST if at == starts[-1] else 0, 0) + plaintext[at : at + size]
        for at in starts
    ]


@dataclass
class _Packet:
    parts: dict[int, bytes] = field(default_factory=dict)
    end: int | None = None
    resent: bool = False


class Fragments:
    """Packets in reassembly, by index, generation and packet id."""

    def __init__(self) -> None:
        self._packets: OrderedDict[tuple[int, int, int], _Packet] = OrderedDict()

    def take(self, index: int, counter: int, plaintext: bytes) -> tuple[bytes, bool] | None:
        """The whole plaintext and whether it is a RESENT's, once what came under `counter` completes it. Raises
        Refused."""
        if len(plaintext) <= 8 or plaintext[6] & ~3 or plaintext[7]:
            raise Refused("bad_fragment")
        packet_id, at, flags = struct.unpack_from(">IHB", plaintext)
        key, body = (index, counter >> 48, packet_id), plaintext[8:]
        packet = self._packets.setdefault(key, _Packet(resent=bool(flags & RESENT)))
        if flags & LAST and packet.end is None:
            packet.end = at + len(body)
        elif flags & LAST:
            del self._packets[key]
            raise Refused("bad_fragment")
        twice = at in packet.parts
        packet.parts[at] = body
        if twice or not self._fits(packet):
            del self._packets[key]
            raise Refused("bad_fragment")
        if sum(map(len, packet.parts.values())) == packet.end:
            del self._packets[key]
            return b"".join(packet.parts[start] for start in sorted(packet.parts)), packet.resent
        while len(self._packets) > INCOMPLETE_KEPT:
            self._packets.popitem(last=False)
        return None

    def _fits(self, packet: _Packet) -> bool:
        """No part overlaps the next, and none lies behind the last."""
        free = 0
        for start in sorted(packet.parts):
            if start < free:
                return False
            free = start + len(packet.parts[start])
        return packet.end is None or free <= packet.end
