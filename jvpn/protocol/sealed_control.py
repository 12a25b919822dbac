"""CONTROL datagrams of one session, epoch and end: counters, nonces, replay windows, and the phases' control keys."""

from typing import NamedTuple

from cryptography.exceptions import InvalidTag

from jvpn.protocol import keys
from jvpn.protocol.constants import (
    CONTROL_REPLAY_WINDOW,
    GENERATION_SHIFT,
    HEADER_SIZE,
    MAX_CONTROL_DATAGRAM,
    OFFSET_COUNTER,
    Direction,
    PacketType,
)
from jvpn.protocol.keys import SessionSecrets
from jvpn.protocol.replay import ReplayWindow
from jvpn.protocol.suites import Suite
from jvpn.protocol.wire import Header, WireError

_WINDOWS_KEPT = 16


class _Phase(NamedTuple):
    """Keys, not AEADs: one is made in a microsecond when it is needed, and takes 2.5 KB as long as it is kept. Of
    CONTROL there is little, for many sessions."""

    number: int
    suite: Suite
    send_key: bytes
    receive_key: bytes


class Opened(NamedTuple):
    """An authenticated CONTROL plaintext and the number of the phase it came under."""

    plaintext: bytes
    phase_number: int


class SealedControl:
    """Seals and opens CONTROL. `generation` is the supervisor's (0 on a client): no counter is used twice."""

    def __init__(self, secrets: SessionSecrets, epoch: int, sends: Direction, generation: int = 0) -> None:
        self._epoch = epoch
        self._sends = sends
        self._generation = generation
        self._phases: dict[int, _Phase] = {}
        self._sequences: dict[int, int] = {}
        self._windows: dict[int, ReplayWindow] = {}
        self._windows_below = 0
        self._newest = (0, 0)
        self.add_phase(secrets)
        self._sending = self._phases[secrets.phase_number & 15]

    def add_phase(self, secrets: SessionSecrets) -> None:
        """Open what comes under this phase too; sending stays as it is."""
        send_key = keys.control_key(secrets, self._sends, self._epoch)
        receive_key = keys.control_key(secrets, Direction(1 - self._sends), self._epoch)
        number = secrets.phase_number
        self._phases[number & 15] = _Phase(number, secrets.suite, send_key, receive_key)

    def send_under(self, phase_number: int) -> None:
        """Seal under this phase from now on; it has been added."""
        self._sending = self._phases[phase_number & 15]

    def drop_phase(self, phase_number: int) -> None:
        """Nothing under this phase is opened any more."""
        phase = self._phases.get(phase_number & 15)
        if phase is not None and phase.number == phase_number:
            del self._phases[phase_number & 15]

    def seal(self, index: int, steering_id: bytes, plaintext: bytes) -> bytes:
        sequence = self._sequences.get(index, 0)
        self._sequences[index] = sequence + 1
        counter = self._generation << GENERATION_SHIFT | sequence
        phase = self._sending
        header = Header(PacketType.CONTROL, steering_id, counter, phase.number & 15).encode()
        aead = phase.suite.aead(phase.send_key)
        return header + aead.encrypt(keys.nonce(index, counter), plaintext, header)

    def open(self, index: int, datagram: bytes) -> Opened:
        """Open a datagram that came on `index`, once.

        Raises WireError `bad_length`, `unknown_phase`, `bad_tag` or `replay`; nothing has changed then.
        """
        if len(datagram) > MAX_CONTROL_DATAGRAM:
            raise WireError("bad_length")
        header = datagram[:HEADER_SIZE]
        phase = self._phases.get(header[1] & 15)
        if phase is None:
            raise WireError("unknown_phase")
        counter = int.from_bytes(header[OFFSET_COUNTER:], "big")
        try:
            aead = phase.suite.aead(phase.receive_key)
            plaintext = aead.decrypt(keys.nonce(index, counter), datagram[HEADER_SIZE:], header)
        except InvalidTag as error:
            raise WireError("bad_tag") from error
        if not self._window(index).check_and_set(counter):
            raise WireError("replay")
        self._newest = max(self._newest, (index, counter + 1))
        return Opened(plaintext, phase.number)

    @property
    def newest_opened(self) -> tuple[int, int]:
        """(index, counter + 1) of the newest datagram opened; (0, 0) before the first."""
        return self._newest

    def refuse_before(self, index: int, counter: int) -> None:
        """Whoever opened CONTROL before got as far as `newest_opened` = (index, counter): all of that is seen."""
        self._newest = (index, counter)
        self._windows = {index: ReplayWindow(CONTROL_REPLAY_WINDOW, counter)}
        self._windows_below = index

    def _window(self, index: int) -> ReplayWindow:
        """Windows of the newest indexes; what came on an older one counts as seen."""
        if index < self._windows_below:
            raise WireError("replay")
        window = self._windows.get(index)
        if window is None:
            window = self._windows[index] = ReplayWindow(CONTROL_REPLAY_WINDOW)
            if len(self._windows) > _WINDOWS_KEPT:
                lowest = min(self._windows)
                del self._windows[lowest]
                self._windows_below = lowest + 1
        return window
