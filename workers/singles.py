"""Datagrams judged one at a time: what batches do not take, with the same rules in the same order.

DATA kinds are opened and delivered, PATH is answered (answers.py), everything else goes to the supervisor unread.
"""

from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag

from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import DATA_KINDS, GENERATION_SHIFT, HEADER_SIZE, TAG_SIZE, PacketType, Role
from jvpn.protocol.keys import nonce
from jvpn.protocol.wire import Header, WireError
from workers.answers import Answers
from workers.commands import Datagram, Endpoint
from workers.counters import Counter
from workers.deliver import Delivery
from workers.fragments import FragmentError
from workers.held import Early
from workers.page import Page
from workers.paths import PathEntry
from workers.sessions import NO_COUNTER, Session
from workers.table import SessionTable
from workers.udp import Received, UdpSocket

#: index distance 1 ‖ low 24 bits of the old counter 3
_RESENT_HEADER: Final = 4
_LOW: Final = 1 << 24


class Singles:
    """`forward` gives a datagram to the supervisor; False when that would have to wait."""

    def __init__(
        self,
        table: SessionTable,
        delivery: Delivery,
        answers: Answers,
        forward: Callable[[Datagram], bool],
        counters: "memoryview[int]",
    ) -> None:
        self._table = table
        self._page: Page = table.page
        self._delivery = delivery
        self._answers = answers
        self._forward_report = forward
        self._counters = counters

    def handle(self, udp: UdpSocket, received: Received, buffer: memoryview, now_ns: int) -> bool:
        """Every datagram of a run; True when at least one of them was authentic DATA."""
        authentic = False
        session: Session | None = None
        plaintexts: list[memoryview] = []
        for at in range(0, received.size, received.segment):
            datagram = buffer[at : min(at + received.segment, received.size)]
            opened = self._one(udp, received, datagram, now_ns)
            if opened is None:
                continue
            authentic = True
            owner, plaintext = opened
            if session is not None and owner is not session:
                self._delivery.deliver(session, plaintexts)
                plaintexts = []
            session = owner
            plaintexts.append(plaintext)
        if session is not None:
            self._delivery.deliver(session, plaintexts)
        return authentic

    def handle_fenced(self, udp: UdpSocket, received: Received, buffer: memoryview, now_ns: int) -> None:
        """As `handle`, on a gateway whose sessions may be another's: only what the supervisor answers goes on."""
        for at in range(0, received.size, received.segment):
            if buffer[at] in DATA_KINDS or buffer[at] == PacketType.PATH:
                self._counters[Counter.RECEIVED_FENCED] += 1
            else:
                self._one(udp, received, buffer[at : min(at + received.segment, received.size)], now_ns)

    def _one(
        self, udp: UdpSocket, received: Received, datagram: memoryview, now_ns: int
    ) -> tuple[Session, memoryview] | None:
        """A new plaintext to deliver, or None when the datagram is done with."""
        try:
            header = Header.decode(datagram)
        except WireError as error:
            self._counters[Counter[error.reason.upper()]] += 1
            return None
        if header.type not in DATA_KINDS and header.type is not PacketType.PATH:
            self._forward(udp, received, datagram)
            return None
        entry = self._table.by_id.get(header.steering_id)
        if entry is None:
            self._counters[Counter.UNKNOWN_ID] += 1
        elif header.type is PacketType.PATH:
            self._path(udp, received, datagram, header, entry, now_ns)
        else:
            refusal = entry.refusal(received.source, now_ns, self._table.gateway)
            if refusal is None:
                return self._data(datagram, header, entry, now_ns)
            if refusal is Counter.NOT_BOUND and entry.remote is None and self._table.gateway:
                self._hold(received, datagram, header, entry, now_ns)
                return None
            self._counters[refusal] += 1
            if refusal is Counter.WRONG_SOURCE and entry.role is Role.ACTIVE and self._table.gateway:
                self._sample(udp, received, datagram, header, entry, now_ns)
        return None

    def _open(self, datagram: memoryview, header: Header, entry: PathEntry, now_ns: int) -> memoryview | None:
        """The authenticated plaintext; None, counted, when the tag or the phase is wrong."""
        phase = entry.session.receive.get(header.phase)
        if phase is None:
            self._counters[Counter.UNKNOWN_PHASE] += 1
            return None
        plaintext = memoryview(bytearray(len(datagram) - HEADER_SIZE - TAG_SIZE))
        try:
            phase.opener()(
                nonce(entry.index, header.counter),
                datagram[HEADER_SIZE:],
                datagram[:HEADER_SIZE],
                plaintext,
            )
        except InvalidTag:
            self.forged(entry, header.phase)
            return None
        self._answers.heard(entry, phase, now_ns)
        return plaintext

    def forged(self, entry: PathEntry, nibble: int) -> None:
        """A datagram for this index did not open under the phase that it names."""
        self._counters[Counter.BAD_TAG] += 1
        entry.session.forged(nibble)

    def _data(
        self, datagram: memoryview, header: Header, entry: PathEntry, now_ns: int
    ) -> tuple[Session, memoryview] | None:
        plaintext = self._open(datagram, header, entry, now_ns)
        if plaintext is None:
            return None
        return self.new(header.type, entry, header.counter, plaintext, len(datagram), now_ns)

    def new(
        self, kind: PacketType, entry: PathEntry, counter: int, plaintext: memoryview, size: int, now_ns: int
    ) -> tuple[Session, memoryview] | None:
        """The session and what to deliver of an authentic datagram of `size` bytes; None when there is nothing new."""
        if not self._check_off(entry, entry.index, counter):
            return None
        session = entry.session
        entry.count(counter, 1)
        session.received(now_ns, size, 1)
        if kind is PacketType.FRAGMENT:
            whole = self._reassemble(entry, counter, plaintext)
            if whole is None:
                return None
            kind, plaintext = whole
        if kind is PacketType.RESENT:
            return self._resent(entry, counter, plaintext)
        return session, plaintext

    def _reassemble(
        self, entry: PathEntry, counter: int, fragment: memoryview
    ) -> tuple[PacketType, memoryview] | None:
        """Type and plaintext of what the last missing fragment completes."""
        reassembly = entry.session.reassembly
        try:
            whole = reassembly.add(entry.index, counter >> GENERATION_SHIFT, fragment)
        except FragmentError:
            self._counters[Counter.BAD_FRAGMENT] += 1
            return None
        self._counters[Counter.FRAGMENT_INCOMPLETE] += reassembly.take_dropped()
        if whole is not None:
            self._counters[Counter.REASSEMBLED_PACKETS] += 1
        return whole

    def _hold(
        self, received: Received, datagram: memoryview, header: Header, entry: PathEntry, now_ns: int
    ) -> None:
        """DATA before its bind waits for it."""
        plaintext = self._open(datagram, header, entry, now_ns)
        if plaintext is None:
            return
        early = Early(now_ns, entry, received.source, header.type, header.counter, plaintext, len(datagram))
        if not self._table.held.hold(early):
            self._counters[Counter.NOT_BOUND] += 1

    def bound(self, session: Session, now_ns: int) -> None:
        """Deliver what was held for the index that is bound now."""
        if session.path is None:
            return
        early, dropped = self._table.held.take(session.path.entry, now_ns)
        self._counters[Counter.NOT_BOUND] += dropped
        plaintexts = []
        for one in early:
            new = self.new(one.kind, one.entry, one.counter, one.plaintext, one.size, now_ns)
            if new is not None:
                plaintexts.append(new[1])
        self._counters[Counter.HELD_DELIVERED] += len(plaintexts)
        self._delivery.deliver(session, plaintexts)

    def _check_off(self, entry: PathEntry, index: int, counter: int) -> bool:
        window = entry.session.window(index)
        if window is None or counter == NO_COUNTER or not window.check_and_set(counter):
            self._counters[Counter.REPLAYED] += 1
            return False
        self._page.write_highest(entry.session.record, index, window.highest)
        return True

    def _resent(
        self, entry: PathEntry, carrier: int, plaintext: memoryview
    ) -> tuple[Session, memoryview] | None:
        """What the peer sent before on an older index and does not know to have arrived.

        Nothing has arrived there yet: then the old counter is of the same generation as the carrier's.
        """
        session = entry.session
        distance = plaintext[0] if len(plaintext) > _RESENT_HEADER else entry.index + 1
        old = entry.index - distance
        window = session.window(old) if old >= 0 else None
        counter = -1
        if window is not None:
            near = window.highest if window.highest >= 0 else carrier >> GENERATION_SHIFT << GENERATION_SHIFT
            counter = nearest_counter(int.from_bytes(plaintext[1:_RESENT_HEADER], "big"), near)
        if counter < 0:
            self._counters[Counter.BAD_RESENT] += 1
            return None
        self._counters[Counter.RESENT_RECEIVED] += 1
        if not self._check_off(entry, old, counter):
            return None
        return session, plaintext[_RESENT_HEADER:]

    def _path(
        self,
        udp: UdpSocket,
        received: Received,
        datagram: memoryview,
        header: Header,
        entry: PathEntry,
        now_ns: int,
    ) -> None:
        # Proof before the bucket: a stranger's junk must not use up what the genuine probes need.
        plaintext = self._open(datagram, header, entry, now_ns)
        if plaintext is None:
            return
        if not entry.may_handle(header.counter, received.source, now_ns):
            self._counters[Counter.PROBE_LIMITED] += 1
            return
        self._answers.handle(udp, received, bytes(plaintext), header.counter, entry, now_ns)

    def _sample(
        self,
        udp: UdpSocket,
        received: Received,
        datagram: memoryview,
        header: Header,
        entry: PathEntry,
        now_ns: int,
    ) -> None:
        """DATA from elsewhere on the active index: tell its sender, if it holds the keys, that it is not bound.

        A forgery uses up a token of the id, not the session's sample of that second.
        """
        session = entry.session
        if now_ns < session.source_change_after_ns or not entry.take_token(now_ns):
            return
        if self._open(datagram, header, entry, now_ns) is not None:
            session.source_change_after_ns = now_ns + 1_000_000_000
            self._counters[Counter.SOURCE_CHANGES] += 1
            self._answers.unsolicited(udp, received, entry, now_ns)

    def _forward(self, udp: UdpSocket, received: Received, datagram: memoryview) -> None:
        report = Datagram(
            udp.number,
            Endpoint(received.local, udp.port),
            Endpoint(to_bytes(received.source[0]), received.source[1]),
            bytes(datagram),
        )
        delivered = self._forward_report(report)
        self._counters[Counter.FORWARDED if delivered else Counter.CHANNEL_FULL] += 1


def nearest_counter(low: int, highest: int) -> int:
    """The counter with these low 24 bits that is nearest to `highest`; negative when there is none."""
    counter = (highest & ~(_LOW - 1)) | low
    if counter - highest > _LOW // 2:
        counter -= _LOW
    elif highest - counter > _LOW // 2:
        counter += _LOW
    return counter if counter < NO_COUNTER else -1
