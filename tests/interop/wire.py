"""Headers and fixed layouts of JVP/1 as bytes.

An independent client, made from docs/protocol.md alone; imports nothing of jvpn.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

HEADER_SIZE = 20
MAX_CONTROL_PLAINTEXT = 1196
CHUNK_SIZE = 1186
NO_TICKET = bytes(44)
NO_CHALLENGE = bytes(16)
NOT_MEASURED = 0xFFFFFFFF


class Type(IntEnum):
    INIT = 0x01
    RESPONSE = 0x02
    COOKIE = 0x03
    REQUEST = 0x10
    ACK = 0x11
    FAIL = 0x12
    DATA = 0x20
    CONTROL = 0x21
    PATH = 0x22
    FRAGMENT = 0x23
    RESENT = 0x24
    RESET = 0x30


HANDSHAKE_TYPES = (Type.INIT, Type.RESPONSE, Type.COOKIE)
DATA_KINDS = (Type.DATA, Type.FRAGMENT, Type.RESENT)
COUNTED_TYPES = (*DATA_KINDS, Type.CONTROL, Type.PATH)


class Control(IntEnum):
    CONFIG = 1
    HEALTH = 2
    STATE = 3
    REKEY_INIT = 4
    REKEY_RESPONSE = 5
    REKEY_REQUIRED = 6
    SWITCH = 7
    CLOSE = 8
    ACK = 9


class Cause(IntEnum):
    TRANSPORT_DEAD = 1
    QUALITY_SWITCH = 2
    PREFERENCE_SWITCH = 3
    TRANSPORT_RETURNED = 4
    OPERATOR_SWITCH = 5
    ADDRESS_CHANGED = 6
    NODE_DRAIN = 7
    REATTACH_REQUESTED = 8

    @property
    def is_loss(self) -> bool:
        return self in (Cause.TRANSPORT_DEAD, Cause.ADDRESS_CHANGED, Cause.REATTACH_REQUESTED)


class Refused(Exception):
    """A datagram or plaintext that breaks a rule of the page; the text is the page's name for it."""


@dataclass(frozen=True)
class Header:
    type: Type
    steering_id: bytes
    counter: int = 0
    phase: int = 0
    suite: int = 0

    def pack(self) -> bytes:
        first = bytes([self.type, 0x10 | self.phase & 15, self.suite, 0])
        return first + self.steering_id + self.counter.to_bytes(8, "big")


def parse_header(datagram: bytes) -> Header:
    """The checks of every datagram in the page's order. Raises Refused."""
    if len(datagram) < HEADER_SIZE:
        raise Refused("truncated")
    try:
        kind = Type(datagram[0])
    except ValueError:
        raise Refused("unknown_type") from None
    if datagram[1] >> 4 != 1:
        raise Refused("bad_version")
    phase, suite, counter = datagram[1] & 15, datagram[2], int.from_bytes(datagram[12:20], "big")
    zero = kind not in COUNTED_TYPES and (phase or (counter and kind != Type.REQUEST))
    if datagram[3] or (suite and kind not in HANDSHAKE_TYPES) or zero:
        raise Refused("reserved_bits")
    exact = {Type.REQUEST: 256, Type.RESET: 36}.get(kind, len(datagram))
    if len(datagram) < 36 or len(datagram) != exact:
        raise Refused("bad_length")
    return Header(kind, datagram[4:12], counter, phase, suite)


@dataclass(frozen=True)
class Frame:
    type: Control
    wants_ack: bool
    message_id: int
    chunk: int
    chunks: int
    value: bytes

    def pack(self) -> bytes:
        head = struct.pack(
            ">BBHIBB",
            self.type,
            int(self.wants_ack),
            len(self.value),
            self.message_id,
            self.chunk,
            self.chunks,
        )
        return head + self.value


def parse_frames(plaintext: bytes) -> list[Frame]:
    """All frames of a CONTROL plaintext. Raises Refused when any of them is malformed."""
    frames: list[Frame] = []
    at = 0
    while at < len(plaintext) or not frames:
        if len(plaintext) - at < 10:
            raise Refused("bad_control")
        kind, flags, length, message_id, chunk, chunks = struct.unpack_from(">BBHIBB", plaintext, at)
        value = plaintext[at + 10 : at + 10 + length]
        if kind not in list(Control) or flags > 1 or chunk >= chunks or len(value) < length:
            raise Refused("bad_control")
        frames.append(Frame(Control(kind), bool(flags), message_id, chunk, chunks, value))
        at += 10 + length
    return frames


def pack_health(version: int, rtt_us: int = NOT_MEASURED) -> bytes:
    return struct.pack(">QBBHIIII", version, 0, 0, 0, 0, rtt_us, NOT_MEASURED, NOT_MEASURED)


@dataclass(frozen=True)
class State:
    version: int
    state: int
    reason: str


def parse_state(value: bytes) -> State:
    if len(value) < 10 or len(value) != 10 + value[9]:
        raise Refused("bad_control")
    return State(int.from_bytes(value[:8], "big"), value[8], value[10:].decode("ascii", "replace"))


@dataclass(frozen=True)
class ProbeAck:
    flags: int
    timestamp: int
    received: int
    highest: int
    challenge: bytes
    highest_installed: int


def pack_probe(timestamp: int, received: int = 0, highest: int = 0) -> bytes:
    return struct.pack(">BBHQQQ20x", 1, 0, 0, timestamp, received, highest)


def parse_probe_ack(plaintext: bytes) -> ProbeAck | None:
    """None for a PROBE, which a client may ignore. Raises Refused."""
    if len(plaintext) != 48 or plaintext[0] not in (1, 2) or plaintext[2:4] != b"\0\0":
        raise Refused("bad_path")
    if plaintext[0] == 1:
        return None
    _, flags, _, timestamp, received, highest, challenge, installed = struct.unpack(">BBHQQQ16sI", plaintext)
    return ProbeAck(flags, timestamp, received, highest, challenge, installed)


def pack_request(
    attempt: int, index: int, version: int, cause: int, challenge: bytes, reports: tuple[bytes, ...] = ()
) -> bytes:
    head = struct.pack(">QIQBBH16sB", attempt, index, version, cause, 1, 0, challenge, len(reports))
    return (head + b"".join(reports)).ljust(176, b"\0")


@dataclass(frozen=True)
class ReattachAck:
    attempt: int
    bound: bool
    bound_index: int
    version: int
    highest_installed: int
    address: bytes
    port: int
    challenge: bytes


def parse_ack(plaintext: bytes) -> ReattachAck:
    if len(plaintext) < 60 or plaintext[8] > 1 or len(plaintext) != 60 + 44 * plaintext[59]:
        raise Refused("bad_reattach")
    attempt, result, bound_index, version, installed, address, port, challenge = struct.unpack_from(
        ">QBIQI16sH16s", plaintext
    )
    return ReattachAck(attempt, result == 0, bound_index, version, installed, address, port, challenge)


@dataclass(frozen=True)
class ReattachFail:
    attempt: int
    version: int
    retry_after_ms: int
    reason: str


def parse_fail(plaintext: bytes) -> ReattachFail:
    if len(plaintext) < 22 or len(plaintext) < 22 + plaintext[20]:
        raise Refused("bad_reattach")
    attempt, version, retry, length = struct.unpack_from(">QQIB", plaintext)
    return ReattachFail(attempt, version, retry, plaintext[21 : 21 + length].decode("ascii", "replace"))
