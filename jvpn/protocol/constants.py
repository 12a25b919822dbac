"""Every number of JVP/1, in one place.

The first part is the protocol and may never change within version 1; the second part is this implementation's
own bounds. `bpf/jvp.h` repeats some of the first part for C; a test holds the two against each other.
"""

from enum import IntEnum
from typing import Final

# --- the protocol --------------------------------------------------------------------------------

VERSION: Final = 1

HEADER_SIZE: Final = 20
OFFSET_STEERING_ID: Final = 4
OFFSET_COUNTER: Final = 12
TAG_SIZE: Final = 16
MAC_SIZE: Final = 16
NONCE_SIZE: Final = 12
SESSION_ID_SIZE: Final = 16
CHALLENGE_SIZE: Final = 16
TICKET_SIZE: Final = 44
SALT_SIZE: Final = 16
REPORT_SIZE: Final = 44
MAX_REPORTS: Final = 3
KEY_SIZE: Final = 32


class PacketType(IntEnum):
    """First byte of a datagram; below 0x40, so that QUIC can share a port (RFC 9443)."""

    HANDSHAKE_INIT = 0x01
    HANDSHAKE_RESPONSE = 0x02
    COOKIE = 0x03
    REATTACH_REQUEST = 0x10
    REATTACH_ACK = 0x11
    REATTACH_FAIL = 0x12
    DATA = 0x20
    CONTROL = 0x21
    PATH = 0x22
    FRAGMENT = 0x23
    RESENT = 0x24
    RESET = 0x30


HANDSHAKE_TYPES: Final = frozenset(
    {PacketType.HANDSHAKE_INIT, PacketType.HANDSHAKE_RESPONSE, PacketType.COOKIE}
)
DATA_KINDS: Final = frozenset({PacketType.DATA, PacketType.FRAGMENT, PacketType.RESENT})
#: Types whose header counter and key phase are zero.
COUNTERLESS_TYPES: Final = HANDSHAKE_TYPES | {
    PacketType.REATTACH_ACK,
    PacketType.REATTACH_FAIL,
    PacketType.RESET,
}


class Direction(IntEnum):
    """Byte that separates the keys of the two directions."""

    CLIENT_TO_GATEWAY = 0
    GATEWAY_TO_CLIENT = 1


class Role(IntEnum):
    """What a steering id may be used for; the same numbers in `bpf/jvp.h`."""

    PENDING = 1
    INSTALLED = 2
    ACTIVE = 3
    DRAINING = 4


class PathKind(IntEnum):
    """First byte of a PATH plaintext."""

    PROBE = 1
    PROBE_ACK = 2
    MTU_PROBE = 3
    MTU_ACK = 4


class Transport(IntEnum):
    UDP = 1
    TCP = 2
    QUIC = 3


#: No control or handshake datagram is longer: fits IPv6's 1 280-byte minimum.
MAX_CONTROL_DATAGRAM: Final = 1232
REATTACH_REQUEST_SIZE: Final = 256
REATTACH_ACK_MAX_SIZE: Final = 256

OFFLOAD_HEADER_SIZE: Final = 8
#: Outer bytes on IPv4 / IPv6 around an inner packet: IP, UDP, header, offload header, tag.
OVERHEAD_IPV4: Final = 72
OVERHEAD_IPV6: Final = 92
#: Every path carries outer packets of this size: IPv6 demands it (RFC 8200, 5).
MIN_MTU: Final = 1280

REPLAY_WINDOW: Final = 8192
#: CONTROL is a few datagrams at a time, and a gateway keeps windows for every session it has.
CONTROL_REPLAY_WINDOW: Final = 256
GENERATION_SHIFT: Final = 48
#: Stands for no index, in ACK.
NO_INDEX: Final = 2**32 - 1
MAX_INDEX: Final = NO_INDEX - 1

CHALLENGE_SLOT_S: Final = 60
HANDSHAKE_PENDING_MS: Final = 5_000
OLD_PHASE_MS: Final = 5_000

CONTROL_FRAME_HEADER: Final = 10
CONTROL_REMEMBERED_IDS: Final = 64
CONTROL_REASSEMBLIES: Final = 4
CONTROL_MESSAGE_MAX: Final = 16_384
CONTROL_REPEAT_MIN_MS: Final = 50
CONTROL_STATE_REPEAT_MS: Final = 1_000
CLOSE_REPEATS: Final = 3

# --- this implementation --------------------------------------------------------------------------------

#: Transports that sessions are really carried over, by their names in policies and configuration.
CARRIED: Final = frozenset({Transport.UDP.name.lower()})

#: Largest UDP_SEGMENT send or GRO run, in segments (Linux UDP_MAX_SEGMENTS of kernels before 6.9).
MAX_SEGMENTS: Final = 64
#: Largest UDP payload over IPv4.
MAX_UDP_PAYLOAD: Final = 65_507
TUN_MTU: Final = 1400

#: Slots of the reuseport group: the supervisor's two, then one per worker.
SLOT_SUPERVISOR: Final = 0
SLOT_UNAUTHENTICATED: Final = 1
SLOT_FIRST_WORKER: Final = 2
