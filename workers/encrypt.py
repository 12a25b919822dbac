"""TUN → AEAD → UDP. The unit of work is the superpacket; a small packet waits only for others already there.

1  read      one superpacket or packet from the TUN, scattered into a prepared layout
2  route     inner destination → session → active path
3  cut       into slices of what the sender's kernel and the path carry
4  number    counters, nonces, headers, offload headers of all datagrams at once
5  seal      one call for all (bulk.py), or one `map` over the AEAD's encrypt_into
6  send      one sendmsg with UDP_SEGMENT; small packets of one size to one place share one
"""

import struct
from collections import deque
from typing import Final

import numpy as np

from jvpn.protocol.constants import HEADER_SIZE, MAX_SEGMENTS, MAX_UDP_PAYLOAD, MIN_MTU, TAG_SIZE
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
from workers.fair import QUEUED, READ_AHEAD, Crowd
from workers.gather import Gathering
from workers.kept import Waited
from workers.layouts import COUNT, MIN_FAST_SEGMENT, LayoutCache, SendLayout
from workers.narrow import clamp_mss, packet_too_big
from workers.paths import SendPath
from workers.send import count_sent, keep, send
from workers.sessions import Session
from workers.table import SessionTable
from workers.tun import VNET_HEADER_BYTES, TunLike

#: Per turn of the loop: 8 superpackets or 64 packets.
TURN: Final = 64
_SUPERPACKET_COST: Final = 8
_FAST_KINDS: Final = frozenset(Segmentation) - {Segmentation.NONE}
_WORD = struct.Struct(">Q")
_V = VNET_HEADER_BYTES
#: Between two Packet Too Big of a session; what comes between is sent in fragments.
_TOO_BIG_INTERVAL_NS: Final = 10_000_000


class Encryptor:
    """`turn` is called when the TUN is readable. `mtu` is the TUN's, in bytes."""

    def __init__(self, tun: TunLike, table: SessionTable, counters: "memoryview[int]", mtu: int) -> None:
        self._tun = tun
        self._table = table
        self._counters = counters
        self._layouts: LayoutCache[tuple[int, int], SendLayout] = LayoutCache()
        # IPv4 and TCP with timestamps: a guess, corrected by the first superpacket.
        self._layout = self._find_layout(52, max(mtu - 52, MIN_FAST_SEGMENT))
        self._small = Gathering(counters)
        self._mtu = mtu
        self.crowd: Crowd[Session, bytes] = Crowd()

    # 1 read

    def turn(self, now_ns: int) -> None:
        """Read until nothing is left or this turn's share is done; everything read is sent on return."""
        if self.fenced(now_ns):
            self._fenced_turn()
            return
        if self.crowd.active:
            self._crowded_turn(now_ns)
            return
        path: SendPath | None = None
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
                continue
            path = self._route(layout, size, now_ns)
            if path is not None:
                self._send(layout, size, path, now_ns)
            budget -= _SUPERPACKET_COST if layout.buffer[1] else 1
        else:
            self.crowd.full_turn(None if path is None else path.session, now_ns)
        self._small.flush(now_ns)
        if self._table.pool.lost:
            self.count_lost()

    def fenced(self, now_ns: int) -> bool:
        """Whether nothing may go: this gateway's sessions may be another's by now."""
        return self._table.fenced(now_ns)

    def _fenced_turn(self) -> None:
        for _ in range(TURN):
            try:
                self._tun.readv(self._layout.scatter)
            except OSError as error:
                self._counters[Counter.TUN_READ_ERROR] += not isinstance(error, BlockingIOError)
                return
            self._counters[Counter.TUN_READS] += 1
            self._counters[Counter.SENT_FENCED] += 1

    def _send(self, layout: SendLayout, size: int, path: SendPath, now_ns: int) -> None:
        if layout.buffer[1]:
            self._small.flush_path(path, now_ns)
            self._superpacket(layout, size, path, now_ns)
        else:
            self._packet(layout, size, path, now_ns)

    def _packet(self, layout: SendLayout, size: int, path: SendPath, now_ns: int) -> None:
        """A packet that is not segmented: plaintext of kind NONE, made in place."""
        buffer, view = layout.buffer, layout.view
        if size > layout.first_piece:
            buffer = bytearray(layout.read(size))
            view = memoryview(buffer)
        start = offset = 0
        partial = buffer[0] & PARTIAL
        if partial:
            _, _, _, _, start, offset = VIRTIO.unpack_from(buffer)
            protocol = buffer[_V + 9] if buffer[_V] >> 4 == 4 else buffer[_V + 6]
            if (protocol, offset) not in ((TCP, 16), (UDP, 6)):
                self._unusual(path, view[:size], now_ns)
                return
        if path.mtu < self._mtu and not self._narrow(path, view[_V:size], bool(partial), now_ns):
            return
        OFFLOAD.pack_into(buffer, _V - OFFLOAD.size, partial, 0, 0, start, offset)
        plaintext = view[_V - OFFLOAD.size : size]
        if size - _V > path.mtu:
            self._small.of(path, now_ns).add_fitting(path, plaintext, now_ns, path.prefix)
        else:
            self._small.of(path, now_ns).add(path, plaintext, now_ns)

    def _narrow(self, path: SendPath, packet: memoryview, partial: bool, now_ns: int) -> bool:
        """What a path that carries less than the TUN's MTU asks for; False when the packet is answered, not sent.

        Only once that is certain: a kernel remembers for minutes what it is told.
        """
        if not path.settled:
            return True
        clamp_mss(packet, path.mtu, partial)
        session = path.session
        longest = max(path.mtu, MIN_MTU)
        if len(packet) <= longest or now_ns < session.too_big_after_ns:
            return True
        answer = packet_too_big(packet, longest)
        if answer is None:
            return True
        session.too_big_after_ns = now_ns + _TOO_BIG_INTERVAL_NS
        self._counters[Counter.ANSWERED_TOO_BIG] += 1
        try:
            self._tun.writev([bytes(_V), answer])
        except OSError:
            self._counters[Counter.TUN_WRITE_ERROR] += 1
        return False

    def _superpacket(self, layout: SendLayout, size: int, path: SendPath, now_ns: int) -> None:
        buffer = layout.buffer
        _flags, kind, _length, slice_size, start, _offset = VIRTIO.unpack_from(buffer)
        kind &= ~GSO_ECN
        headers = start + 8
        usual = kind in _FAST_KINDS and _V + start + 20 <= min(size, layout.first_piece)
        if usual and kind != Segmentation.UDP:
            headers = start + (buffer[_V + start + 12] >> 4) * 4
            slice_size = min(slice_size, path.mtu - headers)
            usual = not buffer[_V + start + 13] & UNSEGMENTED_TCP
        elif headers + slice_size > path.mtu:
            usual = False
        if not usual or slice_size < MIN_FAST_SEGMENT or _V + headers >= size:
            self._unusual(path, memoryview(layout.read(size)), now_ns)
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
            self._small.of(path, now_ns).add_fitting(path, memoryview(plaintext), now_ns, path.prefix)

    # 2 route

    def _route(self, layout: SendLayout, size: int, now_ns: int) -> SendPath | None:
        """Where it goes now; None when it goes nowhere, or waits."""
        session = self._session(layout)
        if session is None:
            return None
        self.crowd.seen(session, now_ns)
        if session.direct is None:
            self._wait(session, layout.read(size), now_ns)
        return session.direct

    def _session(self, layout: SendLayout) -> Session | None:
        buffer = layout.buffer
        if buffer[_V] >> 4 == 4:
            session = self._table.route(bytes(buffer[_V + 16 : _V + 20]))
        else:
            session = self._table.route(bytes(buffer[_V + 24 : _V + 40]))
        if session is None:
            self._counters[Counter.NO_SESSION] += 1
        return session

    # What is more than can be sent

    def _crowded_turn(self, now_ns: int) -> None:
        """As `turn`, while one session floods the TUN's queue (fair.py)."""
        crowd = self.crowd
        crowd.begin_turn()
        self.send_crowded(now_ns)
        emptied = False
        for _ in range(READ_AHEAD if crowd.reads_ahead else 0):
            layout = self._layout
            try:
                size = self._tun.readv(layout.scatter)
            except OSError as error:
                emptied = True
                self._counters[Counter.TUN_READ_ERROR] += not isinstance(error, BlockingIOError)
                break
            self._counters[Counter.TUN_READS] += 1
            if size < _V + 20:
                self._counters[Counter.BAD_TUN_PACKET] += 1
                continue
            session = self._session(layout)
            if session is None:
                continue
            cost = _SUPERPACKET_COST if layout.buffer[1] else 1
            if not crowd.may_go(session, cost):
                if crowd.has_room(session, size):
                    crowd.add(session, layout.read(size), cost, size)
            elif session.direct is None:
                self._wait(session, layout.read(size), now_ns)
            else:
                self._send(layout, size, session.direct, now_ns)
        self._small.flush(now_ns)
        if self._table.pool.lost:
            self.count_lost()
        self._counters[Counter.SENT_CROWDED_OUT] += crowd.take_dropped()
        crowd.end_turn(emptied=emptied)

    def send_crowded(self, now_ns: int) -> None:
        """Send of what waits since a flood, each session in its turn."""
        left, fenced = QUEUED, self.fenced(now_ns)
        while left > 0 and (taken := self.crowd.take()):
            for session, packet, cost in taken:
                left -= cost
                if fenced:
                    self._counters[Counter.SENT_FENCED] += 1
                elif session.direct is None:
                    self._wait(session, packet, now_ns)
                else:
                    self._layout.fill(packet)
                    self._send(self._layout, len(packet), session.direct, now_ns)
        self._small.flush(now_ns)

    # What cannot go now

    def _wait(self, session: Session, packet: bytes, now_ns: int) -> None:
        if session.path is None:
            session.waits(now_ns)
        if not session.waiting.keeps:
            self._counters[Counter.NO_PATH] += 1
            return
        session.waiting.add(Waited(now_ns, packet))
        if session.early is not None:
            self.send_early(session, now_ns)

    def send_early(self, session: Session, now_ns: int) -> None:
        """What waits goes before the bind, as far as it may: whole superpackets, in their order."""
        # Nothing has swept the queue while the machine slept.
        session.waiting.trim(now_ns)
        while session.early is not None and session.waiting:
            count = _datagrams(session.waiting.first.data)
            if count > session.early_left:
                session.early = None
                return
            session.early_left -= count
            self.send_waited(session.early, session.waiting.take().data, now_ns)

    def send_waited(self, path: SendPath, packet: bytes, now_ns: int) -> None:
        """Send what was read from the TUN before as if it had just been read."""
        self._layout.fill(packet)
        self._send(self._layout, len(packet), path, now_ns)
        self._small.flush(now_ns)

    def count_lost(self) -> None:
        """What waited too long, or was too much."""
        self._counters[Counter.NO_PATH] += self._table.pool.lost
        self._table.pool.lost = 0

    # 3 cut

    def _move(self, layout: SendLayout, size: int, headers: int, slice_size: int) -> SendLayout:
        """The superpacket just read, in a layout that fits it (and is tried for the next read)."""
        whole = layout.read(size)
        layout = self._find_layout(headers, slice_size)
        layout.fill(whole)
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

        phase = path.session.phase
        seal, bulk = phase.sealer(), phase.bulk_sealer()
        if bulk is None or not bulk.run(layout.sealing, full):
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
            send(self._counters, path, layout.out_view[at : min(at + bunch, end)], layout.datagram)
        keep(path, layout.out_view[:end], layout.datagram, now_ns)
        count_sent(self._counters, path, payload + count * layout.headers, count, now_ns)


def _datagrams(packet: bytes) -> int:
    """How many datagrams a read from the TUN becomes, at most, on a path that does not cut it smaller."""
    _flags, kind, _length, size, _start, _offset = VIRTIO.unpack_from(packet)
    return -(-len(packet) // max(1, size)) if kind else 1
