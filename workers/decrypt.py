"""UDP → AEAD → TUN. The unit of work is one GRO run; every datagram in it is judged by its own header.

    1  receive   one run of datagrams into the one buffer
    2  judge     type, version, phase, steering id, role, source: vectorised when all headers say the same
    3  open      one call for all (bulk.py), or one `map` over the AEAD's decrypt_into
    4  replay    the window takes the whole batch, the page learns the highest counter
    5  deliver   checked, joined and written to the TUN (deliver.py)

The kernel joins whatever comes from one address, so a forgery stands in the midst or at the end of a run of genuine
datagrams, and must not cost these their batch. A run whose headers differ is taken in stretches that are alike; of one
in which a tag is wrong, the others are taken (without bulk.py it is opened again, one by one). What is not DATA of one
index, or of a size that is new, goes datagram by datagram (singles.py). All to the same result, but for a key's limit
of forgeries, which a batch meets at its end.
"""

import struct
from collections import deque
from collections.abc import Iterator
from itertools import groupby
from typing import Final

from cryptography.exceptions import InvalidTag

from jvpn.protocol.constants import (
    HEADER_SIZE,
    OFFLOAD_HEADER_SIZE,
    TAG_SIZE,
    VERSION,
    PacketType,
)
from workers.answers import Answers
from workers.bulk import LEAST
from workers.counters import Counter
from workers.deliver import Delivery
from workers.fair import QUEUED, READ_AHEAD, Crowd
from workers.keys import Phase
from workers.layouts import LayoutCache, ReceiveLayout, consecutive
from workers.page import Page
from workers.paths import PathEntry
from workers.sessions import NO_COUNTER, Session
from workers.singles import Singles
from workers.table import SessionTable
from workers.udp import RECEIVE_BYTES, Address, Received, UdpSocket

#: GRO runs of one socket per turn of the loop.
TURN: Final = 8
_PREFIX: Final = 12
#: Whole datagrams of a run whose size is likely to come again: packets of many sizes make runs of two or three.
_LONG: Final = 4
#: Datagrams of a run that cost as much as one alone.
_CHEAP: Final = 8
_STRANGERS: Final[Address] = ("", 0)
_COUNTER: Final = struct.Struct(">Q")
_HEADER: Final = struct.Struct(">12sQ")
_NONCE: Final = struct.Struct(">IQ")
_MIN_DATA: Final = HEADER_SIZE + OFFLOAD_HEADER_SIZE + 20 + TAG_SIZE


class Decryptor:
    """`turn` is called when a socket is readable."""

    def __init__(
        self,
        table: SessionTable,
        delivery: Delivery,
        singles: Singles,
        answers: Answers,
        counters: "memoryview[int]",
    ) -> None:
        self._table = table
        self._page: Page = table.page
        self._delivery = delivery
        self._singles = singles
        self._answers = answers
        self._counters = counters
        self._buffer = bytearray(RECEIVE_BYTES)
        self._view = memoryview(self._buffer)
        self._tail = memoryview(bytearray(RECEIVE_BYTES))
        self.layouts: LayoutCache[int, ReceiveLayout] = LayoutCache()
        self.crowd: Crowd[Address | Session, tuple[UdpSocket, Received, bytes]] = Crowd()

    # 1 receive

    def turn(self, udp: UdpSocket, now_ns: int) -> None:
        """Take what the socket has, at most this turn's share."""
        if self._table.fenced(now_ns):
            self._fenced_turn(udp, now_ns)
            return
        if self.crowd.active:
            self._crowded_turn(udp, now_ns)
            return
        owner: Address | Session | None = None
        for at in range(TURN):
            try:
                received = udp.receive(self._view)
            except OSError:
                self._counters[Counter.UDP_READ_ERROR] += 1
                continue
            if received is None:
                return
            self.crowd.seen(received.source, now_ns)
            if at == TURN - 1 and self._table.gateway:
                owner = self._owner(received, now_ns)
            self._take(udp, received, now_ns)
        self.crowd.full_turn(owner, now_ns)

    def _take(self, udp: UdpSocket, received: Received, now_ns: int) -> None:
        """What is in the buffer."""
        self._count(received)
        if self._at_once(received, now_ns):
            return
        for stretch, long in self._stretches(received):
            if not long or stretch.size == received.size or not self._at_once(stretch, now_ns):
                self._one_by_one(udp, stretch, now_ns)

    def _at_once(self, received: Received, now_ns: int) -> bool:
        """False, and nothing done, when it needs to go one by one."""
        if received.size > received.segment:
            return self._batch(received, now_ns)
        return self._lone(received, now_ns)

    def _stretches(self, received: Received) -> Iterator[tuple[Received, bool]]:
        """The run in pieces, each at the buffer's front when it is its turn; and whether all its headers say the same,
        in so many datagrams that they are worth a batch."""
        segment = received.segment
        if self.layouts.get(segment) is None:
            yield received, False
            return
        heads = [
            bytes(self._buffer[at : at + _PREFIX]) if at + _MIN_DATA <= received.size else b""
            for at in range(0, received.size, segment)
        ]
        pieces: list[tuple[int, bool]] = []
        for _, alike in groupby(heads):
            count = len(list(alike))
            long = count >= LEAST
            # Short ones go together, or a run of ever other headers would cost more than its datagrams.
            if pieces and not long and not pieces[-1][1]:
                count += pieces.pop()[0]
            pieces.append((count, long))
        at = 0
        for count, long in pieces:
            size = min(count * segment, received.size - at)
            if at:
                self._buffer[:size] = self._buffer[at : at + size]
            at += size
            yield received._replace(size=size, segment=min(segment, size)), long

    def _take_fenced(self, udp: UdpSocket, received: Received, now_ns: int) -> None:
        """As `_take`, while the sessions may be another gateway's."""
        self._count(received)
        self._singles.handle_fenced(udp, received, self._view, now_ns)

    def _count(self, received: Received) -> None:
        self._counters[Counter.UDP_READS] += 1
        self._counters[Counter.DATAGRAMS_RECEIVED] += -(-received.size // received.segment)
        self._counters[Counter.TRUNCATED] += not received.size

    def _fenced_turn(self, udp: UdpSocket, now_ns: int) -> None:
        """As `turn`, while the sessions may be another gateway's."""
        for _ in range(TURN):
            try:
                received = udp.receive(self._view)
            except OSError:
                self._counters[Counter.UDP_READ_ERROR] += 1
                continue
            if received is None:
                return
            self._take_fenced(udp, received, now_ns)

    def _crowded_turn(self, udp: UdpSocket, now_ns: int) -> None:
        """As `turn`, while one source floods the socket's buffer (fair.py)."""
        crowd = self.crowd
        crowd.begin_turn()
        self.take_crowded(now_ns)
        emptied = False
        for _ in range(READ_AHEAD if crowd.reads_ahead else 0):
            try:
                received = udp.receive(self._view)
            except OSError:
                self._counters[Counter.UDP_READ_ERROR] += 1
                continue
            if received is None:
                emptied = True
                break
            datagrams = -(-received.size // received.segment)
            cost = 1 + datagrams // _CHEAP
            owner = self._owner(received, now_ns)
            if crowd.may_go(owner, cost):
                self._take(udp, received, now_ns)
                continue
            if crowd.has_room(owner, received.size, datagrams):
                kept = udp, received, bytes(self._view[: received.size])
                crowd.add(owner, kept, cost, received.size, datagrams)
        self._counters[Counter.RECEIVED_CROWDED_OUT] += crowd.take_dropped()
        crowd.end_turn(emptied=emptied)

    def _owner(self, received: Received, now_ns: int) -> Address | Session:
        """Whose share of a turn it uses up: the session that it may be for; all others have one together."""
        entry = self._table.by_id.get(bytes(self._buffer[4:_PREFIX])) if received.size >= _MIN_DATA else None
        if entry is None or entry.refusal(received.source, now_ns, self._table.gateway):
            return _STRANGERS
        return entry.session

    def take_crowded(self, now_ns: int) -> None:
        """Take of what waits since a flood, each session in its turn."""
        left, take = QUEUED, self._take_fenced if self._table.fenced(now_ns) else self._take
        while left > 0 and (taken := self.crowd.take()):
            for _owner, (udp, received, data), cost in taken:
                left -= cost
                self._buffer[: received.size] = data
                take(udp, received, now_ns)

    def _one_by_one(self, udp: UdpSocket, received: Received, now_ns: int) -> None:
        authentic = self._singles.handle(udp, received, self._view, now_ns)
        segment = received.segment
        # A layout costs memory and time, so only those who hold keys have one made, for a size that comes in runs.
        long = received.size >= _LONG * segment
        if authentic and long and segment >= _MIN_DATA and self.layouts.get(segment) is None:
            self.layouts.put(segment, ReceiveLayout(self._buffer, segment))

    # 2 judge

    def _batch(self, received: Received, now_ns: int) -> bool:
        """The whole run at once; False, and nothing done, when it needs to go one by one."""
        segment = received.segment
        if self._buffer[0] != PacketType.DATA:
            return False
        layout = self.layouts.get(segment)
        if layout is None:
            return False
        count, tail = divmod(received.size, segment)
        prefix = bytes(self._buffer[:_PREFIX])
        end = count * segment
        if (
            count > layout.capacity
            or layout.prefixes[:count].tobytes() != prefix * count
            or (tail and (tail < _MIN_DATA or self._buffer[end : end + _PREFIX] != prefix))
        ):
            return False
        entry = self._accepts(prefix, received.source, now_ns)
        if entry is None:
            return False
        phase = entry.session.receive.get(prefix[1] & 15)
        if phase is None:
            return False
        try:
            wrong = self._open(phase, entry.index, layout, count)
        except InvalidTag:
            return False
        last = self._open_last(phase, entry, end, tail) if tail else None
        if last is not None or len(wrong) < count:
            self._answers.heard(entry, phase, now_ns)
            self._replay_and_deliver(entry, layout, count, last, wrong, now_ns)
        for _ in wrong:
            self._singles.forged(entry, prefix[1] & 15)
        return True

    def _lone(self, received: Received, now_ns: int) -> bool:
        """One DATA datagram by itself, as acknowledgements come; False, and nothing done, when anything is unusual."""
        size = received.size
        if size < _MIN_DATA or self._buffer[0] != PacketType.DATA:
            return False
        prefix, counter = _HEADER.unpack_from(self._buffer)
        entry = self._accepts(prefix, received.source, now_ns)
        phase = None if entry is None else entry.session.receive.get(prefix[1] & 15)
        if entry is None or phase is None:
            return False
        view = self._view
        plaintext = self._tail[: size - HEADER_SIZE - TAG_SIZE]
        try:
            nonce = _NONCE.pack(entry.index, counter)
            phase.opener()(nonce, view[HEADER_SIZE:size], view[:HEADER_SIZE], plaintext)
        except InvalidTag:
            self._singles.forged(entry, prefix[1] & 15)
            return True
        self._answers.heard(entry, phase, now_ns)
        new = self._singles.new(PacketType.DATA, entry, counter, plaintext, size, now_ns)
        if new is not None:
            self._delivery.deliver(entry.session, (plaintext,))
        return True

    def _accepts(self, prefix: bytes, source: Address, now_ns: int) -> PathEntry | None:
        entry = self._table.by_id.get(prefix[4:])
        if entry is None or prefix[1] >> 4 != VERSION or prefix[2] or prefix[3]:
            return None
        return None if entry.refusal(source, now_ns, self._table.gateway) else entry

    # 3 open

    def _open(self, phase: Phase, index: int, layout: ReceiveLayout, count: int) -> list[int]:
        """Decrypt `count` whole datagrams into the layout; which of them carry a wrong tag, and may not be looked at.

        Raises InvalidTag when any tag is wrong and the AEAD does not say which; then that is true of all.
        """
        layout.stamp(index)
        layout.nonce_counters[:count] = layout.counters[:count]
        bulk = phase.bulk_opener()
        if bulk is not None and bulk.run(layout.opening, count):
            return layout.wrong_tags(count)
        nonces = layout.nonces[:count]
        deque(map(phase.opener(), nonces, layout.ciphertexts, layout.aads, layout.plaintexts), maxlen=0)
        return []

    def _open_last(self, phase: Phase, entry: PathEntry, at: int, size: int) -> memoryview | None:
        """The plaintext of the shorter last datagram, `size` bytes; None, counted, when its tag is wrong."""
        header = self._view[at : at + HEADER_SIZE]
        plaintext = self._tail[: size - HEADER_SIZE - TAG_SIZE]
        nonce = entry.index.to_bytes(4, "big") + bytes(header[_PREFIX:])
        try:
            phase.opener()(nonce, self._view[at + HEADER_SIZE : at + size], header, plaintext)
        except InvalidTag:
            self._singles.forged(entry, header[1] & 15)
            return None
        return plaintext

    # 4 replay, 5 deliver

    def _replay_and_deliver(
        self,
        entry: PathEntry,
        layout: ReceiveLayout,
        count: int,
        last: memoryview | None,
        wrong: list[int],
        now_ns: int,
    ) -> None:
        session = entry.session
        total = count if last is None else count + 1
        numbers = layout.counters[:count].tobytes()
        if last is not None:
            at = count * layout.segment + _PREFIX
            numbers += self._buffer[at : at + 8]
        first = int.from_bytes(numbers[:8], "big")
        window = session.window(entry.index)
        if window is None:
            self._counters[Counter.REPLAYED] += total - len(wrong)
            return
        fresh: bytes | None
        if not wrong and first + total <= NO_COUNTER and numbers == consecutive(first, total):
            fresh = window.check_and_set_run(first, total)
        else:
            fresh = bytes(
                at not in wrong and counter != NO_COUNTER and window.check_and_set(counter)
                for at, (counter,) in enumerate(_COUNTER.iter_unpack(numbers))
            )
            fresh = fresh if 0 in fresh else None
        self._page.write_highest(session.record, entry.index, window.highest)
        accepted = total if fresh is None else sum(fresh)
        self._counters[Counter.REPLAYED] += total - len(wrong) - accepted
        if not accepted:
            return
        entry.count(window.highest, accepted)
        size = accepted * layout.segment
        if last is not None and (fresh is None or fresh[-1]):
            size += len(last) - layout.plaintext
        session.received(now_ns, size, accepted)
        if fresh is None and self._delivery.deliver_run(session, layout, count, last):
            return
        plaintexts = layout.plaintexts[:count]
        if fresh is None and self._delivery.deliver_flow(session, layout, count):
            plaintexts = []
        if last is not None:
            plaintexts.append(last)
        if fresh is not None:
            plaintexts = [plaintext for plaintext, new in zip(plaintexts, fresh, strict=True) if new]
        self._delivery.deliver(session, plaintexts)
