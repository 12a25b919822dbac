"""The handshake: INITs until a RESPONSE opens, with COOKIE answered on the way.

An independent client, made from docs/protocol.md alone; imports nothing of jvpn.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path as File

from cryptography.exceptions import InvalidTag

from .primitives import SUITES, NoiseInitiator, mac1, open_cookie
from .session import Session
from .wire import Header, Refused, Type

FIRST_REPEAT_S, LAST_REPEAT_S = 0.3, 5.0


@dataclass(frozen=True)
class Identity:
    """What a client must know and keep."""

    private_key: bytes
    gateway_key: bytes
    timestamp_file: File
    psk: bytes = bytes(32)
    suite: int = 1
    least_kem: int = 1


def next_timestamp(file: File) -> int:
    """µs, above all that went before it, durable before it is used."""
    last = int(file.read_text()) if file.exists() else 0
    stamp = max(time.time_ns() // 1000, last + 1)
    fresh = file.with_suffix(".new")
    with fresh.open("w") as out:
        out.write(str(stamp))
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(file)
    return stamp


@dataclass
class Calling:
    """One attempt to reach the gateway; the newest INIT alone counts."""

    identity: Identity
    sent_at: float = float("-inf")
    repeat_s: float = FIRST_REPEAT_S
    _init: bytes = b""
    _noise: NoiseInitiator | None = None
    inits: int = 0

    def due(self, now: float) -> bool:
        return now - self.sent_at >= self.repeat_s

    def init(self, now: float) -> bytes:
        """A fresh INIT."""
        suite = SUITES[self.identity.suite]
        header = Header(Type.INIT, os.urandom(8), suite=suite.number).pack()
        who = self.identity
        self._noise = NoiseInitiator(suite, header, who.private_key, os.urandom(32), who.gateway_key, who.psk)
        payload = next_timestamp(who.timestamp_file).to_bytes(8, "big") + bytes(5)
        message = header + self._noise.message_1(payload)
        self._init = message + mac1(suite, who.gateway_key, message) + bytes(16)
        if self.inits:
            self.repeat_s = min(2 * self.repeat_s, LAST_REPEAT_S)
        self.inits += 1
        self.sent_at = now
        return self._init

    def cookie(self, datagram: bytes) -> bytes:
        """The same INIT with mac2. Raises Refused."""
        self._check_header(datagram, Type.COOKIE, 68)
        suite, before = SUITES[self.identity.suite], self._init[:-16]
        try:
            cookie = open_cookie(suite, self.identity.gateway_key, datagram, before[-16:])
        except InvalidTag:
            raise Refused("does not open") from None
        self._init = before + suite.mac(cookie, before)[:16]
        return self._init

    def response(self, datagram: bytes) -> tuple[Session, int]:
        """The session and its kem. Raises Refused, and then waits on for the genuine one."""
        self._check_header(datagram, Type.RESPONSE, 88)
        assert self._noise is not None
        try:
            payload, hash_, k1, k2 = self._noise.message_2(datagram[20:])
        except (InvalidTag, ValueError):
            raise Refused("does not open") from None
        kem = payload[19]
        if kem > 1 or kem < self.identity.least_kem:
            raise Refused("kem")
        epoch = int.from_bytes(payload[16:19], "big")
        return Session(SUITES[self.identity.suite], payload[:16], epoch, hash_, k1, k2), kem

    def _check_header(self, datagram: bytes, kind: Type, size: int) -> None:
        wanted = bytes([kind]) + self._init[1:20]
        if not self._init or datagram[:20] != wanted or len(datagram) != size:
            raise Refused("not for the newest INIT")
