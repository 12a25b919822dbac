"""The two cipher suites of JVP/1 and the primitives that differ between them.

AEADs come from `cryptography` (OpenSSL), hashes from `hashlib`. In both suites keys are 32 bytes, nonces 12,
tags 16.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2s, sha256
from typing import Any, Final, Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from jvpn.protocol.constants import KEY_SIZE

#: Of both hashes, bytes; and each byte with HMAC's ipad and opad (RFC 2104, 2).
_BLOCK_SIZE: Final = 64
_INNER: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER: Final = bytes(byte ^ 0x5C for byte in range(256))


class Aead(Protocol):
    """An AEAD bound to one key; `decrypt` raises `cryptography.exceptions.InvalidTag`."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...


def require_size(value: bytes, size: int, name: str) -> None:
    """Raise ValueError, naming the value but not showing it, unless it has `size` bytes."""
    if len(value) != size:
        raise ValueError(f"{name} has {size} bytes, not {len(value)}")


def _aes_256_gcm(key: bytes) -> Aead:
    # AESGCM would take 16 bytes as well and silently be AES-128.
    require_size(key, KEY_SIZE, "an AES-256-GCM key")
    return AESGCM(key)


def x25519_public(private: bytes) -> bytes:
    """The public key of 32 private bytes (RFC 7748). Raises ValueError on another length."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def x25519(private: bytes, public: bytes) -> bytes:
    """The 32-byte shared secret of RFC 7748.

    Raises ValueError on a wrong length and, as RFC 7748 section 6.1 allows, on an all-zero result, which is
    what any point of low order gives.
    """
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


@dataclass(frozen=True, slots=True)
class Suite:
    """A row of the suite table; `number` is what the header's suite byte carries.

    `aead(key)` takes 32 bytes and raises ValueError otherwise; `hash` is a hashlib constructor; `noise_nonce`
    packs Noise's 64-bit message number (Noise section 12). Transport nonces are 12 bytes made by the caller.
    """

    number: int
    name: str
    aead: Callable[[bytes], Aead] = field(repr=False)
    hash: Callable[..., Any] = field(repr=False)
    hash_len: int = field(repr=False)
    dh: Callable[[bytes, bytes], bytes] = field(repr=False)
    noise_nonce: Callable[[int], bytes] = field(repr=False)

    def digest(self, data: bytes) -> bytes:
        """The suite's hash of `data`, `hash_len` bytes."""
        return bytes(self.hash(data).digest())

    def hmac(self, key: bytes, data: bytes) -> bytes:
        """HMAC (RFC 2104) with the suite's hash, `hash_len` bytes; for BLAKE2s too, as Noise has it.

        Of two hashes: hmac.digest has OpenSSL 3 look for its HMAC at each call, which takes longer than these.
        """
        inner, outer = self._pads(key)
        return bytes(self.hash(outer + self.hash(inner + data).digest()).digest())

    def hmacs(self, key: bytes, many: Sequence[bytes]) -> list[bytes]:
        """`hmac` of each of `many` under one key, which is hashed once."""
        pads = self._pads(key)
        inner, outer = self.hash(pads[0]), self.hash(pads[1])
        found = []
        for data in many:
            within, around = inner.copy(), outer.copy()
            within.update(data)
            around.update(within.digest())
            found.append(bytes(around.digest()))
        return found

    def _pads(self, key: bytes) -> tuple[bytes, bytes]:
        """The key of RFC 2104, for the inner and the outer hash."""
        block = (key if len(key) <= _BLOCK_SIZE else self.digest(key)).ljust(_BLOCK_SIZE, b"\0")
        return block.translate(_INNER), block.translate(_OUTER)


SUITES: Final = {
    1: Suite(1, "AESGCM_SHA256", _aes_256_gcm, sha256, 32, x25519, struct.Struct(">4xQ").pack),
    2: Suite(2, "ChaChaPoly_BLAKE2s", ChaCha20Poly1305, blake2s, 32, x25519, struct.Struct("<4xQ").pack),
}


def suite(number: int) -> Suite:
    """The suite of that number. Raises ValueError when JVP/1 has none."""
    try:
        return SUITES[number]
    except KeyError:
        raise ValueError(f"no cipher suite {number}: JVP/1 has {sorted(SUITES)}") from None


def hkdf_extract(suite: Suite, salt: bytes, ikm: bytes) -> bytes:
    """HKDF-Extract (RFC 5869, 2.2) with the suite's hash."""
    return suite.hmac(salt, ikm)


def hkdf_expand(suite: Suite, prk: bytes, info: bytes, n: int = KEY_SIZE) -> bytes:
    """HKDF-Expand (RFC 5869, 2.3) to `n` bytes. Raises ValueError above 255 hash lengths."""
    if n <= suite.hash_len:
        return suite.hmac(prk, info + b"\x01")[:n]
    blocks = -(-n // suite.hash_len)
    if blocks > 255:
        raise ValueError(f"HKDF gives at most {255 * suite.hash_len} bytes, not {n}")
    out = block = b""
    for i in range(1, blocks + 1):
        block = suite.hmac(prk, block + info + bytes((i,)))
        out += block
    return out[:n]


def hkdf_expand_each(suite: Suite, prk: bytes, infos: Sequence[bytes], n: int = KEY_SIZE) -> list[bytes]:
    """`hkdf_expand` for each of `infos`. Raises ValueError above one hash length."""
    if n > suite.hash_len:
        raise ValueError(f"one block of HKDF has {suite.hash_len} bytes, not {n}")
    return [block[:n] for block in suite.hmacs(prk, [info + b"\x01" for info in infos])]


def noise_hkdf(suite: Suite, chaining_key: bytes, ikm: bytes, outputs: int) -> list[bytes]:
    """HKDF of Noise section 4.3: RFC 5869 with empty info, cut into `outputs` (2 or 3) hash lengths."""
    size = suite.hash_len
    okm = hkdf_expand(suite, hkdf_extract(suite, chaining_key, ikm), b"", outputs * size)
    return [okm[i : i + size] for i in range(0, outputs * size, size)]
