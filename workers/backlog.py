"""After a bind: what was sent and is missing goes again, then what waited for the path, then everything flows on.

Oldest first, and at most SPEED times as fast as it was first sent or read, but the first AT_ONCE bytes without delay.
What comes from the TUN meanwhile waits its turn behind it (`Session.direct` is None until all is gone).
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from jvpn.protocol.constants import HEADER_SIZE, TAG_SIZE, PacketType
from workers.commands import IndexReport
from workers.counters import Counter
from workers.encrypt import Encryptor
from workers.fragments import FRAGMENT_HEADER, is_last
from workers.kept import Sent
from workers.paths import SendPath
from workers.reports import Missing
from workers.send import SmallBatch
from workers.sessions import Session

SPEED: Final = 2
AT_ONCE: Final = 64 << 10
#: Bytes of one session per turn of the loop, and in the command that binds it: the peer waits for the answer to that.
TURN_BYTES: Final = 256 << 10
FIRST_BYTES: Final = 4 << 10
_MAX_DISTANCE: Final = 255

_COUNTER = struct.Struct(">12xQ")
_NONCE = struct.Struct(">IQ")


class _Pace:
    """When what was first sent at some time may go again."""

    __slots__ = ("_first_ns", "_start_ns", "missing", "spent")

    def __init__(self, missing: Missing, first_ns: int, now_ns: int) -> None:
        self.missing = missing
        self.spent = 0
        self._first_ns = first_ns
        self._start_ns = now_ns

    def spend(self, size: int, time_ns: int, now_ns: int) -> None:
        """`size` bytes of what was there at `time_ns` go now. The first of them start the clock."""
        if size and not self.spent:
            self._first_ns, self._start_ns = time_ns, now_ns
        self.spent += size

    def allows(self, time_ns: int, now_ns: int) -> bool:
        return self.spent < AT_ONCE or time_ns - self._first_ns <= SPEED * (now_ns - self._start_ns)


class Backlog:
    """`busy` when `turn` has something to do, now or soon. `encryptor` sends what waited."""

    def __init__(self, encryptor: Encryptor, counters: "memoryview[int]") -> None:
        self.encryptor = encryptor
        self._counters = counters
        self._batch = SmallBatch(counters, keep=False)
        self._paces: dict[Session, _Pace] = {}

    @property
    def busy(self) -> bool:
        return bool(self._paces)

    def bound(self, session: Session, reports: Sequence[IndexReport] | None, now_ns: int) -> None:
        """`session` has a path, or has lost it `reports`: what the peer has; None: nothing new is sent again.

        A session whose keys are used up is as one without a path.
        """
        if session.path is None or session.used_up:
            # What was not sent again yet is still kept, and will be judged by the next reports.
            session.resending.clear()
            self._paces.pop(session, None)
            session.go_on()
            if session.waiting:
                self.encryptor.send_early(session, now_ns)
            return
        known = self._paces.get(session)
        missing = known.missing if known is not None else Missing([])
        if reports is not None:
            missing = Missing(reports)
            session.resending.clear()
            if reports:
                session.resending.extend(_incomplete(session.sent_lately.recent(now_ns), missing))
                session.resending.reverse()
            session.forget_stood_for()
        session.waiting.trim(now_ns)
        if session.go_on():
            self._paces.pop(session, None)
            return
        if known is None or reports is not None:
            first = session.resending[-1] if session.resending else session.waiting.first
            self._paces[session] = _Pace(missing, first.time_ns, now_ns)
        self._session_turn(session, now_ns, FIRST_BYTES)

    def turn(self, now_ns: int) -> None:
        """Send what may go by now."""
        if self.encryptor.fenced(now_ns):
            return
        for session in list(self._paces):
            self._session_turn(session, now_ns, TURN_BYTES)

    def _session_turn(self, session: Session, now_ns: int, most: int) -> None:
        pace, path = self._paces[session], session.path
        if path is None or session.used_up:
            del self._paces[session]
            return
        until = pace.spent + most
        resending, waiting = session.resending, session.waiting
        while resending and pace.spent < until and pace.allows(resending[-1].time_ns, now_ns):
            sent, silent = resending.pop(), not pace.spent
            pace.spend(self._resend(path, sent, pace.missing, now_ns), sent.time_ns, now_ns)
            if silent:
                # The peer's silence ends with it; the others may be gathered.
                self._batch.flush(now_ns)
        self._batch.flush(now_ns)
        while not resending and waiting and pace.spent < until and pace.allows(waiting.first.time_ns, now_ns):
            waited = waiting.take()
            pace.spend(len(waited.data), waited.time_ns, now_ns)
            self.encryptor.send_waited(path, waited.data, now_ns)
        if session.go_on():
            del self._paces[session]

    def _resend(self, path: SendPath, sent: Sent, missing: Missing, now_ns: int) -> int:
        """Send again what is missing of one send; returns how many bytes that were."""
        distance = path.index - sent.path_index
        (first,) = _COUNTER.unpack_from(sent.data)
        if not 0 <= distance <= _MAX_DISTANCE or not path.session.may_resend(sent.path_index, first):
            return 0
        prefix = bytes((PacketType.RESENT,)) + path.prefix[1:]
        size = 0
        generation = path.session.generation_of(path.index)
        for counter, plaintext in _opened(sent, missing, generation, path.session.stood_for):
            body = bytes((distance,)) + counter.to_bytes(8, "big")[5:] + plaintext
            self._batch.add_fitting(path, body, now_ns, prefix)
            self._counters[Counter.RESENT_SENT] += 1
            size += len(body)
        return size


def _incomplete(kept: list[Sent], missing: Missing) -> list[Sent]:
    """Those of which something can be missing: mostly the last few of many."""
    return [
        sent
        for sent in kept
        if missing.among(
            sent.path_index, _COUNTER.unpack_from(sent.data)[0], -(-len(sent.data) // sent.segment)
        )
    ]


def _opened(
    sent: Sent, missing: Missing, generation: int, stood_for: dict[tuple[int, int], int]
) -> Iterator[tuple[int, bytes]]:
    """(counter, DATA plaintext) of what is missing.

    Of a packet that went in FRAGMENTs, which are all in one send, the counter of a missing one stands for the whole: so
    that one cannot come late and make the packet a second time. The first that it was sent again under, `stood_for`
    remembers: when that has arrived the packet has, although other fragments are missing for ever.
    """
    opener = sent.phase.reopener()
    view = memoryview(sent.data)
    parts: list[bytearray] = []
    stands_for: int | None = None
    first = (0, 0)
    for at in range(0, len(view), sent.segment):
        datagram = view[at : at + sent.segment]
        (counter,) = _COUNTER.unpack_from(datagram)
        fragment = datagram[0] == PacketType.FRAGMENT
        lost = missing(sent.path_index, counter, generation)
        if not lost and not fragment:
            continue
        plaintext = bytearray(len(datagram) - HEADER_SIZE - TAG_SIZE)
        nonce = _NONCE.pack(sent.path_index, counter)
        opener(nonce, datagram[HEADER_SIZE:], datagram[:HEADER_SIZE], plaintext)
        if not fragment:
            yield counter, bytes(plaintext)
            continue
        if not parts:
            first = sent.path_index, counter
        parts.append(plaintext[FRAGMENT_HEADER:])
        if lost:
            stands_for = counter
        if is_last(plaintext):
            if stands_for is not None:
                stands_for = stood_for.setdefault(first, stands_for)
                if missing(sent.path_index, stands_for, generation):
                    yield stands_for, b"".join(parts)
            parts, stands_for = [], None
