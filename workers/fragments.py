"""FRAGMENT: a packet that no datagram of the path can carry, in parts (docs/protocol.md, "FRAGMENT").

packet id 4 ‖ offset 2 ‖ flags 1 (1 = last, 2 = the whole is a RESENT plaintext) ‖ zero 1 ‖ bytes
"""

import struct
from collections.abc import Iterator
from typing import Final

from jvpn.protocol.constants import PacketType

FRAGMENT_HEADER: Final = 8
_LAST, _RESENT = 1, 2
_HEADER = struct.Struct(">IHBB")
#: Per session: packets of which something is missing, and the parts of one.
IN_PROGRESS: Final = 32
MAX_PARTS: Final = 64


class FragmentError(Exception):
    """A fragment that breaks the format or does not fit what came before it."""


def fragments(body: bytes | memoryview, room: int, packet_id: int, resent: bool) -> Iterator[bytes]:
    """FRAGMENT plaintexts of `body`, each of at most `room` bytes and all as long as each other, but for the last."""
    count = -(-len(body) // (room - FRAGMENT_HEADER))
    size = -(-len(body) // count)
    for at in range(0, len(body), size):
        flags = (_LAST if at + size >= len(body) else 0) | (_RESENT if resent else 0)
        yield _HEADER.pack(packet_id, at, flags, 0) + bytes(body[at : at + size])


def is_last(fragment: bytes | bytearray) -> bool:
    return bool(fragment[6] & _LAST)


class _Parts:
    """What has come of one packet. `total` is known once the last part is there."""

    __slots__ = ("parts", "resent", "total")

    def __init__(self, resent: bool) -> None:
        self.parts: dict[int, bytes] = {}
        self.resent = resent
        self.total: int | None = None

    def whole(self) -> bytes | None:
        """All parts joined; None while one is missing. FragmentError when they overlap."""
        if self.total is None or sum(map(len, self.parts.values())) < self.total:
            return None
        at = 0
        for offset in sorted(self.parts):
            if offset != at:
                raise FragmentError("parts overlap")
            at += len(self.parts[offset])
        if at != self.total:
            raise FragmentError("parts behind the last")
        return b"".join(self.parts[offset] for offset in sorted(self.parts))


class Reassembly:
    """The packets of one session that are under way in parts; the one begun first makes room."""

    __slots__ = ("_dropped", "_packets")

    def __init__(self) -> None:
        self._packets: dict[tuple[int, int, int], _Parts] = {}
        self._dropped = 0

    def take_dropped(self) -> int:
        """Incomplete packets given up since the last call."""
        dropped, self._dropped = self._dropped, 0
        return dropped

    def add(self, index: int, generation: int, fragment: memoryview) -> tuple[PacketType, memoryview] | None:
        """The type (DATA or RESENT) and plaintext that `fragment` completes, if it does; it came on `index` under a
        counter of `generation`: a process that takes another's place counts its packets anew.

        Raises FragmentError; the packet is forgotten then.
        """
        if len(fragment) <= FRAGMENT_HEADER:
            raise FragmentError("no bytes")
        packet_id, offset, flags, zero = _HEADER.unpack_from(fragment)
        if zero or flags & ~(_LAST | _RESENT):
            raise FragmentError("unknown flags")
        key, resent = (index, generation, packet_id), bool(flags & _RESENT)
        known = self._packets.setdefault(key, _Parts(resent))
        body = bytes(fragment[FRAGMENT_HEADER:])
        try:
            self._join(known, resent, offset, body, bool(flags & _LAST))
            whole = known.whole()
        except FragmentError:
            del self._packets[key]
            raise
        if whole is not None:
            del self._packets[key]
            return PacketType.RESENT if resent else PacketType.DATA, memoryview(whole)
        while len(self._packets) > IN_PROGRESS:
            del self._packets[next(iter(self._packets))]
            self._dropped += 1
        return None

    @staticmethod
    def _join(known: _Parts, resent: bool, offset: int, body: bytes, last: bool) -> None:
        end = offset + len(body)
        if known.resent != resent or end > 0xFFFF or len(known.parts) >= MAX_PARTS or offset in known.parts:
            raise FragmentError("does not fit")
        if last:
            if known.total is not None:
                raise FragmentError("two last parts")
            known.total = end
        known.parts[offset] = body
