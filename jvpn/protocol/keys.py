"""The key schedule of JVP/1 (docs/protocol.md, "Names, indexes, epochs, keys"): from Noise's Split to every key.

H is the suite's hash, Ex and X are HKDF-Extract and HKDF-Expand to 32 bytes (RFC 5869), ‖ joins bytes:

    PRK       = Ex(salt = handshake hash, k1 ‖ k2)
    session   = X(PRK, "jvp1 session")             lives as long as the session
    phase_0   = X(PRK, "jvp1 phase")
    phase_p+1 = X(Ex(salt = phase_p, dh ‖ kem), "jvp1 phase" ‖ H(REKEY_INIT ‖ REKEY_RESPONSE))

Every function is pure. No repr shows a key; Python cannot overwrite `bytes`, so an old secret is gone only when
its last reference is.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from jvpn.protocol.constants import KEY_SIZE, MAC_SIZE, SALT_SIZE, Direction
from jvpn.protocol.suites import Suite, hkdf_expand, hkdf_expand_each, hkdf_extract, require_size

_NONCE = struct.Struct(">IQ")
_EPOCH_LIMIT = 1 << 24
_STEERING_ID_SIZE = 8

#: Nonce under a key that seals exactly one message (the reply key, the cookie key).
ZERO_NONCE = bytes(12)


@dataclass(frozen=True, slots=True)
class SessionSecrets:
    """What a session's keys are derived from, 32 bytes each, and the number of the phase that `phase` belongs to.

    `phase_number` counts up without end; the header carries its low four bits. `reattach` is derived once, for each
    REQUEST asks for it.
    """

    suite: Suite
    session: bytes = field(repr=False)
    phase: bytes = field(repr=False)
    phase_number: int = 0
    reattach: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.session) != KEY_SIZE or len(self.phase) != KEY_SIZE:
            raise ValueError(f"session and phase secrets have {KEY_SIZE} bytes")
        object.__setattr__(self, "reattach", hkdf_expand(self.suite, self.session, b"jvp1 reattach"))


def session_secrets(suite: Suite, handshake_hash: bytes, k1: bytes, k2: bytes) -> SessionSecrets:
    """The secrets of a new session, phase 0, from what Noise leaves; k1 is the client's sending key of Split."""
    prk = hkdf_extract(suite, handshake_hash, k1 + k2)
    return SessionSecrets(
        suite, hkdf_expand(suite, prk, b"jvp1 session"), hkdf_expand(suite, prk, b"jvp1 phase")
    )


def next_phase(
    secrets: SessionSecrets, *, dh: bytes, rekey_init: bytes, rekey_response: bytes, kem_secret: bytes = b""
) -> SessionSecrets:
    """The secrets after a rekey.

    `dh` is the X25519 secret, `kem_secret` ML-KEM-768's (empty without KEM), 32 bytes each; `rekey_init` and
    `rekey_response` are the whole values of the two CONTROL messages, which binds the phase to what was said.
    Raises ValueError on another length of a secret.
    """
    if len(dh) != KEY_SIZE or len(kem_secret) not in (0, KEY_SIZE):
        raise ValueError(f"dh and kem secrets have {KEY_SIZE} bytes")
    suite = secrets.suite
    transcript = suite.digest(rekey_init + rekey_response)
    phase = hkdf_expand(
        suite, hkdf_extract(suite, secrets.phase, dh + kem_secret), b"jvp1 phase" + transcript
    )
    return replace(secrets, phase=phase, phase_number=secrets.phase_number + 1)


def data_key(secrets: SessionSecrets, direction: Direction, epoch: int) -> bytes:
    """Key of DATA, FRAGMENT, RESENT and PATH of this phase. Raises ValueError when epoch is not 24 bit."""
    return hkdf_expand(secrets.suite, secrets.phase, b"jvp1 data" + _direction_epoch(direction, epoch))


def control_key(secrets: SessionSecrets, direction: Direction, epoch: int) -> bytes:
    """Key of CONTROL of this phase. Raises ValueError when epoch is not 24 bit."""
    return hkdf_expand(secrets.suite, secrets.phase, b"jvp1 control" + _direction_epoch(direction, epoch))


def reattach_key(secrets: SessionSecrets) -> bytes:
    """Key of REATTACH_REQUEST, the same in every phase and epoch: an overdue rekey never refuses a reattach."""
    return secrets.reattach


def reply_key(secrets: SessionSecrets, salt: bytes) -> bytes:
    """Key of one REATTACH_ACK or FAIL, used with ZERO_NONCE; `salt` is 16 random bytes sent in clear."""
    require_size(salt, SALT_SIZE, "a reply's salt")
    return hkdf_expand(secrets.suite, secrets.session, b"jvp1 reply" + salt)


def steering_id(secrets: SessionSecrets, n: int) -> bytes:
    """The 8 bytes that steer datagrams of index `n` (32 bit; ValueError beyond)."""
    return hkdf_expand(secrets.suite, secrets.session, _steering_info(n), _STEERING_ID_SIZE)


def steering_ids(secrets: SessionSecrets, indexes: Sequence[int]) -> dict[int, bytes]:
    """`steering_id` of each, by index: in less time than one by one."""
    if len(indexes) == 1:
        return {indexes[0]: steering_id(secrets, indexes[0])}
    infos = [_steering_info(n) for n in indexes]
    ids = hkdf_expand_each(secrets.suite, secrets.session, infos, _STEERING_ID_SIZE)
    return dict(zip(indexes, ids, strict=True))


def _steering_info(n: int) -> bytes:
    if not 0 <= n < 1 << 32:
        raise ValueError(f"an index has 32 bits, {n} does not fit")
    return b"jvp1 id" + n.to_bytes(4, "big")


def nonce(index: int, counter: int) -> bytes:
    """The 12-byte transport nonce: index 4 ‖ counter 8. Raises struct.error when one does not fit."""
    return _NONCE.pack(index, counter)


def mac1(suite: Suite, gateway_public: bytes, covered: bytes) -> bytes:
    """MAC that shows knowledge of the gateway's public key; `covered` is all of INIT before mac1."""
    key = suite.digest(b"jvp1 mac1" + gateway_public)
    return suite.hmac(key, covered)[:MAC_SIZE]


def mac2(suite: Suite, cookie: bytes, covered: bytes) -> bytes:
    """MAC that shows that a COOKIE arrived; `covered` is all of INIT before mac2, mac1 included."""
    return suite.hmac(cookie, covered)[:MAC_SIZE]


def cookie_key(suite: Suite, gateway_public: bytes, salt: bytes) -> bytes:
    """AES-256-GCM key of one COOKIE, used with ZERO_NONCE; `salt` is 16 random bytes sent in clear.

    X(Ex(salt = empty, gateway's public key), "cookie" ‖ salt).
    """
    require_size(salt, SALT_SIZE, "a cookie's salt")
    return hkdf_expand(suite, hkdf_extract(suite, b"", gateway_public), b"cookie" + salt)


def _direction_epoch(direction: Direction, epoch: int) -> bytes:
    if not 0 <= epoch < _EPOCH_LIMIT:
        raise ValueError(f"an epoch has 24 bits, {epoch} does not fit")
    return bytes((direction,)) + epoch.to_bytes(3, "big")
