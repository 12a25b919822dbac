"""The 20-byte header that every JVP/1 datagram begins with (docs/protocol.md, "Header").

type 1 ‖ version and phase 1 ‖ suite 1 ‖ zero 1 ‖ steering_id 8 ‖ counter 8      (big-endian)
"""

import struct
from typing import NamedTuple, Self

from jvpn.protocol.constants import (
    COUNTERLESS_TYPES,
    HANDSHAKE_TYPES,
    HEADER_SIZE,
    REATTACH_REQUEST_SIZE,
    TAG_SIZE,
    VERSION,
    PacketType,
)

_HEADER = struct.Struct(">BBBB8sQ")
_TYPES = {int(t): t for t in PacketType}
#: Shortest datagram of each type; all sealed ones carry at least a tag behind the header.
_MINIMUM = dict.fromkeys(PacketType, HEADER_SIZE + TAG_SIZE)
_EXACT = {PacketType.REATTACH_REQUEST: REATTACH_REQUEST_SIZE, PacketType.RESET: HEADER_SIZE + 16}


class WireError(Exception):
    """A datagram that breaks the wire format; `reason` names the counter it belongs to."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Header(NamedTuple):
    """A datagram's header. `phase` is the low four bits of the key phase, `suite` zero outside handshakes."""

    type: PacketType
    steering_id: bytes
    counter: int = 0
    phase: int = 0
    suite: int = 0

    def encode(self) -> bytes:
        return _HEADER.pack(
            self.type, VERSION << 4 | self.phase & 15, self.suite, 0, self.steering_id, self.counter
        )

    @classmethod
    def decode(cls, datagram: bytes | bytearray | memoryview) -> Self:
        """Read and check the header of a whole datagram.

        Raises WireError: `truncated`, `unknown_type`, `bad_version`, `reserved_bits` or `bad_length`.
        """
        size = len(datagram)
        if size < HEADER_SIZE:
            raise WireError("truncated")
        number, version_phase, suite, zero, steering_id, counter = _HEADER.unpack_from(datagram)
        kind = _TYPES.get(number)
        if kind is None:
            raise WireError("unknown_type")
        if version_phase >> 4 != VERSION:
            raise WireError("bad_version")
        phase = version_phase & 15
        if zero or (suite and kind not in HANDSHAKE_TYPES):
            raise WireError("reserved_bits")
        if kind in COUNTERLESS_TYPES and (phase or counter):
            raise WireError("reserved_bits")
        if size < _MINIMUM[kind] or size != _EXACT.get(kind, size):
            raise WireError("bad_length")
        return cls(kind, steering_id, counter, phase, suite)
