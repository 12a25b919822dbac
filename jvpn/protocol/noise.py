"""Noise (revision 34) for the patterns IK and IKpsk2 over 25519, without I/O.

Three objects, as in section 5 of the specification: CipherState holds a key and a message number,
SymmetricState the chaining key and the transcript hash, HandshakeState walks a pattern's tokens. Ephemeral
keys are arguments.
"""

import copy
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag

from jvpn.protocol.constants import KEY_SIZE, TAG_SIZE
from jvpn.protocol.suites import Aead, Suite, noise_hkdf, x25519_public

#: pattern → the tokens of message 1 (initiator) and message 2 (responder); both have the pre-message "<- s".
PATTERNS: Final = {
    "IK": (("e", "es", "s", "ss"), ("e", "ee", "se")),
    "IKpsk2": (("e", "es", "s", "ss"), ("e", "ee", "se", "psk")),
}
MAX_MESSAGE_SIZE: Final = 65_535


class NoiseError(Exception):
    """The handshake cannot go on."""


class LocalError(NoiseError):
    """This end's caller asked for what the handshake's state or keys do not allow."""


class RemoteError(NoiseError):
    """The peer's message or key is no valid one: `reason` is `length`, `authentication` or `low_order`."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the peer's handshake message was refused: {reason}")
        self.reason = reason


class CipherState:
    """Section 5.1: an AEAD key with its message number; without a key it passes data through."""

    __slots__ = ("_aead", "_n", "_suite")

    def __init__(self, suite: Suite, key: bytes | None = None) -> None:
        self._suite = suite
        self._aead: Aead | None = None if key is None else suite.aead(key)
        self._n = 0

    def encrypt(self, ad: bytes, plaintext: bytes) -> bytes:
        if self._aead is None:
            return plaintext
        sealed = self._aead.encrypt(self._suite.noise_nonce(self._n), plaintext, ad)
        self._n += 1
        return sealed

    def decrypt(self, ad: bytes, sealed: bytes) -> bytes:
        """Raises RemoteError(`authentication`) and leaves the message number alone."""
        if self._aead is None:
            return sealed
        try:
            plaintext = self._aead.decrypt(self._suite.noise_nonce(self._n), sealed, ad)
        except InvalidTag:
            raise RemoteError("authentication") from None
        self._n += 1
        return plaintext


class SymmetricState:
    """Section 5.2: the chaining key, the transcript hash and the cipher they key."""

    __slots__ = ("_chaining_key", "_cipher", "_suite", "handshake_hash")

    def __init__(self, suite: Suite, protocol_name: bytes) -> None:
        fits = len(protocol_name) <= suite.hash_len
        start = protocol_name.ljust(suite.hash_len, b"\0") if fits else suite.digest(protocol_name)
        self._suite = suite
        self._chaining_key = self.handshake_hash = start
        self._cipher = CipherState(suite)

    def mix_key(self, ikm: bytes) -> None:
        self._chaining_key, key = noise_hkdf(self._suite, self._chaining_key, ikm, 2)
        self._cipher = CipherState(self._suite, key)

    def mix_hash(self, data: bytes) -> None:
        self.handshake_hash = self._suite.digest(self.handshake_hash + data)

    def mix_key_and_hash(self, psk: bytes) -> None:
        self._chaining_key, mixed, key = noise_hkdf(self._suite, self._chaining_key, psk, 3)
        self.mix_hash(mixed)
        self._cipher = CipherState(self._suite, key)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        sealed = self._cipher.encrypt(self.handshake_hash, plaintext)
        self.mix_hash(sealed)
        return sealed

    def decrypt_and_hash(self, sealed: bytes) -> bytes:
        plaintext = self._cipher.decrypt(self.handshake_hash, sealed)
        self.mix_hash(sealed)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        """The two transport keys of section 5.2, initiator → responder first."""
        k1, k2 = noise_hkdf(self._suite, self._chaining_key, b"", 2)
        return k1, k2


class Split(NamedTuple):
    """What a finished handshake leaves; k1 is the initiator's sending key. Its repr shows no key."""

    k1: bytes
    k2: bytes
    handshake_hash: bytes

    def __repr__(self) -> str:
        return "Split(…)"


@dataclass(slots=True)
class _Keys:
    """The key pairs and peer keys of section 5.3 (s, e, rs, re); never shown."""

    s: bytes = field(repr=False)
    e: bytes | None = field(default=None, repr=False)
    rs: bytes | None = field(default=None, repr=False)
    re: bytes | None = field(default=None, repr=False)


class HandshakeState:
    """Section 5.3 for one handshake: `write_message` and `read_message` by turns, then `split`.

    An initiator knows `remote_static`; a responder learns it from message 1. `psk` (32 bytes) is needed by
    IKpsk2 before message 2 and may be set later as an attribute. A message that fails changes nothing, so a
    forged one leaves room for the genuine one.
    """

    def __init__(
        self,
        suite: Suite,
        pattern: str,
        *,
        initiator: bool,
        static_private: bytes,
        remote_static: bytes | None = None,
        prologue: bytes = b"",
        psk: bytes | None = None,
    ) -> None:
        if initiator != (remote_static is not None):
            raise LocalError("in IK the initiator, and only it, knows the peer's static key beforehand")
        self._messages = PATTERNS[pattern]
        self._suite = suite
        self._initiator = initiator
        self._keys = _Keys(static_private, rs=remote_static)
        self._psk_pattern = "psk" in pattern
        self.psk = psk
        self._done = 0
        self._symmetric = SymmetricState(suite, f"Noise_{pattern}_25519_{suite.name}".encode())
        self._symmetric.mix_hash(prologue)
        self._symmetric.mix_hash(x25519_public(static_private) if remote_static is None else remote_static)

    @property
    def remote_static(self) -> bytes | None:
        """The peer's static public key; at a responder None before message 1."""
        return self._keys.rs

    def write_message(self, payload: bytes, ephemeral_private: bytes) -> bytes:
        """The next message, `payload` sealed at its end.

        Raises LocalError when it is the peer's turn or the psk is missing, RemoteError(`low_order`) when a key
        of the peer is a point of low order.
        """
        tokens = self._turn(writing=True)
        symmetric, keys = self._draft()
        keys.e = ephemeral_private
        message = b""
        for token in tokens:
            if token == "e":
                message += self._mix_ephemeral(symmetric, x25519_public(ephemeral_private))
            elif token == "s":
                message += symmetric.encrypt_and_hash(x25519_public(keys.s))
            else:
                self._mix_secret(symmetric, keys, token)
        message += symmetric.encrypt_and_hash(payload)
        if len(message) > MAX_MESSAGE_SIZE:
            raise LocalError(f"a Noise message has at most {MAX_MESSAGE_SIZE} bytes, not {len(message)}")
        self._commit(symmetric, keys)
        return message

    def read_message(self, message: bytes) -> bytes:
        """The payload of the peer's next message.

        Raises LocalError when it is this end's turn or the psk is missing, RemoteError when the message is
        bad.
        """
        tokens = self._turn(writing=False)
        symmetric, keys = self._draft()
        if len(message) > MAX_MESSAGE_SIZE:
            raise RemoteError("length")
        rest = message
        for token in tokens:
            if token == "e":
                public, rest = _cut(rest, KEY_SIZE)
                keys.re = self._mix_ephemeral(symmetric, public)
            elif token == "s":
                # In both patterns "es" has keyed the cipher by now, so a tag follows.
                sealed, rest = _cut(rest, KEY_SIZE + TAG_SIZE)
                keys.rs = symmetric.decrypt_and_hash(sealed)
            else:
                self._mix_secret(symmetric, keys, token)
        payload = symmetric.decrypt_and_hash(rest)
        self._commit(symmetric, keys)
        return payload

    def split(self) -> Split:
        """The transport keys and the handshake hash. Raises LocalError before the last message."""
        if self._done < len(self._messages):
            raise LocalError("the handshake is not finished")
        return Split(*self._symmetric.split(), self._symmetric.handshake_hash)

    def _turn(self, *, writing: bool) -> tuple[str, ...]:
        if self._done == len(self._messages):
            raise LocalError("the handshake is finished")
        if writing != (self._initiator == (self._done == 0)):
            raise LocalError("it is the peer's turn" if writing else "it is this end's turn")
        return self._messages[self._done]

    def _draft(self) -> tuple[SymmetricState, _Keys]:
        # Shallow is enough: every message mixes a key, and so makes a new cipher, before the first use of one.
        return copy.copy(self._symmetric), copy.copy(self._keys)

    def _commit(self, symmetric: SymmetricState, keys: _Keys) -> None:
        self._symmetric, self._keys = symmetric, keys
        self._done += 1

    def _mix_ephemeral(self, symmetric: SymmetricState, public: bytes) -> bytes:
        symmetric.mix_hash(public)
        if self._psk_pattern:  # section 9.2: with a psk the ephemeral keys the cipher, too
            symmetric.mix_key(public)
        return public

    def _mix_secret(self, symmetric: SymmetricState, keys: _Keys, token: str) -> None:
        if token == "psk":
            if self.psk is None or len(self.psk) != KEY_SIZE:
                raise LocalError(f"this pattern needs a psk of {KEY_SIZE} bytes")
            symmetric.mix_key_and_hash(self.psk)
            return
        mine, theirs = (token[0], token[1]) if self._initiator else (token[1], token[0])
        private = keys.e if mine == "e" else keys.s
        public = keys.re if theirs == "e" else keys.rs
        assert private is not None
        assert public is not None
        try:
            secret = self._suite.dh(private, public)
        except ValueError:
            raise RemoteError("low_order") from None
        symmetric.mix_key(secret)


def _cut(data: bytes, size: int) -> tuple[bytes, bytes]:
    if len(data) < size:
        raise RemoteError("length")
    return data[:size], data[size:]
