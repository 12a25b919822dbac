"""Sealed datagrams onto a path: the last step of everything that carries a user's data."""

import struct
from typing import Final

from jvpn.protocol.constants import HEADER_SIZE, MAX_SEGMENTS, MAX_UDP_PAYLOAD, TAG_SIZE, PacketType
from jvpn.protocol.offload import OFFLOAD
from workers.counters import Counter
from workers.fragments import fragments
from workers.kept import Sent
from workers.paths import SendPath

#: What an inner packet may have when the outer path refused a datagram: 1 280 bytes less the overhead on IPv6.
_SMALL_MTU: Final = 1188

_HEADER_TAIL = struct.Struct(">12sQ")
_NONCE = struct.Struct(">IQ")


class SmallBatch:
    """Sealed small packets of one size and path, gathered for one UDP_SEGMENT send.

    `keep`: what goes out is kept by the session in case it has to go again.
    """

    def __init__(self, counters: "memoryview[int]", *, keep: bool) -> None:
        self._counters = counters
        self._keep = keep
        self._out = bytearray(MAX_UDP_PAYLOAD)
        self._view = memoryview(self._out)
        self._path: SendPath | None = None
        self._segment = 0
        self._used = 0
        self._inner_bytes = 0
        self._count = 0

    def add(
        self, path: SendPath, plaintext: bytes | memoryview, now_ns: int, prefix: bytes | None = None
    ) -> None:
        """Seal one plaintext now; send what was gathered first when the two cannot go together.

        `prefix`: the first 12 header bytes where they are not those of DATA.
        """
        size = HEADER_SIZE + len(plaintext) + TAG_SIZE
        if size > MAX_UDP_PAYLOAD:
            self._counters[Counter.SEND_TOO_BIG] += 1
            return
        if self._count and (
            path is not self._path
            or size > self._segment
            or self._count == MAX_SEGMENTS
            or self._used + size > MAX_UDP_PAYLOAD
        ):
            self.flush(now_ns)
        if not self._count:
            self._path, self._segment = path, size
        counter = path.session.take_counters(path.index, 1)
        at = self._used
        _HEADER_TAIL.pack_into(self._out, at, prefix or path.prefix, counter)
        body = at + HEADER_SIZE
        end = at + size
        path.session.phase.sealer()(
            _NONCE.pack(path.index, counter), plaintext, self._view[at:body], self._view[body:end]
        )
        self._used = end
        self._count += 1
        self._inner_bytes += len(plaintext) - OFFLOAD.size
        if size < self._segment:
            # A shorter datagram can only be a send's last.
            self.flush(now_ns)

    def add_fitting(self, path: SendPath, body: bytes | memoryview, now_ns: int, prefix: bytes) -> None:
        """`add`, or where that is too long for the path, FRAGMENTs (of a RESENT if `prefix` is one)."""
        room = path.mtu + OFFLOAD.size
        if len(body) <= room:
            self.add(path, body, now_ns, prefix)
            return
        self.flush(now_ns)
        resent = prefix[0] == PacketType.RESENT
        prefix = bytes((PacketType.FRAGMENT,)) + path.prefix[1:]
        for fragment in fragments(body, room, path.session.take_packet_id(), resent):
            self.add(path, fragment, now_ns, prefix)
        self.flush(now_ns)
        self._counters[Counter.FRAGMENTED_PACKETS] += 1

    def flush(self, now_ns: int) -> None:
        path = self._path
        if path is None or not self._count:
            return
        sealed = self._view[: self._used]
        send(self._counters, path, sealed, self._segment)
        if self._keep:
            keep(path, sealed, self._segment, now_ns)
        count_sent(self._counters, path, self._inner_bytes, self._count, now_ns)
        self._path = None
        self._used = self._count = self._inner_bytes = 0


def send(counters: "memoryview[int]", path: SendPath, data: memoryview, datagram: int) -> None:
    """Datagrams of `datagram` bytes (the last may be shorter), at most 64 of them; what is refused is counted."""
    refused = path.socket.send(data, datagram, path.destination, path.ancillary)
    datagrams = -(-len(data) // datagram)
    counters[Counter.UDP_WRITES] += 1
    if refused is None:
        counters[Counter.DATAGRAMS_SENT] += datagrams
        return
    counters[refused] += datagrams
    if refused is Counter.SEND_TOO_BIG:
        path.mtu = min(path.mtu, _SMALL_MTU)


def keep(path: SendPath, sealed: memoryview, datagram: int, now_ns: int) -> None:
    """Remember what was sent under the session's present phase, refused by the kernel or not."""
    session = path.session
    if session.sent_lately.keeps:
        session.sent_lately.add(Sent(now_ns, bytes(sealed), datagram, path.index, session.phase))


def count_sent(counters: "memoryview[int]", path: SendPath, size: int, packets: int, now_ns: int) -> None:
    counters[Counter.SENT_PACKETS] += packets
    counters[Counter.SENT_BYTES] += size
    path.session.sent(now_ns, size, packets)
