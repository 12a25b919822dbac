"""HANDSHAKE_INIT, HANDSHAKE_RESPONSE and COOKIE (docs/protocol.md, "Handshake"): Noise_IKpsk2_25519 in datagrams.

    INIT      header ‖ Noise message 1 ‖ mac1 16 ‖ mac2 16                     161 … 1 232 bytes
              payload: timestamp_us 8 ‖ capabilities 4 ‖ n 1 ‖ policy name n ‖ zeros
    RESPONSE  header ‖ Noise message 2                                         88 bytes
              payload: SessionID 16 ‖ epoch 3 ‖ kem 1
    COOKIE    header ‖ salt 16 ‖ sealed(cookie 16)                             68 bytes, AAD = INIT's mac1

The gateway's order: `check_mac1` (one HMAC), under load `check_mac2`, then `read_init` (Diffie-Hellman), then what
the client's key and timestamp allow, then `respond`. Anything a peer can send ends in a value or a HandshakeError.
"""

import hmac
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from cryptography.exceptions import InvalidTag

from jvpn.protocol.constants import (
    HEADER_SIZE,
    KEY_SIZE,
    MAC_SIZE,
    MAX_CONTROL_DATAGRAM,
    SALT_SIZE,
    SESSION_ID_SIZE,
    TAG_SIZE,
    PacketType,
)
from jvpn.protocol.keys import ZERO_NONCE, SessionSecrets, cookie_key, mac1, mac2, session_secrets
from jvpn.protocol.noise import HandshakeState, LocalError, RemoteError
from jvpn.protocol.suites import Suite, require_size, suite
from jvpn.protocol.wire import Header, WireError

PATTERN: Final = "IKpsk2"
NO_PSK: Final = bytes(KEY_SIZE)
COOKIE_SIZE: Final = 16
POLICY_NAME_MAX: Final = 32

_INIT_PAYLOAD = struct.Struct(">QIB")
_RESPONSE_PAYLOAD = struct.Struct(f">{SESSION_ID_SIZE}s3sB")
#: Noise message 1 without its payload: e, sealed s, the payload's tag.
_MESSAGE_1 = KEY_SIZE + KEY_SIZE + TAG_SIZE + TAG_SIZE
_SIZES = {
    PacketType.HANDSHAKE_INIT: range(
        HEADER_SIZE + _MESSAGE_1 + _INIT_PAYLOAD.size + 2 * MAC_SIZE, MAX_CONTROL_DATAGRAM + 1
    ),
    PacketType.HANDSHAKE_RESPONSE: (HEADER_SIZE + KEY_SIZE + _RESPONSE_PAYLOAD.size + TAG_SIZE,),
    PacketType.COOKIE: (HEADER_SIZE + SALT_SIZE + COOKIE_SIZE + TAG_SIZE,),
}


class HandshakeError(Exception):
    """A handshake datagram that was refused; nothing has changed. `reason` names the counter it belongs to.

    One of WireError's reasons, or `wrong_type`, `unknown_suite`, `bad_mac1`, `authentication`, `low_order`,
    `bad_payload`, `not_an_answer` (to this INIT), `answered` (already).
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"handshake datagram refused: {reason}")
        self.reason = reason


class Kem(IntEnum):
    """What the first rekey must bring beside X25519 before any DATA flows."""

    NONE = 0
    MLKEM768 = 1


@dataclass(frozen=True, slots=True)
class HandshakeResult:
    """What both ends hold after message 2: `session_id` 16 bytes, `epoch` 24 bit, the secrets of phase 0."""

    session_id: bytes
    epoch: int
    kem: Kem
    secrets: SessionSecrets


class Initiator:
    """A client's one attempt: `init_datagram` is sent as it is, each answer goes to a `read_` method.

    Ephemeral key (32 bytes) and `client_random` (8) are fresh random bytes, never used before; `timestamp_us` is
    higher than any this static key has sent. `psk` is 32 bytes, NO_PSK without. Raises ValueError on arguments
    that do not fit, among them a gateway key that is no point of full order.
    """

    def __init__(
        self,
        suite: Suite,
        static_private: bytes,
        gateway_public: bytes,
        psk: bytes,
        ephemeral_private: bytes,
        client_random: bytes,
        timestamp_us: int,
        capabilities: int,
        policy_name: str,
    ) -> None:
        payload = _encode_init_payload(timestamp_us, capabilities, policy_name)
        require_size(psk, KEY_SIZE, "a psk")
        require_size(client_random, 8, "client_random")
        self._suite = suite
        self._gateway_public = gateway_public
        self._client_random = client_random
        header = Header(PacketType.HANDSHAKE_INIT, client_random, suite=suite.number).encode()
        self._noise = HandshakeState(
            suite,
            PATTERN,
            initiator=True,
            static_private=static_private,
            remote_static=gateway_public,
            prologue=_prologue(suite, header),
            psk=psk,
        )
        try:
            message = self._noise.write_message(payload, ephemeral_private)
        except RemoteError:
            raise ValueError(
                "the gateway's public key is no usable X25519 key: check the configuration"
            ) from None
        covered = header + message
        self.init_datagram = covered + mac1(suite, gateway_public, covered) + bytes(MAC_SIZE)

    def read_response(self, datagram: bytes) -> HandshakeResult:
        """The session that RESPONSE opens. Raises HandshakeError; a genuine RESPONSE is still taken after that."""
        self._check_header(datagram, PacketType.HANDSHAKE_RESPONSE)
        try:
            payload = self._noise.read_message(datagram[HEADER_SIZE:])
        except RemoteError as refused:
            raise HandshakeError(refused.reason) from None
        except LocalError:
            raise HandshakeError("answered") from None
        session_id, epoch, kem = _RESPONSE_PAYLOAD.unpack(payload)
        try:
            demanded = Kem(kem)
        except ValueError:
            raise HandshakeError("bad_payload") from None
        secrets = _secrets(self._suite, self._noise)
        return HandshakeResult(session_id, int.from_bytes(epoch, "big"), demanded, secrets)

    def read_cookie(self, datagram: bytes) -> bytes:
        """The same INIT with the mac2 that COOKIE asks for, to be sent instead. Raises HandshakeError."""
        self._check_header(datagram, PacketType.COOKIE)
        salt, sealed = datagram[HEADER_SIZE : HEADER_SIZE + SALT_SIZE], datagram[HEADER_SIZE + SALT_SIZE :]
        aead = suite(1).aead(cookie_key(self._suite, self._gateway_public, salt))
        try:
            cookie = aead.decrypt(ZERO_NONCE, sealed, _mac1_of(self.init_datagram))
        except InvalidTag:
            raise HandshakeError("authentication") from None
        covered = self.init_datagram[:-MAC_SIZE]
        return covered + mac2(self._suite, cookie, covered)

    def _check_header(self, datagram: bytes, kind: PacketType) -> None:
        # Noise does not cover an answer's header, but INIT's determines every bit of it.
        _decode_header(datagram, kind)
        if datagram[:HEADER_SIZE] != Header(kind, self._client_random, suite=self._suite.number).encode():
            raise HandshakeError("not_an_answer")


@dataclass(frozen=True, slots=True)
class InitOpened:
    """A genuine INIT: who asks (32-byte static public key), when by its own clock, for what."""

    suite: Suite
    client_public: bytes
    client_random: bytes
    timestamp_us: int
    capabilities: int
    policy_name: str
    _size: int = field(repr=False)
    _noise: HandshakeState = field(repr=False)

    def respond(
        self, psk: bytes, ephemeral_private: bytes, session_id: bytes, epoch: int, kem: Kem
    ) -> tuple[bytes, HandshakeResult]:
        """The RESPONSE datagram and the new session; once per INIT (LocalError after that).

        `psk` 32 bytes (the peer's, or NO_PSK), `ephemeral_private` 32 and `session_id` 16 fresh random bytes.
        Raises ValueError on arguments that do not fit.
        """
        require_size(psk, KEY_SIZE, "a psk")
        require_size(session_id, SESSION_ID_SIZE, "a SessionID")
        if not 0 <= epoch < 1 << 24:
            raise ValueError(f"an epoch has 24 bits, {epoch} does not fit")
        payload = _RESPONSE_PAYLOAD.pack(session_id, epoch.to_bytes(3, "big"), kem)
        self._noise.psk = psk
        message = self._noise.write_message(payload, ephemeral_private)
        header = Header(PacketType.HANDSHAKE_RESPONSE, self.client_random, suite=self.suite.number)
        datagram = header.encode() + message
        assert len(datagram) <= self._size, "no handshake is answered by more bytes than it had"
        return datagram, HandshakeResult(session_id, epoch, kem, _secrets(self.suite, self._noise))


def check_mac1(datagram: bytes, gateway_public: bytes) -> Header:
    """The header of an INIT whose mac1 is right: the sender knows the gateway's public key, no more.

    Costs one hash and one HMAC. Raises HandshakeError.
    """
    header = _decode_header(datagram, PacketType.HANDSHAKE_INIT)
    expected = mac1(suite(header.suite), gateway_public, datagram[: -2 * MAC_SIZE])
    if not hmac.compare_digest(_mac1_of(datagram), expected):
        raise HandshakeError("bad_mac1")
    return header


def check_mac2(datagram: bytes, cookie: bytes) -> bool:
    """Whether an INIT that passed check_mac1 shows `cookie` (16 bytes, what its source was sent)."""
    expected = mac2(suite(datagram[2]), cookie, datagram[:-MAC_SIZE])
    return hmac.compare_digest(datagram[-MAC_SIZE:], expected)


def cookie_datagram(init: bytes, gateway_public: bytes, cookie: bytes, salt: bytes) -> bytes:
    """The COOKIE that answers an INIT which passed check_mac1; `cookie` and `salt` (fresh random) are 16 bytes."""
    require_size(cookie, COOKIE_SIZE, "a cookie")
    asked = Header.decode(init)
    aead = suite(1).aead(cookie_key(suite(asked.suite), gateway_public, salt))
    header = Header(PacketType.COOKIE, asked.steering_id, suite=asked.suite)
    return header.encode() + salt + aead.encrypt(ZERO_NONCE, cookie, _mac1_of(init))


def read_init(datagram: bytes, static_private: bytes) -> InitOpened:
    """Open an INIT with the gateway's private key (two Diffie-Hellmans; call check_mac1 first).

    Raises HandshakeError. Genuine does not mean fresh: the caller judges key and timestamp.
    """
    header = _decode_header(datagram, PacketType.HANDSHAKE_INIT)
    chosen = suite(header.suite)
    noise = HandshakeState(
        chosen,
        PATTERN,
        initiator=False,
        static_private=static_private,
        prologue=_prologue(chosen, datagram[:HEADER_SIZE]),
    )
    try:
        payload = noise.read_message(datagram[HEADER_SIZE : -2 * MAC_SIZE])
    except RemoteError as refused:
        raise HandshakeError(refused.reason) from None
    client_public = noise.remote_static
    assert client_public is not None
    return InitOpened(
        chosen, client_public, header.steering_id, *_decode_init_payload(payload), len(datagram), noise
    )


def _decode_header(datagram: bytes, kind: PacketType) -> Header:
    try:
        header = Header.decode(datagram)
    except WireError as refused:
        raise HandshakeError(refused.reason) from None
    if header.type is not kind:
        raise HandshakeError("wrong_type")
    if len(datagram) not in _SIZES[kind]:
        raise HandshakeError("bad_length")
    try:
        suite(header.suite)
    except ValueError:
        raise HandshakeError("unknown_suite") from None
    return header


def _encode_init_payload(timestamp_us: int, capabilities: int, policy_name: str) -> bytes:
    if len(policy_name) > POLICY_NAME_MAX or not _is_policy_name(policy_name):
        raise ValueError(
            f"a policy name is at most {POLICY_NAME_MAX} printable ASCII characters: {policy_name!r}"
        )
    if not (0 <= timestamp_us < 1 << 64 and 0 <= capabilities < 1 << 32):
        raise ValueError("timestamp_us has 64 bits, capabilities 32")
    return _INIT_PAYLOAD.pack(timestamp_us, capabilities, len(policy_name)) + policy_name.encode("ascii")


def _decode_init_payload(payload: bytes) -> tuple[int, int, str]:
    timestamp_us, capabilities, size = _INIT_PAYLOAD.unpack_from(payload)
    name, padding = payload[_INIT_PAYLOAD.size :][:size], payload[_INIT_PAYLOAD.size + size :]
    text = name.decode("latin-1")
    if size > POLICY_NAME_MAX or len(name) != size or any(padding) or not _is_policy_name(text):
        raise HandshakeError("bad_payload")
    return timestamp_us, capabilities, text


def _is_policy_name(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _prologue(suite: Suite, init_header: bytes) -> bytes:
    return b"JVP/1" + bytes((suite.number,)) + init_header


def _mac1_of(init: bytes) -> bytes:
    return init[-2 * MAC_SIZE : -MAC_SIZE]


def _secrets(suite: Suite, noise: HandshakeState) -> SessionSecrets:
    split = noise.split()
    return session_secrets(suite, split.handshake_hash, split.k1, split.k2)
