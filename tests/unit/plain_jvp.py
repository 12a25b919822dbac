"""JVP/1 a second time, from the text of docs/protocol.md alone: the standard library and primitives of `cryptography`.

Nothing of this project is imported. It makes and opens single messages; what a client does with them is not here.
"""

import hashlib
import hmac
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

NAMES = {1: b"Noise_IKpsk2_25519_AESGCM_SHA256", 2: b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"}


def digest(suite: int, data: bytes) -> bytes:
    return (hashlib.sha256 if suite == 1 else hashlib.blake2s)(data).digest()


def mac(suite: int, key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256 if suite == 1 else hashlib.blake2s).digest()


def expand(suite: int, prk: bytes, info: bytes, size: int = 32) -> bytes:
    return mac(suite, prk, info + b"\1")[:size]


def aead(suite: int, key: bytes) -> AESGCM | ChaCha20Poly1305:
    return AESGCM(key) if suite == 1 else ChaCha20Poly1305(key)


def public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def dh(private: bytes, other: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(other))


# --- header, keys -------------------------------------------------------------------------------------------------


def header(kind: int, steering_id: bytes, counter: int = 0, phase: int = 0, suite: int = 0) -> bytes:
    return bytes((kind, 0x10 | phase & 15, suite, 0)) + steering_id + counter.to_bytes(8, "big")


def refusal(datagram: bytes) -> str | None:
    """Why a receiver drops it by its header."""
    handshake, uncounted = (1, 2, 3), (1, 2, 3, 0x11, 0x12, 0x30)
    known = (*uncounted, 0x10, 0x20, 0x21, 0x22, 0x23, 0x24)
    if len(datagram) < 20:
        return "truncated"
    kind, version, suite, zero = datagram[:4]
    if kind not in known:
        return "unknown_type"
    if version >> 4 != 1:
        return "bad_version"
    if (
        zero
        or (suite and kind not in handshake)
        or (kind in uncounted and (version & 15 or any(datagram[12:20])))
    ):
        return "reserved_bits"
    if len(datagram) < 36 or len(datagram) != {0x10: 256, 0x30: 36}.get(kind, len(datagram)):
        return "bad_length"
    return None


def nonce(index: int, counter: int) -> bytes:
    return index.to_bytes(4, "big") + counter.to_bytes(8, "big")


@dataclass
class Secrets:
    suite: int
    session: bytes
    phase: bytes
    number: int = 0

    def steering_id(self, index: int) -> bytes:
        return expand(self.suite, self.session, b"jvp1 id" + index.to_bytes(4, "big"), 8)

    def traffic_key(self, name: str, direction: int, epoch: int) -> bytes:
        info = f"jvp1 {name}".encode() + bytes((direction,)) + epoch.to_bytes(3, "big")
        return expand(self.suite, self.phase, info)

    def reattach_key(self) -> bytes:
        return expand(self.suite, self.session, b"jvp1 reattach")

    def reply_key(self, salt: bytes) -> bytes:
        return expand(self.suite, self.session, b"jvp1 reply" + salt)

    def after(self, dh_secret: bytes, kem_secret: bytes, init: bytes, response: bytes) -> "Secrets":
        prk = mac(self.suite, self.phase, dh_secret + kem_secret)
        phase = expand(self.suite, prk, b"jvp1 phase" + digest(self.suite, init + response))
        return Secrets(self.suite, self.session, phase, self.number + 1)

    def open(self, name: str, direction: int, epoch: int, index: int, datagram: bytes) -> bytes:
        """A DATA kind, PATH or CONTROL that came on `index` under this phase."""
        assert refusal(datagram) is None
        assert datagram[1] == 0x10 | self.number & 15
        assert datagram[4:12] == self.steering_id(index)
        key = self.traffic_key(name, direction, epoch)
        counter = int.from_bytes(datagram[12:20], "big")
        return aead(self.suite, key).decrypt(nonce(index, counter), datagram[20:], datagram[:20])


def first_secrets(suite: int, handshake_hash: bytes, k1: bytes, k2: bytes) -> Secrets:
    prk = mac(suite, handshake_hash, k1 + k2)
    return Secrets(suite, expand(suite, prk, b"jvp1 session"), expand(suite, prk, b"jvp1 phase"))


# --- handshake, as the client ---------------------------------------------------------------------------------------


class Noise:
    """The client's state through both messages."""

    def __init__(self, suite: int, prologue: bytes, gateway: bytes) -> None:
        self.suite = suite
        name = NAMES[suite]
        self.h = self.ck = name.ljust(32, b"\0") if len(name) <= 32 else digest(suite, name)
        self.k, self.i = b"", 0
        self.mix_hash(prologue)
        self.mix_hash(gateway)

    def mix_hash(self, data: bytes) -> None:
        self.h = digest(self.suite, self.h + data)

    def hkdf(self, data: bytes) -> tuple[bytes, bytes, bytes]:
        t0 = mac(self.suite, self.ck, data)
        t1 = mac(self.suite, t0, b"\1")
        t2 = mac(self.suite, t0, t1 + b"\2")
        return t1, t2, mac(self.suite, t0, t2 + b"\3")

    def mix_key(self, data: bytes) -> None:
        self.ck, self.k, _ = self.hkdf(data)
        self.i = 0

    def mix_key_and_hash(self, data: bytes) -> None:
        self.ck, middle, self.k = self.hkdf(data)
        self.mix_hash(middle)
        self.i = 0

    def _nonce(self) -> bytes:
        return struct.pack(">4xQ" if self.suite == 1 else "<4xQ", self.i)

    def seal(self, data: bytes) -> bytes:
        sealed = aead(self.suite, self.k).encrypt(self._nonce(), data, self.h)
        self.i += 1
        self.mix_hash(sealed)
        return sealed

    def unseal(self, sealed: bytes) -> bytes:
        data = aead(self.suite, self.k).decrypt(self._nonce(), sealed, self.h)
        self.i += 1
        self.mix_hash(sealed)
        return data


@dataclass
class Opened:
    session_id: bytes
    epoch: int
    kem: int
    secrets: Secrets


class Handshake:
    """INIT of one attempt, and what comes back."""

    def __init__(
        self,
        suite: int,
        static: bytes,
        gateway: bytes,
        ephemeral: bytes,
        random: bytes,
        timestamp_us: int,
        policy: bytes,
    ) -> None:
        self.suite, self.static, self.ephemeral, self.gateway = suite, static, ephemeral, gateway
        self.random = random
        head = header(1, random, suite=suite)
        noise = self.noise = Noise(suite, b"JVP/1" + bytes((suite,)) + head, gateway)
        noise.mix_hash(public(ephemeral))
        noise.mix_key(public(ephemeral))
        noise.mix_key(dh(ephemeral, gateway))
        sealed_static = noise.seal(public(static))
        noise.mix_key(dh(static, gateway))
        payload = timestamp_us.to_bytes(8, "big") + bytes(4) + bytes((len(policy),)) + policy
        covered = head + public(ephemeral) + sealed_static + noise.seal(payload)
        mac1 = mac(suite, digest(suite, b"jvp1 mac1" + gateway), covered)[:16]
        self.init = covered + mac1 + bytes(16)

    def cookie(self, datagram: bytes) -> bytes:
        assert datagram[:20] == header(3, self.random, suite=self.suite)
        key = expand(self.suite, mac(self.suite, b"", self.gateway), b"cookie" + datagram[20:36])
        return AESGCM(key).decrypt(bytes(12), datagram[36:], self.init[-32:-16])

    def with_mac2(self, cookie: bytes) -> bytes:
        return self.init[:-16] + mac(self.suite, cookie, self.init[:-16])[:16]

    def response(self, datagram: bytes, psk: bytes) -> Opened:
        assert datagram[:20] == header(2, self.random, suite=self.suite)
        noise, theirs = self.noise, datagram[20:52]
        noise.mix_hash(theirs)
        noise.mix_key(theirs)
        noise.mix_key(dh(self.ephemeral, theirs))
        noise.mix_key(dh(self.static, theirs))
        noise.mix_key_and_hash(psk)
        payload = noise.unseal(datagram[52:])
        k1, k2, _ = noise.hkdf(b"")
        secrets = first_secrets(self.suite, noise.h, k1, k2)
        return Opened(payload[:16], int.from_bytes(payload[16:19], "big"), payload[19], secrets)


# --- CONTROL, rekey -------------------------------------------------------------------------------------------------


@dataclass
class Frame:
    kind: int
    flags: int
    message_id: int
    chunk: int
    chunks: int
    value: bytes


def frames(plaintext: bytes) -> list[Frame]:
    out = []
    while plaintext:
        kind, flags, size, message_id, chunk, chunks = struct.unpack_from(">BBHIBB", plaintext)
        assert 1 <= kind <= 9
        assert flags in (0, 1)
        assert chunk < chunks
        assert len(plaintext) >= 10 + size
        out.append(Frame(kind, flags, message_id, chunk, chunks, plaintext[10 : 10 + size]))
        plaintext = plaintext[10 + size :]
    return out


def acknowledged(value: bytes) -> tuple[int, set[int]]:
    bits = {8 * at + bit for at, byte in enumerate(value[4:]) for bit in range(8) if byte >> bit & 1}
    return int.from_bytes(value[:4], "big"), bits


def rekey_value(number: int, kem: int, private: bytes, tail: bytes) -> bytes:
    return number.to_bytes(4, "big") + bytes((kem,)) + public(private) + tail


def encapsulation_key(seed: bytes) -> bytes:
    return MLKEM768PrivateKey.from_seed_bytes(seed).public_key().public_bytes_raw()


def decapsulate(seed: bytes, ciphertext: bytes) -> bytes:
    return MLKEM768PrivateKey.from_seed_bytes(seed).decapsulate(ciphertext)


# --- PATH, reattach -------------------------------------------------------------------------------------------------


def reports(data: bytes, count: int) -> list[tuple[int, int, bytes]]:
    return [struct.unpack_from(">IQ32s", data, 44 * at) for at in range(count)]


def request(secrets: Secrets, counter: int, fields: bytes, index: int, ticket: bytes) -> bytes:
    head = header(0x10, secrets.steering_id(index), counter)
    sealer = aead(secrets.suite, secrets.reattach_key())
    return head + ticket + sealer.encrypt(nonce(index, counter), fields.ljust(176, b"\0"), head)


def answer(secrets: Secrets, datagram: bytes, index: int) -> bytes:
    """The plaintext of a REATTACH_ACK or FAIL."""
    assert refusal(datagram) is None
    assert datagram[4:12] == secrets.steering_id(index)
    assert len(datagram) <= 256
    opener = aead(secrets.suite, secrets.reply_key(datagram[20:36]))
    return opener.decrypt(bytes(12), datagram[36:], datagram[:20])


def open_ticket(fleet_key: bytes, steering_id: bytes, ticket: bytes) -> bytes:
    """The SessionID, in both suites by AES-256-GCM."""
    return AESGCM(fleet_key).decrypt(ticket[:12], ticket[12:], steering_id)


def reset_token(fleet_key: bytes, session_id: bytes) -> bytes:
    return mac(1, fleet_key, b"reset" + session_id)[:16]


# --- DATA -----------------------------------------------------------------------------------------------------------


def ones_sum(data: bytes) -> int:
    data += b"\0" * (len(data) & 1)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _pseudo_sum(packet: bytes, start: int) -> bytes:
    """Pseudo header of an inner packet without extension headers."""
    size = len(packet) - start
    if packet[0] >> 4 == 4:
        return packet[12:20] + bytes((0, packet[9])) + size.to_bytes(2, "big")
    return packet[8:40] + size.to_bytes(4, "big") + bytes((0, 0, 0, packet[6]))


def _set(packet: bytearray, at: int, value: int, size: int = 2) -> None:
    packet[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "big")


def packet_of(plaintext: bytes) -> bytes:
    """The inner packet that a DATA plaintext stands for, its checksums complete."""
    flags, kind, size, start, index = struct.unpack_from(">BBHHH", plaintext)
    packet = bytearray(plaintext[8:])
    if kind == 0:
        if flags & 1:
            at = start + index
            _set(packet, at, (0xFFFF - ones_sum(bytes(packet[start:]))) or 0xFFFF)
        return bytes(packet)
    is_tcp, last = kind != 5, bool(flags & 2)
    if packet[0] >> 4 == 4:
        _set(packet, 2, len(packet))
        _set(packet, 4, int.from_bytes(packet[4:6], "big") + index)
        _set(packet, 10, 0)
        _set(packet, 10, 0xFFFF - ones_sum(bytes(packet[:start])))
    else:
        _set(packet, 4, len(packet) - 40)
    if is_tcp:
        _set(packet, start + 4, int.from_bytes(packet[start + 4 : start + 8], "big") + index * size, 4)
        packet[start + 13] &= 0xFF if last else 0xFF & ~0x09
        packet[start + 13] &= 0x7F if index else 0xFF
    else:
        _set(packet, start + 4, len(packet) - start)
    at = start + (16 if is_tcp else 6)
    _set(packet, at, 0)
    _set(packet, at, (0xFFFF - ones_sum(_pseudo_sum(bytes(packet), start) + bytes(packet[start:]))) or 0xFFFF)
    return bytes(packet)
