"""CONTROL messages: what wants an ACK is repeated, what is chunked is put together, what came twice is told once.

An independent client, made from docs/protocol.md alone; imports nothing of jvpn. Times are seconds of one clock.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from .wire import CHUNK_SIZE, MAX_CONTROL_PLAINTEXT, Control, Frame

REMEMBERED = 64
REASSEMBLIES = 4
MESSAGE_MAX = 16384


def pack_plaintexts(frames: list[Frame]) -> list[bytes]:
    """Frames in order, as few plaintexts as they fit into."""
    plaintexts: list[bytes] = []
    for frame in frames:
        packed = frame.pack()
        if plaintexts and len(plaintexts[-1]) + len(packed) <= MAX_CONTROL_PLAINTEXT:
            plaintexts[-1] += packed
        else:
            plaintexts.append(packed)
    return plaintexts


@dataclass
class _Sent:
    frames: dict[int, Frame]
    said_at: float


class Outbox:
    """Messages of this end, with their ids, until they are acknowledged."""

    def __init__(self) -> None:
        self._next_id = 0
        self._waiting: dict[int, _Sent] = {}

    def plain(self, kind: Control, value: bytes) -> Frame:
        """A message that wants no ACK."""
        return Frame(kind, False, self._take_id(), 0, 1, value)

    def reliable(self, kind: Control, value: bytes, now: float) -> list[Frame]:
        message_id = self._take_id()
        pieces = [value[at : at + CHUNK_SIZE] for at in range(0, len(value), CHUNK_SIZE)] or [b""]
        frames = {n: Frame(kind, True, message_id, n, len(pieces), piece) for n, piece in enumerate(pieces)}
        self._waiting[message_id] = _Sent(frames, now)
        return list(frames.values())

    def acknowledged(self, value: bytes) -> None:
        if len(value) < 5:
            return
        message_id = int.from_bytes(value[:4], "big")
        sent = self._waiting.get(message_id)
        if sent is None:
            return
        bitmap = int.from_bytes(value[4:], "little")
        sent.frames = {chunk: frame for chunk, frame in sent.frames.items() if not bitmap >> chunk & 1}
        if not sent.frames:
            del self._waiting[message_id]

    def due(self, now: float, after_s: float) -> list[Frame]:
        frames: list[Frame] = []
        for sent in self._waiting.values():
            if now - sent.said_at >= after_s:
                sent.said_at = now
                frames.extend(sent.frames.values())
        return frames

    def forget(self, kind: Control) -> None:
        """Says no message of this type again."""
        self._waiting = {
            number: sent
            for number, sent in self._waiting.items()
            if next(iter(sent.frames.values())).type != kind
        }

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1


@dataclass
class _Partial:
    type: Control
    chunks: int
    pieces: dict[int, bytes] = field(default_factory=dict)


class Inbox:
    """Messages of the other end."""

    def __init__(self) -> None:
        self._partial: OrderedDict[int, _Partial] = OrderedDict()
        self._done: OrderedDict[int, int] = OrderedDict()
        self._config: int | None = None

    def take(self, frame: Frame) -> tuple[bytes | None, Frame | None]:
        """The whole message when this frame completes it, and the ACK that it wants."""
        if not frame.wants_ack:
            return (frame.value if frame.chunks == 1 else None), None
        message_id = frame.message_id
        if message_id in self._done:
            return None, _ack(message_id, range(self._done[message_id]))
        partial = self._partial.setdefault(message_id, _Partial(frame.type, frame.chunks))
        if (partial.type, partial.chunks) != (frame.type, frame.chunks):
            return None, None
        if partial.pieces.get(frame.chunk, frame.value) != frame.value:
            return None, None
        partial.pieces[frame.chunk] = frame.value
        if sum(map(len, partial.pieces.values())) > MESSAGE_MAX:
            del self._partial[message_id]
            return None, None
        ack = _ack(message_id, partial.pieces)
        if len(partial.pieces) < partial.chunks:
            while len(self._partial) > REASSEMBLIES:
                self._partial.popitem(last=False)
            return None, ack
        del self._partial[message_id]
        self._done[message_id] = frame.chunks
        while len(self._done) > REMEMBERED:
            self._done.popitem(last=False)
        if partial.type == Control.CONFIG and self._replaced(message_id):
            return None, ack
        return b"".join(partial.pieces[chunk] for chunk in range(partial.chunks)), ack

    def _replaced(self, message_id: int) -> bool:
        """Whether this CONFIG is older than one already taken."""
        if self._config is not None and (self._config - message_id) % 2**32 < 2**31:
            return True
        self._config = message_id
        return False


def _ack(message_id: int, chunks: "range | dict[int, bytes]") -> Frame:
    bitmap = sum(1 << chunk for chunk in chunks)
    size = max(1, (bitmap.bit_length() + 7) // 8)
    return Frame(Control.ACK, False, 0, 0, 1, message_id.to_bytes(4, "big") + bitmap.to_bytes(size, "little"))
