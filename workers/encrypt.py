"""TUN → AEAD → UDP. The unit of work is the superpacket; a small packet waits only for others already there.

1  read      one superpacket or packet from the TUN, scattered into a prepared layout
2  route     inner destination → session → active path
3  cut       into slices of what the sender's kernel and the path carry
4  number    counters, nonces, headers, offload headers of all datagrams at once
5  seal      one `map` over the AEAD's encrypt_into
6  send      one sendmsg with UDP_SEGMENT; small packets of one size to one place share one
"""

import struct
from collections import deque
from typing import Final

import numpy as np

from jvpn.protocol.constants import HEADER_SIZE, MAX_SEGMENTS, MAX_UDP_PAYLOAD, TAG_SIZE
from jvpn.protocol.offload import (
    GSO_ECN,
    LAST,
    OFFLOAD,
    PARTIAL,
    TCP,
    UDP,
    UNSEGMENTED_TCP,
    VIRTIO,
    OffloadError,
    Segmentation,
    segment,
)
from workers.counters import Counter
from workers.layouts import COUNT, MIN_FAST_SEGMENT, LayoutCache, SendLayout
from workers.sessions import SendPath
from workers.table import SessionTable
from workers.tun import VNET_HEADER_BYTES, TunLike

#: Per turn of the loop: 8 superpackets or 64 packets.
TURN: Final = 64
_SUPERPACKET_COST: Final = 8
#: What TCP is cut to when the outer path refused a datagram: 1 280 bytes less the overhead on IPv6.
_SMALL_MTU: Final = 1188

_FAST_KINDS: Final = frozenset(Segmentation) - {Segmentation.NONE}
_HEADER_TAIL = struct.Struct(">12sQ")
_NONCE = struct.Struct(">IQ")
_V = VNET_HEADER_BYTES


class Encryptor:
    """`turn` is called when the TUN is readable. `mtu` is the TUN's, in bytes."""

    def __init__(self, tun: TunLike, table: SessionTable, counters: "memoryview[int]", mtu: int) -> None:
        self._tun = tun
        self._table = table
        self._counters = counters
        self._layouts: LayoutCache[tuple[int, int], SendLayout] = LayoutCache()
        # IPv4 and TCP with timestamps: a guess, corrected by the first superpacket.
        self._layout = self._find_layout(52, max(mtu - 52, MIN_FAST_SEGMENT))
        self._batch = SmallBatch(counters)

    # 1 read

    def turn(self, now_ns: int) -> None:
        """Read until nothing is left or this turn's share is done; everything read is sent on return."""
        budget = TURN
        while budget > 0:
            layout = self._layout
            try:
                size = self._tun.readv(layout.scatter)
            except BlockingIOError:
                break
            except OSError:
                self._counters[Counter.TUN_READ_ERROR] += 1
                break
            self._counters[Counter.TUN_READS] += 1
            if size < _V + 20:
                self._counters[Counter.BAD_TUN_PACKET] += 1
                budget -= 1
            elif layout.buffer[1]:
                self._batch.flush(now_ns)
                self._superpacket(layout, size, now_ns)
                budget -= _SUPERPACKET_COST
            else:
                self._packet(layout, size, now_ns)
                budget -= 1
        self._batch.flush(now_ns)

    def _packet(self, layout: SendLayout, size: int, now_ns: int) -> None:
        """A packet that is not segmented: plaintext of kind NONE, made in place."""
        buffer, view = layout.buffer, layout.view
        if size > layout.first_piece:
            buffer = bytearray(b"".join(layout.scatter)[:size])
            view = memoryview(buffer)
        path = self._route(buffer)
        if path is None:
            return
        start = offset = 0
        partial = buffer[0] & PARTIAL
        if partial:
            _, _, _, _, start, offset = VIRTIO.unpack_from(buffer)
            protocol = buffer[_V + 9] if buffer[_V] >> 4 == 4 else buffer[_V + 6]
            if (protocol, offset) not in ((TCP, 16), (UDP, 6)):
                self._unusual(path, view[:size], now_ns)
                return
        OFFLOAD.pack_into(buffer, _V - OFFLOAD.size, partial, 0, 0, start, offset)
        self._batch.add(path, view[_V - OFFLOAD.size : size], now_ns)

    def _superpacket(self, layout: SendLayout, size: int, now_ns: int) -> None:
        path = self._route(layout.buffer)
        if path is None:
            return
        buffer = layout.buffer
        _flags, kind, _length, slice_size, start, _offset = VIRTIO.unpack_from(buffer)
        kind &= ~GSO_ECN
        headers = start + 8
        usual = kind in _FAST_KINDS and _V + start + 20 <= min(size, layout.first_piece)
        if usual and kind != Segmentation.UDP:
            headers = start + (buffer[_V + start + 12] >> 4) * 4
            slice_size = min(slice_size, path.mtu - headers)
            usual = not buffer[_V + start + 13] & UNSEGMENTED_TCP
        if not usual or slice_size < MIN_FAST_SEGMENT or _V + headers >= size:
            self._unusual(path, memoryview(b"".join(layout.scatter)[:size]), now_ns)
            return
        if layout.headers != headers or layout.size != slice_size:
            layout = self._layout = self._move(layout, size, headers, slice_size)
        self._send_all(layout, path, kind, start, size - _V - headers, now_ns)

    def _unusual(self, path: SendPath, superpacket: memoryview, now_ns: int) -> None:
        """What the layouts do not fit goes through the protocol's reference, packet by packet."""
        try:
            plaintexts = segment(superpacket, path.mtu)
        except OffloadError:
            self._counters[Counter.BAD_TUN_PACKET] += 1
            return
        for plaintext in plaintexts:
            self._batch.add(path, memoryview(plaintext), now_ns)

    # 2 route

    def _route(self, buffer: bytearray) -> SendPath | None:
        if buffer[_V] >> 4 == 4:
            session = self._table.route(bytes(buffer[_V + 16 : _V + 20]))
        else:
            session = self._table.route(bytes(buffer[_V + 24 : _V + 40]))
        if session is None:
            self._counters[Counter.NO_SESSION] += 1
            return None
        if session.path is None:
            self._counters[Counter.NO_PATH] += 1
        return session.path

    # 3 cut

    def _move(self, layout: SendLayout, size: int, headers: int, slice_size: int) -> SendLayout:
        """The superpacket just read, in a layout that fits it (and is tried for the next read)."""
        whole = memoryview(b"".join(layout.scatter)[:size])
        layout = self._find_layout(headers, slice_size)
        at = 0
        for piece in layout.scatter:
            part = whole[at : at + len(piece)]
            piece[: len(part)] = part
            at += len(part)
            if at == size:
                break
        return layout

    def _find_layout(self, headers: int, slice_size: int) -> SendLayout:
        key = headers, slice_size
        return self._layouts.get(key) or self._layouts.put(key, SendLayout(headers, slice_size))

    # 4 number, 5 seal, 6 send

    def _send_all(
        self, layout: SendLayout, path: SendPath, kind: int, start: int, payload: int, now_ns: int
    ) -> None:
        full, tail = divmod(payload, layout.size)
        count = full + 1 if tail else full
        layout.stamp(path.prefix, path.index)
        counters = COUNT[:count] + np.uint64(path.session.take_counters(path.index, count))
        layout.counters[:count] = counters
        layout.nonce_counters[:count] = counters
        (word,) = _WORD.unpack(OFFLOAD.pack(PARTIAL, kind, layout.size, start, 0))
        layout.write_offload(word, LAST << 56, count)
        layout.header_rows[1:count] = layout.header_rows[0]

        seal = path.session.phase.sealer()
        deque(map(seal, layout.nonces, layout.plaintexts[:full], layout.aads, layout.sealed), maxlen=0)
        end = full * layout.datagram
        if tail:
            short = len(layout.plaintexts[0]) - layout.size + tail
            sealed = layout.sealed[full][: short + TAG_SIZE]
            seal(layout.nonces[full], layout.plaintexts[full][:short], layout.aads[full], sealed)
            end += HEADER_SIZE + short + TAG_SIZE

        # Equal parts: a lone datagram left over would cost both ends as much as dozens.
        sends = -(-count // min(MAX_SEGMENTS, MAX_UDP_PAYLOAD // layout.datagram))
        bunch = -(-count // sends) * layout.datagram
        for at in range(0, end, bunch):
            _send(self._counters, path, layout.out_view[at : min(at + bunch, end)], layout.datagram)
        _count_sent(self._counters, path, payload + count * layout.headers, count, now_ns)


_WORD = struct.Struct(">Q")


class SmallBatch:
    """Sealed small packets of one size and path, gathered for one UDP_SEGMENT send."""

    def __init__(self, counters: "memoryview[int]") -> None:
        self._counters = counters
        self._out = bytearray(MAX_UDP_PAYLOAD)
        self._view = memoryview(self._out)
        self._path: SendPath | None = None
        self._segment = 0
        self._used = 0
        self._inner_bytes = 0
        self._count = 0

    def add(self, path: SendPath, plaintext: memoryview, now_ns: int) -> None:
        """Seal one plaintext now; send what was gathered first when the two cannot go together."""
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
        _HEADER_TAIL.pack_into(self._out, at, path.prefix, counter)
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

    def flush(self, now_ns: int) -> None:
        path = self._path
        if path is None or not self._count:
            return
        _send(self._counters, path, self._view[: self._used], self._segment)
        _count_sent(self._counters, path, self._inner_bytes, self._count, now_ns)
        self._path = None
        self._used = self._count = self._inner_bytes = 0


def _send(counters: "memoryview[int]", path: SendPath, data: memoryview, datagram: int) -> None:
    refused = path.socket.send(data, datagram, path.destination, path.ancillary)
    datagrams = -(-len(data) // datagram)
    counters[Counter.UDP_WRITES] += 1
    if refused is None:
        counters[Counter.DATAGRAMS_SENT] += datagrams
        return
    counters[refused] += datagrams
    if refused is Counter.SEND_TOO_BIG:
        path.mtu = _SMALL_MTU


def _count_sent(counters: "memoryview[int]", path: SendPath, size: int, packets: int, now_ns: int) -> None:
    counters[Counter.SENT_PACKETS] += packets
    counters[Counter.SENT_BYTES] += size
    path.session.sent(now_ns, size, packets)
