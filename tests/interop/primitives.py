"""Suites, key derivation and the Noise handshake of JVP/1, from the initiator's side.

An independent client, made from docs/protocol.md alone; imports nothing of jvpn.
"""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

NONCE_0 = bytes(12)


class Aead(Protocol):
    """What AESGCM and ChaCha20Poly1305 have in common."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...


@dataclass(frozen=True)
class Suite:
    """One row of the page's table of suites."""

    number: int
    noise_name: bytes
    aead: Callable[[bytes], Aead]
    hash_function: Callable[..., Any]
    noise_nonce_little_endian: bool

    def digest(self, data: bytes) -> bytes:
        return bytes(self.hash_function(data).digest())

    def mac(self, key: bytes, data: bytes) -> bytes:
        return hmac.new(key, data, self.hash_function).digest()

    def extract(self, salt: bytes, material: bytes) -> bytes:
        return self.mac(salt, material)

    def expand(self, key: bytes, info: bytes, size: int = 32) -> bytes:
        return self.mac(key, info + b"\x01")[:size]

    def noise_nonce(self, number: int) -> bytes:
        return bytes(4) + number.to_bytes(8, "little" if self.noise_nonce_little_endian else "big")


SUITES = {
    1: Suite(1, b"Noise_IKpsk2_25519_AESGCM_SHA256", AESGCM, hashlib.sha256, False),
    2: Suite(2, b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s", ChaCha20Poly1305, hashlib.blake2s, True),
}


def public_of(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def dh(private: bytes, public: bytes) -> bytes:
    """X25519. Raises ValueError for an all-zero result."""
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


class NoiseInitiator:
    """Noise_IKpsk2 of the client: message 1 out, message 2 in, Split."""

    def __init__(
        self, suite: Suite, header: bytes, static: bytes, ephemeral: bytes, gateway: bytes, psk: bytes
    ) -> None:
        self.suite = suite
        self._static, self._ephemeral, self._gateway, self._psk = static, ephemeral, gateway, psk
        name = suite.noise_name
        self._hash = self._chain = name.ljust(32, b"\0") if len(name) <= 32 else suite.digest(name)
        self._key = b""
        self._number = 0
        self._mix_hash(b"JVP/1" + bytes([suite.number]) + header)
        self._mix_hash(gateway)

    def message_1(self, payload: bytes) -> bytes:
        ephemeral = public_of(self._ephemeral)
        self._mix_hash(ephemeral)
        self._mix_key(ephemeral)
        self._mix_key(dh(self._ephemeral, self._gateway))
        identity = self._seal(public_of(self._static))
        self._mix_key(dh(self._static, self._gateway))
        return ephemeral + identity + self._seal(payload)

    def message_2(self, message: bytes) -> tuple[bytes, bytes, bytes, bytes]:
        """Payload, handshake hash, k1, k2. Raises for a message that does not open, and then changes nothing."""
        before = self._hash, self._chain, self._key, self._number
        try:
            ephemeral, sealed = message[:32], message[32:]
            self._mix_hash(ephemeral)
            self._mix_key(ephemeral)
            self._mix_key(dh(self._ephemeral, ephemeral))
            self._mix_key(dh(self._static, ephemeral))
            self._mix_key_and_hash(self._psk)
            payload = self._open(sealed)
        except Exception:
            self._hash, self._chain, self._key, self._number = before
            raise
        k1, k2, _ = self._hkdf(b"")
        return payload, self._hash, k1, k2

    def _hkdf(self, material: bytes) -> tuple[bytes, bytes, bytes]:
        mac = self.suite.mac
        t0 = mac(self._chain, material)
        t1 = mac(t0, b"\x01")
        t2 = mac(t0, t1 + b"\x02")
        return t1, t2, mac(t0, t2 + b"\x03")

    def _mix_hash(self, data: bytes) -> None:
        self._hash = self.suite.digest(self._hash + data)

    def _mix_key(self, material: bytes) -> None:
        self._chain, self._key, _ = self._hkdf(material)
        self._number = 0

    def _mix_key_and_hash(self, material: bytes) -> None:
        self._chain, y, self._key = self._hkdf(material)
        self._mix_hash(y)
        self._number = 0

    def _seal(self, data: bytes) -> bytes:
        sealed = self.suite.aead(self._key).encrypt(self.suite.noise_nonce(self._number), data, self._hash)
        self._number += 1
        self._mix_hash(sealed)
        return sealed

    def _open(self, sealed: bytes) -> bytes:
        nonce = self.suite.noise_nonce(self._number)
        data = self.suite.aead(self._key).decrypt(nonce, sealed, self._hash)
        self._number += 1
        self._mix_hash(sealed)
        return data


def mac1(suite: Suite, gateway: bytes, before: bytes) -> bytes:
    return suite.mac(suite.digest(b"jvp1 mac1" + gateway), before)[:16]


def open_cookie(suite: Suite, gateway: bytes, datagram: bytes, mac1_of_init: bytes) -> bytes:
    """The cookie in a COOKIE datagram. Raises InvalidTag for a false one."""
    salt, sealed = datagram[20:36], datagram[36:]
    key = suite.expand(suite.extract(b"", gateway), b"cookie" + salt)
    return AESGCM(key).decrypt(NONCE_0, sealed, mac1_of_init)
