"""What the areas share: fixed inputs, the shape of a vector, and a datagram under the data keys."""

from typing import Any

from jvpn.protocol import keys
from jvpn.protocol.constants import Direction, PacketType
from jvpn.protocol.keys import SessionSecrets
from jvpn.protocol.suites import Suite
from jvpn.protocol.wire import Header

UP, DOWN = Direction.CLIENT_TO_GATEWAY, Direction.GATEWAY_TO_CLIENT
Vector = dict[str, Any]

EPOCH = 1
#: All three bytes of it count.
LATER_EPOCH = 0x010203
SESSION_ID = bytes(range(0x60, 0x70))
SALT = bytes(range(0x40, 0x50))
CHALLENGE = bytes(range(0x90, 0xA0))


def pattern(first: int, size: int = 32) -> bytes:
    """Bytes that nobody takes for secret: first, first + 1, …"""
    return bytes((first + i) & 0xFF for i in range(size))


def vector(name: str, suite: Suite | None, given: Vector, out: Vector) -> Vector:
    head: Vector = {"name": name} if suite is None else {"name": name, "suite": suite.number}
    return head | {"in": given, "out": out}


def phase_zero(suite: Suite) -> SessionSecrets:
    return keys.session_secrets(suite, pattern(0x00), pattern(0x20), pattern(0x40))


def given_secrets(secrets: SessionSecrets) -> Vector:
    """What the vectors of a running session start from."""
    return {"session": secrets.session, "phase": secrets.phase, "phase_number": secrets.phase_number}


def seal_data_kind(
    secrets: SessionSecrets,
    way: Direction,
    kind: PacketType,
    index: int,
    counter: int,
    plaintext: bytes,
    epoch: int = EPOCH,
) -> bytes:
    """A datagram under the data keys."""
    steering_id = keys.steering_id(secrets, index)
    header = Header(kind, steering_id, counter, secrets.phase_number & 15).encode()
    aead = secrets.suite.aead(keys.data_key(secrets, way, epoch))
    return header + aead.encrypt(keys.nonce(index, counter), plaintext, header)
