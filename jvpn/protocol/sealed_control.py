"""CONTROL datagrams of one session, epoch and end: counters, nonces, replay windows around the control keys."""

from cryptography.exceptions import InvalidTag

from jvpn.protocol import keys
from jvpn.protocol.constants import (
    GENERATION_SHIFT,
    HEADER_SIZE,
    MAX_CONTROL_DATAGRAM,
    OFFSET_COUNTER,
    Direction,
    PacketType,
)
from jvpn.protocol.keys import SessionSecrets
from jvpn.protocol.replay import ReplayWindow
from jvpn.protocol.wire import Header, WireError

_WINDOWS_KEPT = 16


class SealedControl:
    """Seals and opens CONTROL. `generation` is the supervisor's (0 on a client): no counter is used twice."""

    def __init__(self, secrets: SessionSecrets, epoch: int, sends: Direction, generation: int = 0) -> None:
        receives = Direction(1 - sends)
        self._phase = secrets.phase_number & 15
        self._send = secrets.suite.aead(keys.control_key(secrets, sends, epoch))
        self._receive = secrets.suite.aead(keys.control_key(secrets, receives, epoch))
        self._generation = generation
        self._sequences: dict[int, int] = {}
        self._windows: dict[int, ReplayWindow] = {}

    def seal(self, index: int, steering_id: bytes, plaintext: bytes) -> bytes:
        sequence = self._sequences.get(index, 0)
        self._sequences[index] = sequence + 1
        counter = self._generation << GENERATION_SHIFT | sequence
        header = Header(PacketType.CONTROL, steering_id, counter, self._phase).encode()
        return header + self._send.encrypt(keys.nonce(index, counter), plaintext, header)

    def open(self, index: int, datagram: bytes) -> bytes:
        """Plaintext of a datagram that came on `index`, once. Raises WireError `bad_tag`, `replay` or `bad_length`."""
        if len(datagram) > MAX_CONTROL_DATAGRAM:
            raise WireError("bad_length")
        header = datagram[:HEADER_SIZE]
        counter = int.from_bytes(header[OFFSET_COUNTER:], "big")
        try:
            plaintext = self._receive.decrypt(keys.nonce(index, counter), datagram[HEADER_SIZE:], header)
        except InvalidTag as error:
            raise WireError("bad_tag") from error
        window = self._windows.get(index)
        if window is None:
            window = self._windows[index] = ReplayWindow()
            # An index that fell behind by this many is not installed any more, so nothing arrives on it.
            self._windows.pop(index - _WINDOWS_KEPT, None)
        if not window.check_and_set(counter):
            raise WireError("replay")
        return plaintext
