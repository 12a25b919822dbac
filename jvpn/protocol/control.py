"""CONTROL: frames, their values, and the channel that repeats what must arrive.

    frame = type 1 ‖ flags 1 (1 = wants ACK) ‖ length 2 ‖ message id 4 ‖ chunk 1 ‖ chunks 1 ‖ value

Several frames share a datagram. CONFIG, SWITCH and the REKEY kinds are repeated until acknowledged; of HEALTH and
STATE the newest wins. The channel knows neither keys nor addresses: it turns messages into plaintexts of at most
MAX_PLAINTEXT bytes and back; `seal` and `open_control` put them under the control keys.
"""

import math
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

from jvpn.protocol.constants import (
    CONTROL_FRAME_HEADER,
    CONTROL_MESSAGE_MAX,
    CONTROL_REASSEMBLIES,
    CONTROL_REMEMBERED_IDS,
    CONTROL_REPEAT_MIN_MS,
    HEADER_SIZE,
    MAX_CONTROL_DATAGRAM,
    TAG_SIZE,
)
from jvpn.protocol.wire import WireError

_FRAME = struct.Struct(">BBHIBB")
MAX_PLAINTEXT: Final = MAX_CONTROL_DATAGRAM - HEADER_SIZE - TAG_SIZE
MAX_CHUNK: Final = MAX_PLAINTEXT - CONTROL_FRAME_HEADER
WANTS_ACK: Final = 1


class ControlType(IntEnum):
    CONFIG = 1
    HEALTH = 2
    STATE = 3
    REKEY_INIT = 4
    REKEY_RESPONSE = 5
    REKEY_REQUIRED = 6
    SWITCH = 7
    CLOSE = 8
    ACK = 9


RELIABLE: Final = frozenset(
    {
        ControlType.CONFIG,
        ControlType.REKEY_INIT,
        ControlType.REKEY_RESPONSE,
        ControlType.REKEY_REQUIRED,
        ControlType.SWITCH,
    }
)


#: Message ids go round (RFC 1982): of two the later is the one that is less than half a round ahead.
_IDS: Final = 1 << 32
_KINDS: Final = frozenset(int(kind) for kind in ControlType)


class Frame(NamedTuple):
    kind: ControlType
    flags: int
    message_id: int
    chunk: int
    chunks: int
    value: bytes

    def encode(self) -> bytes:
        head = _FRAME.pack(self.kind, self.flags, len(self.value), self.message_id, self.chunk, self.chunks)
        return head + self.value


def decode_frames(plaintext: bytes) -> list[Frame]:
    """All frames of a CONTROL plaintext. Raises WireError `bad_control` when any byte is out of place."""
    frames = []
    at = 0
    while at < len(plaintext):
        if len(plaintext) - at < CONTROL_FRAME_HEADER:
            raise WireError("bad_control")
        kind, flags, size, message_id, chunk, chunks = _FRAME.unpack_from(plaintext, at)
        at += CONTROL_FRAME_HEADER
        if kind not in _KINDS or flags & ~WANTS_ACK or chunk >= chunks or at + size > len(plaintext):
            raise WireError("bad_control")
        frames.append(Frame(ControlType(kind), flags, message_id, chunk, chunks, plaintext[at : at + size]))
        at += size
    if not frames:
        raise WireError("bad_control")
    return frames


class Message(NamedTuple):
    """A whole control message as it was sent."""

    kind: ControlType
    value: bytes


@dataclass(slots=True)
class _Unacknowledged:
    """`sent_ms`: when it went out, while its first ACK tells a round trip; None: not yet, or not any more."""

    frames: dict[int, Frame]
    next_ms: int
    sent_ms: int | None = None
    sent_before: bool = False
    #: On the path in use; what was said on another says nothing of this one.
    sent_here: bool = False


@dataclass(slots=True)
class _Reassembly:
    kind: ControlType
    chunks: int
    parts: dict[int, bytes] = field(default_factory=dict)


class ControlChannel:
    """Both halves of reliable CONTROL for one session and epoch. Sans-I/O; times are milliseconds.

    `id_prefix` is the high byte of the message ids (the supervisor's generation; 0 on a client). `repeat_ms`: how long
    an ACK is waited for; who knows the path's round trip says so by `expect`.
    """

    def __init__(self, id_prefix: int = 0) -> None:
        self._next_id = (id_prefix & 0xFF) << 24
        self._pending: dict[int, _Unacknowledged] = {}
        self._once: list[Frame] = []
        self._seen: dict[int, int] = {}
        self._partial: dict[int, _Reassembly] = {}
        self._round_trips_ms: list[int] = []
        self._newest_config: int | None = None
        self.repeat_ms = CONTROL_REPEAT_MIN_MS
        self._overdue = False

    def expect(self, patience_ms: float) -> None:
        """How long an answer may take on the path in use, srtt + 4·rttvar: what wants an ACK waits that long."""
        self.repeat_ms = max(CONTROL_REPEAT_MIN_MS, math.ceil(patience_ms))

    def send(self, kind: ControlType, value: bytes, now_ms: int) -> int:
        """Queue a message and return its id. Raises ValueError when it is longer than CONTROL_MESSAGE_MAX."""
        if len(value) > CONTROL_MESSAGE_MAX:
            raise ValueError(f"a control message of {len(value)} bytes exceeds {CONTROL_MESSAGE_MAX}")
        message_id = self._next_id
        self._next_id += 1
        pieces = [value[at : at + MAX_CHUNK] for at in range(0, len(value), MAX_CHUNK)] or [b""]
        flags = WANTS_ACK if kind in RELIABLE else 0
        frames = [
            Frame(kind, flags, message_id, chunk, len(pieces), piece) for chunk, piece in enumerate(pieces)
        ]
        if flags:
            self._pending[message_id] = _Unacknowledged(dict(enumerate(frames)), now_ms)
        else:
            self._once += frames
        return message_id

    def withdraw(self, message_id: int) -> None:
        """Say a message no more, acknowledged or not: another has taken its place."""
        self._pending.pop(message_id, None)

    @property
    def unacknowledged(self) -> int:
        return len(self._pending)

    def awaits(self, message_id: int) -> bool:
        """Whether a message has not been acknowledged yet."""
        return message_id in self._pending

    def take_round_trips(self) -> list[int]:
        """Round trips in ms that ACKs have shown since the last call; only of what was sent once (RFC 6298, 3)."""
        taken, self._round_trips_ms = self._round_trips_ms, []
        return taken

    def take_overdue(self) -> bool:
        """Whether something has been repeated since the last call: no ACK came in time on this path."""
        taken, self._overdue = self._overdue, False
        return taken

    def move(self, now_ms: int) -> None:
        """Another path: what was said on the old one is due again and tells nothing of the new one."""
        for waiting in self._pending.values():
            waiting.sent_ms, waiting.next_ms, waiting.sent_here = None, now_ms, False

    def get_timer(self) -> int | None:
        """When `plaintexts_to_send` has something to say next, ms; None: nothing waits."""
        if self._once:
            return 0
        return min((waiting.next_ms for waiting in self._pending.values()), default=None)

    def plaintexts_to_send(self, now_ms: int) -> list[bytes]:
        """What is due, packed into as few plaintexts as possible."""
        due = self._once
        self._once = []
        for waiting in self._pending.values():
            if waiting.next_ms <= now_ms:
                due = due + list(waiting.frames.values())
                waiting.next_ms = now_ms + self.repeat_ms
                waiting.sent_ms = None if waiting.sent_before else now_ms
                self._overdue = self._overdue or waiting.sent_here
                waiting.sent_before = waiting.sent_here = True
        return _pack(due)

    def receive(self, plaintext: bytes, now_ms: int | None = None) -> list[Message]:
        """Take an authenticated plaintext, return the messages it completed, each exactly once.

        `now_ms` None: no round trips are measured. Raises WireError `bad_control`, having changed nothing.
        """
        complete = []
        for frame in decode_frames(plaintext):
            if frame.kind is ControlType.ACK:
                self._on_ack(frame.value, now_ms)
                continue
            message = self._on_frame(frame)
            if message is not None:
                complete.append(message)
        return complete

    def _on_ack(self, value: bytes, now_ms: int | None) -> None:
        if len(value) < 5:
            return
        message_id = int.from_bytes(value[:4], "big")
        waiting = self._pending.get(message_id)
        if waiting is None:
            return
        bitmap = int.from_bytes(value[4:], "little")
        if waiting.sent_ms is not None and now_ms is not None:
            self._round_trips_ms.append(now_ms - waiting.sent_ms)
            waiting.sent_ms = None
        waiting.frames = {chunk: f for chunk, f in waiting.frames.items() if not bitmap >> chunk & 1}
        if not waiting.frames:
            del self._pending[message_id]

    def _on_frame(self, frame: Frame) -> Message | None:
        reliable = frame.flags & WANTS_ACK
        if not reliable:
            return Message(frame.kind, frame.value) if frame.chunks == 1 else None
        if frame.message_id in self._seen:
            self._acknowledge(frame.message_id, self._seen[frame.message_id])
            return None
        partial = self._partial.setdefault(frame.message_id, _Reassembly(frame.kind, frame.chunks))
        while len(self._partial) > CONTROL_REASSEMBLIES:
            del self._partial[next(iter(self._partial))]
        if (partial.kind, partial.chunks) != (frame.kind, frame.chunks):
            return None
        partial.parts[frame.chunk] = frame.value
        if sum(map(len, partial.parts.values())) > CONTROL_MESSAGE_MAX:
            self._partial.pop(frame.message_id, None)
            return None
        bitmap = sum(1 << chunk for chunk in partial.parts)
        self._acknowledge(frame.message_id, bitmap)
        if len(partial.parts) < partial.chunks:
            return None
        self._partial.pop(frame.message_id, None)
        self._seen[frame.message_id] = bitmap
        while len(self._seen) > CONTROL_REMEMBERED_IDS:
            del self._seen[next(iter(self._seen))]
        if partial.kind is ControlType.CONFIG:
            newest = self._newest_config
            if newest is not None and (newest - frame.message_id) % _IDS < _IDS // 2:
                # Late on its way: what it says has been replaced.
                return None
            self._newest_config = frame.message_id
        return Message(partial.kind, b"".join(partial.parts[c] for c in range(partial.chunks)))

    def _acknowledge(self, message_id: int, bitmap: int) -> None:
        value = message_id.to_bytes(4, "big") + bitmap.to_bytes(
            max(1, (bitmap.bit_length() + 7) // 8), "little"
        )
        self._once.append(Frame(ControlType.ACK, 0, 0, 0, 1, value))


def _pack(frames: list[Frame]) -> list[bytes]:
    """First-fit in order: frames are never split, plaintexts never exceed MAX_PLAINTEXT.

    A CLOSE ends its plaintext: it is said several times because datagrams are lost, so no two may share one.
    """
    plaintexts: list[bytes] = []
    current = b""
    for frame in frames:
        encoded = frame.encode()
        if current and len(current) + len(encoded) > MAX_PLAINTEXT:
            plaintexts.append(current)
            current = b""
        current += encoded
        if frame.kind is ControlType.CLOSE:
            plaintexts.append(current)
            current = b""
    return [*plaintexts, current] if current else plaintexts
