"""The key log of JVP/1: what opens the sealed part of captured datagrams (docs/traffic.md, "Key log").

A text file in the spirit of SSLKEYLOGFILE, one line a session, epoch and phase:

    JVP1 <suite> <epoch> <phase number> <session secret, 64 hex digits> <phase secret, 64 hex digits>

Empty lines, lines that begin with #, and lines with another first word say nothing here. All keys, nonces and AEADs
come from jvpn.protocol; there is no Scapy in this file.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag

from jvpn.protocol import keys
from jvpn.protocol.constants import (
    HEADER_SIZE,
    MAX_INDEX,
    OFFSET_COUNTER,
    OFFSET_STEERING_ID,
    Direction,
    PacketType,
)
from jvpn.protocol.keylog import LABEL, line
from jvpn.protocol.keys import SessionSecrets
from jvpn.protocol.suites import Aead, suite

__all__ = ["LABEL", "KeyLog", "KeyLogError", "Sealing", "line"]

#: Indexes of a session that are looked for above the highest one opened so far.
AHEAD: Final = 256

_ANSWERS: Final = (PacketType.REATTACH_ACK, PacketType.REATTACH_FAIL)
_REATTACH: Final = (PacketType.REATTACH_REQUEST, *_ANSWERS)
#: No session lives for a phase number of more digits.
_DECIMAL: Final = re.compile(r"[0-9]{1,18}")


class KeyLogError(ValueError):
    """A line of a key log that begins as one should and does not go on so."""


@dataclass(frozen=True, slots=True)
class Sealing:
    """What one datagram is sealed under: enough to open it, and to seal it again after a change.

    `epoch` and `direction` mean nothing to the REATTACH messages. `header` is always the datagram's 20 bytes, `salt`
    the 16 in clear of REATTACH_ACK and FAIL (b"" elsewhere).
    """

    secrets: SessionSecrets
    epoch: int
    direction: Direction
    index: int

    def open(self, header: bytes, salt: bytes, sealed: bytes) -> bytes | None:
        """The plaintext of ciphertext and tag; None: another key's."""
        aead, nonce = self._under(header, salt)
        try:
            return aead.decrypt(nonce, sealed, header)
        except InvalidTag:
            return None

    def seal(self, header: bytes, salt: bytes, plaintext: bytes) -> bytes:
        """Ciphertext and tag."""
        aead, nonce = self._under(header, salt)
        return aead.encrypt(nonce, plaintext, header)

    def _under(self, header: bytes, salt: bytes) -> tuple[Aead, bytes]:
        nonce = keys.nonce(self.index, int.from_bytes(header[OFFSET_COUNTER:HEADER_SIZE], "big"))
        kind = header[0]
        if kind in _ANSWERS:
            key, nonce = keys.reply_key(self.secrets, salt), keys.ZERO_NONCE
        elif kind == PacketType.REATTACH_REQUEST:
            key = keys.reattach_key(self.secrets)
        elif kind == PacketType.CONTROL:
            key = keys.control_key(self.secrets, self.direction, self.epoch)
        else:
            key = keys.data_key(self.secrets, self.direction, self.epoch)
        return self.secrets.suite.aead(key), nonce


@dataclass(slots=True)
class _Session:
    """Phases by their number and epochs, in the order of the log; `reach` is the first index not looked for yet."""

    phases: dict[int, SessionSecrets] = field(default_factory=dict)
    epochs: dict[int, None] = field(default_factory=dict)
    reach: int = 0


class KeyLog:
    """Sessions by the steering ids of their indexes, and the keys of all their phases."""

    def __init__(self) -> None:
        self._sessions: dict[bytes, _Session] = {}
        self._ids: dict[bytes, tuple[bytes, int]] = {}

    @classmethod
    def read(cls, path: Path | str) -> "KeyLog":
        """The key log in a file. Raises OSError, and KeyLogError that names the line."""
        return cls.parse(Path(path).read_text(encoding="utf-8", errors="replace").splitlines())

    @classmethod
    def parse(cls, lines: Iterable[str]) -> "KeyLog":
        """The key log of these lines. Raises KeyLogError that names the line."""
        log = cls()
        for number, text in enumerate(lines, 1):
            words = text.split()
            if words[:1] == [LABEL]:
                log.add(*_parsed(words[1:], number))
        return log

    def __len__(self) -> int:
        """Sessions that it has keys of."""
        return len(self._sessions)

    def add(self, secrets: SessionSecrets, epoch: int) -> None:
        """The secrets of one phase, and an epoch of its session. A takeover changes the epoch and not the phase, which
        may be the one before the newest: every phase is tried in every epoch."""
        session = self._sessions.setdefault(secrets.session, _Session())
        session.phases[secrets.phase_number] = secrets
        session.epochs[epoch] = None
        self._look_to(secrets, AHEAD)

    def open(self, header: bytes, salt: bytes, sealed: bytes) -> tuple[bytes, Sealing] | None:
        """The plaintext of a datagram's sealed part and what it is sealed under; None: nothing here opens it."""
        found = self._ids.get(header[OFFSET_STEERING_ID:OFFSET_COUNTER])
        if found is None:
            return None
        session, index = found
        for sealing in self._candidates(self._sessions[session], index, header):
            plaintext = sealing.open(header, salt, sealed)
            if plaintext is not None:
                self._look_to(sealing.secrets, index + 1 + AHEAD)
                return plaintext, sealing
        return None

    def _candidates(self, session: _Session, index: int, header: bytes) -> Iterator[Sealing]:
        """Newest first. Epoch and direction are not on the wire; reattach keys depend on neither, nor on the phase."""
        phases = reversed(session.phases.values())
        if header[0] in _REATTACH:
            yield Sealing(next(phases), 0, Direction(header[0] in _ANSWERS), index)
            return
        under = [secrets for secrets in phases if secrets.phase_number & 15 == header[1] & 15]
        for secrets, epoch, direction in product(under, reversed(session.epochs), Direction):
            yield Sealing(secrets, epoch, direction, index)

    def _look_to(self, secrets: SessionSecrets, reach: int) -> None:
        session = self._sessions[secrets.session]
        wanted = range(session.reach, min(reach, MAX_INDEX + 1))
        if wanted:
            ids = keys.steering_ids(secrets, wanted)
            self._ids.update({steering_id: (secrets.session, n) for n, steering_id in ids.items()})
            session.reach = wanted.stop


def _parsed(words: list[str], number: int) -> tuple[SessionSecrets, int]:
    try:
        suite_number, epoch_number, phase_number, session, phase = words
        known, epoch = suite(_decimal(suite_number)), _decimal(epoch_number)
        secrets = SessionSecrets(known, bytes.fromhex(session), bytes.fromhex(phase), _decimal(phase_number))
        # Refuses what is no epoch.
        keys.control_key(secrets, Direction.CLIENT_TO_GATEWAY, epoch)
    except ValueError as error:
        raise KeyLogError(
            f"key log, line {number}: {error}. A line is: {LABEL} suite epoch phase session-secret phase-secret, "
            "numbers in decimal and secrets of 64 hex digits; remove the line or make the log again"
        ) from None
    return secrets, epoch


def _decimal(word: str) -> int:
    """Digits of ASCII alone, as every reader of the format takes them. Raises ValueError."""
    if not _DECIMAL.fullmatch(word):
        raise ValueError(f"{word!r} is no decimal number")
    return int(word)
