"""PATH plaintexts and the path challenge (docs/protocol.md, "PATH" and "Paths and reattach").

    PROBE      kind 1 ‖ flags 1 ‖ zero 2 ‖ timestamp 8 ‖ received 8 ‖ highest 8 ‖ zero 20
    PROBE_ACK  kind 1 ‖ flags 1 ‖ zero 2 ‖ timestamp 8 ‖ received 8 ‖ highest 8 ‖ challenge 16 ‖ highest installed 4

    MTU_PROBE  kind 1 ‖ flags 1 ‖ size 2 ‖ timestamp 8 ‖ confirmed 2 ‖ zeros
    MTU_ACK    the same, of the same length

PROBE and PROBE_ACK have 48 bytes, the others as many as make an outer IP packet of `size` bytes; so an answer is never
longer than its question. Sealed under the data keys with the sender's
index and counter, from the same counters as DATA.
"""

import hmac
import struct
from typing import Final, NamedTuple

from jvpn.protocol.constants import CHALLENGE_SIZE, CHALLENGE_SLOT_S, PathKind
from jvpn.protocol.suites import suite

PATH_SIZE: Final = 48
#: Flags of a PROBE_ACK: the probe's index is the active one; its source is the bound one.
INDEX_ACTIVE: Final = 1
SOURCE_BOUND: Final = 2
#: Timestamp of a PROBE_ACK that answers no probe.
UNSOLICITED: Final = 0
#: Flag of an MTU_PROBE: the search is over, `confirmed` is what the path carries.
SETTLED: Final = 1

_PROBE = struct.Struct(">BBHQQQ20s")
_ACK = struct.Struct(">BBHQQQ16sI")
_ZEROS = bytes(20)
_MTU = struct.Struct(">BBHQH")
_SOURCE = struct.Struct(">16sH")
_DESTINATION = struct.Struct(">16sHBQ")
_SHA256: Final = suite(1)


class PathError(Exception):
    """A PATH plaintext that breaks the format."""


class Probe(NamedTuple):
    """`timestamp_us` is the sender's own affair and comes back; the counters are the sender's of this index."""

    timestamp_us: int
    received: int
    highest: int

    def encode(self) -> bytes:
        return _PROBE.pack(PathKind.PROBE, 0, 0, self.timestamp_us, self.received, self.highest, _ZEROS)


class ProbeAck(NamedTuple):
    """`timestamp_us` as in the probe, UNSOLICITED when there was none; `flags` INDEX_ACTIVE and SOURCE_BOUND."""

    flags: int
    timestamp_us: int
    received: int
    highest: int
    challenge: bytes
    highest_installed: int

    def encode(self) -> bytes:
        return _ACK.pack(PathKind.PROBE_ACK, self.flags, 0, *self[1:])


class MtuProbe(NamedTuple):
    """`size` of its outer IP packet; `confirmed`: the size that is known to pass both ways, `settled` for good."""

    timestamp_us: int
    size: int
    confirmed: int
    settled: bool

    def encode(self, length: int) -> bytes:
        """`length` bytes of plaintext, at least 48."""
        return _encode_mtu(PathKind.MTU_PROBE, self, length)


class MtuAck(NamedTuple):
    """What the MTU_PROBE said, in a packet of the same size."""

    timestamp_us: int
    size: int
    confirmed: int
    settled: bool

    def encode(self, length: int) -> bytes:
        return _encode_mtu(PathKind.MTU_ACK, self, length)


def _encode_mtu(kind: PathKind, message: MtuProbe | MtuAck, length: int) -> bytes:
    flags = SETTLED if message.settled else 0
    fixed = _MTU.pack(kind, flags, message.size, message.timestamp_us, message.confirmed)
    return fixed.ljust(max(length, PATH_SIZE), b"\0")


def decode(plaintext: bytes) -> Probe | ProbeAck | MtuProbe | MtuAck:
    """Read a PATH plaintext. Raises PathError when it breaks the format; unknown flags are ignored."""
    if len(plaintext) >= PATH_SIZE and plaintext[0] in (PathKind.MTU_PROBE, PathKind.MTU_ACK):
        kind, flags, size, timestamp, confirmed = _MTU.unpack_from(plaintext)
        if any(plaintext[_MTU.size :]):
            raise PathError("the padding is not zero")
        made = MtuProbe if kind == PathKind.MTU_PROBE else MtuAck
        return made(timestamp, size, confirmed, bool(flags & SETTLED))
    if len(plaintext) != PATH_SIZE:
        raise PathError(f"a PATH plaintext has {PATH_SIZE} bytes, not {len(plaintext)}")
    kind, flags, zero, timestamp, received, highest, challenge, installed = _ACK.unpack(plaintext)
    if zero:
        raise PathError("reserved bytes are not zero")
    if kind == PathKind.PROBE_ACK:
        return ProbeAck(flags, timestamp, received, highest, challenge, installed)
    if kind == PathKind.PROBE and plaintext[28:] == _ZEROS:
        return Probe(timestamp, received, highest)
    raise PathError(f"PATH kind {kind} is not known or not empty where it must be")


def challenge(
    key: bytes,
    session_id: bytes,
    source: bytes,
    port: int,
    local: bytes,
    local_port: int,
    transport: int,
    slot: int,
) -> bytes:
    """16 bytes that only somebody who receives at `source` can know; `slot` is `challenge_slot(now)`.

    HMAC-SHA256 over session id 16 ‖ source 16 ‖ port 2 ‖ local 16 ‖ local port 2 ‖ transport 1 ‖ slot 8.
    """
    message = session_id + _SOURCE.pack(source, port) + _DESTINATION.pack(local, local_port, transport, slot)
    return _SHA256.hmac(key, message)[:CHALLENGE_SIZE]


def challenge_slot(boottime_ns: int) -> int:
    return boottime_ns // (CHALLENGE_SLOT_S * 1_000_000_000)


def challenge_valid(
    echoed: bytes,
    key: bytes,
    session_id: bytes,
    source: bytes,
    port: int,
    local: bytes,
    local_port: int,
    transport: int,
    slot: int,
) -> bool:
    """Whether `echoed` is the challenge of `slot` or of the one before it, for exactly this path."""
    return any(
        hmac.compare_digest(
            echoed, challenge(key, session_id, source, port, local, local_port, transport, candidate)
        )
        for candidate in (slot, slot - 1)
        if candidate >= 0
    )
