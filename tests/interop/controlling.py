"""The session's CONTROL: messages both ways, CONFIG, STATE and HEALTH, rekeys.

An independent client, made from docs/protocol.md alone; imports nothing of jvpn.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from . import wire
from .calling import Calling, Identity
from .fragments import Fragments
from .messages import Inbox, Outbox, pack_plaintexts
from .path import Path
from .primitives import dh, public_of
from .session import Session
from .wire import Cause, Control, Frame, Refused, Type

OLD_PHASE_S, REKEY_SAID_AGAIN_S = 5.0, 1.0
FIRST_HIGHEST_INSTALLED = 3


class Stage(Enum):
    IDLE = "idle"
    CALLING = "calling"
    CONFIRMING = "confirming"
    BOUND = "bound"
    REATTACHING = "reattaching"
    CLOSED = "closed"


@dataclass
class Rekey:
    """One under way: its secrets and the value of its REKEY_INIT."""

    private: bytes
    kem_key: MLKEM768PrivateKey | None
    init: bytes
    said_at: float


@dataclass
class Attempt:
    """One wish to have a path bound."""

    number: int
    cause: Cause
    paths: list[Path]
    reports: tuple[bytes, ...]
    begun_at: float
    said_at: float
    #: Paths whose last REQUEST was sent because PENDING came.
    prompted: set[str] = field(default_factory=set)


class ControlEnd:
    """What a session is to its client: keys, versions, CONTROL and rekeys. The paths are its heirs' affair."""

    def __init__(
        self,
        identity: Identity,
        deliver: Callable[[bytes], None],
        report: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.identity = identity
        self.deliver, self.report = deliver, report
        self.stage = Stage.IDLE
        self.paths: dict[str, Path] = {}
        self.counters: Counter[str] = Counter()
        self.config: dict[str, Any] = {}
        self.session: Session | None = None
        self.active: Path | None = None
        self.attempt: Attempt | None = None
        self.handshakes = 0
        self._calling: Calling | None = None
        self._forget()

    def _forget(self) -> None:
        self.session, self.attempt, self.active = None, None, None
        self.kem, self.version, self.last_state = 0, 0, ""
        self._outbox, self._inbox, self._frames = Outbox(), Inbox(), list[Frame]()
        self._rekey: Rekey | None = None
        self._rekeyed_at = self._old_phase_until = 0.0
        self._next_index, self._highest_installed, self._next_attempt = 0, FIRST_HIGHEST_INSTALLED, 1
        self._draining: dict[int, float] = {}
        self._fragments, self._next_packet = Fragments(), 0
        self._path_counters: dict[int, int] = {}
        self._bound_at = 0.0
        self._confirming_since = self._health_at = 0.0
        self._retry_at: tuple[float, Cause] | None = None
        for path in self.paths.values():
            path.index, path.was_active, path.outstanding = None, False, {}

    def rekey(self) -> bool:
        """False while the last one is not over."""
        now = time.monotonic()
        if self.session is None or self._rekey or len(self.session.phases) > 1:
            return False
        private = os.urandom(32)
        kem_key = MLKEM768PrivateKey.generate() if self.kem else None
        init = (self.session.phase + 1).to_bytes(4, "big") + bytes([self.kem]) + public_of(private)
        init += kem_key.public_key().public_bytes_raw() if kem_key else b""
        self._rekey = Rekey(private, kem_key, init, now)
        self._frames += self._outbox.reliable(Control.REKEY_INIT, init, now)
        return True

    def close(self) -> None:
        for _ in range(3):
            self._frames.append(self._outbox.plain(Control.CLOSE, b"PEER_CLOSED"))
            self._flush()
        self._end("PEER_CLOSED")

    def _take_frame(self, frame: Frame) -> None:
        if frame.type == Control.ACK:
            self._outbox.acknowledged(frame.value)
            return
        value, ack = self._inbox.take(frame)
        if value is not None:
            try:
                self._take_message(frame.type, value)
            except Refused as refused:
                self.counters[str(refused)] += 1
        if ack is not None and self.session is not None:
            self._frames.append(ack)

    def _take_message(self, kind: Control, value: bytes) -> None:
        if kind == Control.REKEY_RESPONSE:
            self._take_rekey_response(value)
        elif kind == Control.CONFIG:
            self._take_config(value)
        elif kind == Control.STATE:
            state = wire.parse_state(value)
            if self.attempt is None and state.version > self.version:
                self.last_state = f"{state.state} {state.reason}"
                self.report("state", {"state": state.state, "reason": state.reason})
                self.version = state.version
            self._health()
        elif kind == Control.REKEY_REQUIRED:
            self.rekey()
        elif kind == Control.SWITCH:
            self.report("switch asked", {"reason": value.decode("ascii", "replace")})
        elif kind == Control.CLOSE:
            self._end(value.decode("ascii", "replace"))

    def _take_rekey_response(self, value: bytes) -> None:
        rekey, session = self._rekey, self.session
        wanted = 1125 if self.kem else 37
        if rekey is None or session is None or len(value) != wanted or value[:5] != rekey.init[:5]:
            raise Refused("bad_rekey")
        secret = rekey.kem_key.decapsulate(value[37:]) if rekey.kem_key else b""
        try:
            shared = dh(rekey.private, value[5:37])
        except ValueError:
            raise Refused("bad_rekey") from None
        session.next_phase(shared, secret, rekey.init, value)
        now = time.monotonic()
        self._rekey, self._rekeyed_at, self._old_phase_until = None, now, now + OLD_PHASE_S
        self._outbox.forget(Control.REKEY_INIT)
        self._health()
        self.report("rekey", {"phase": session.phase})

    def _take_config(self, value: bytes) -> None:
        try:
            config = json.loads(value)
            config["policy"], config["addresses"]
        except (ValueError, TypeError, KeyError):
            raise Refused("bad_control") from None
        self.config = config
        if self.stage == Stage.CONFIRMING:
            self.stage = Stage.BOUND
            self._rekeyed_at = self._rekeyed_at or time.monotonic()
            self.report("bound", {"addresses": config["addresses"], "mtu": config.get("mtu")})

    def _health(self) -> None:
        self._health_at = time.monotonic()
        self._frames.append(self._outbox.plain(Control.HEALTH, wire.pack_health(self.version)))

    def _flush(self) -> None:
        frames, self._frames = self._frames, []
        if self.session is None or self.active is None or self.active.index is None:
            return
        for plaintext in pack_plaintexts(frames):
            self.active.send(self.session.seal(Type.CONTROL, self.active.index, plaintext))

    def _tick_rekey(self, session: Session, now: float) -> None:
        if len(session.phases) > 1 and now >= self._old_phase_until:
            session.forget_old_phase()
        if self._rekey and now - self._rekey.said_at >= REKEY_SAID_AGAIN_S:
            self._rekey.said_at = now
            self._outbox.forget(Control.REKEY_INIT)
            self._frames += self._outbox.reliable(Control.REKEY_INIT, self._rekey.init, now)
        if self.stage == Stage.BOUND:
            interval_s = self.config["policy"]["rekey_interval_ms"] / 1000
            if now - self._rekeyed_at >= interval_s:
                self.rekey()

    def _end(self, reason: str) -> None:
        self.report("end", {"reason": reason})
        self._forget()
        self.stage = Stage.CLOSED
