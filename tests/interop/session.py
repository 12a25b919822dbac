"""Keys, counts and replay windows of one session: seals and opens everything behind the handshake.

An independent client, made from docs/protocol.md alone; imports nothing of jvpn.
"""

from collections import defaultdict

from cryptography.exceptions import InvalidTag

from .primitives import NONCE_0, Aead, Suite
from .wire import DATA_KINDS, HEADER_SIZE, NO_TICKET, Header, Refused, Type, pack_request

WINDOW = 8192
WINDOWS_KEPT = 16
UP, DOWN = 0, 1


class ReplayWindow:
    """The counters up to the highest seen that are new; empty at first, so that 0 is new."""

    def __init__(self) -> None:
        self.highest = -1
        self.seen = 0

    def take(self, counter: int) -> bool:
        """True when the counter is new, which it is not any more then."""
        ahead = counter - self.highest
        if ahead > 0:
            self.seen = (self.seen << ahead | 1) & ((1 << WINDOW) - 1) if ahead < WINDOW else 1
            self.highest = counter
            return True
        if -ahead >= WINDOW or self.seen >> -ahead & 1:
            return False
        self.seen |= 1 << -ahead
        return True


class Windows:
    """One replay window for each of the highest indexes."""

    def __init__(self) -> None:
        self._of: dict[int, ReplayWindow] = {}

    def of(self, index: int) -> ReplayWindow | None:
        """None for an index below those that are kept."""
        if index not in self._of:
            if len(self._of) >= WINDOWS_KEPT and index < min(self._of):
                return None
            self._of[index] = ReplayWindow()
            while len(self._of) > WINDOWS_KEPT:
                del self._of[min(self._of)]
        return self._of[index]


class Session:
    """One session from the client's side."""

    def __init__(
        self, suite: Suite, session_id: bytes, epoch: int, hash_: bytes, k1: bytes, k2: bytes
    ) -> None:
        self.suite = suite
        self.session_id = session_id
        self.epoch = epoch
        root = suite.extract(hash_, k1 + k2)
        self.secret = suite.expand(root, b"jvp1 session")
        self.phases = {0: suite.expand(root, b"jvp1 phase")}
        self.phase = 0
        self._reattach = suite.aead(suite.expand(self.secret, b"jvp1 reattach"))
        self._aeads: dict[tuple[str, int, int], Aead] = {}
        self._index_of: dict[bytes, int] = {}
        self._data_counts: dict[int, int] = defaultdict(int)
        self._control_counts: dict[int, int] = defaultdict(int)
        self._request_counts: dict[int, int] = defaultdict(int)
        self._data_windows = Windows()
        self._control_windows = Windows()

    def steering_id(self, index: int) -> bytes:
        steering_id = self.suite.expand(self.secret, b"jvp1 id" + index.to_bytes(4, "big"), 8)
        self._index_of[steering_id] = index
        return steering_id

    def index_of(self, steering_id: bytes) -> int | None:
        """Of the indexes that this client has ever used."""
        return self._index_of.get(steering_id)

    def seal(self, kind: Type, index: int, plaintext: bytes) -> bytes:
        counts = self._control_counts if kind == Type.CONTROL else self._data_counts
        counter = counts[index]
        counts[index] += 1
        header = Header(kind, self.steering_id(index), counter, self.phase).pack()
        nonce = index.to_bytes(4, "big") + counter.to_bytes(8, "big")
        return header + self._aead(kind, UP, self.phase).encrypt(nonce, plaintext, header)

    def open(self, header: Header, datagram: bytes, direction: int = DOWN) -> tuple[int, bytes]:
        """Index and plaintext of a DATA kind, CONTROL or PATH. Raises Refused; replays are refused, too."""
        index = self.index_of(header.steering_id)
        if index is None:
            raise Refused("unknown_id")
        phase = next((number for number in self.phases if number & 15 == header.phase), None)
        if phase is None:
            raise Refused("unknown_phase")
        nonce = index.to_bytes(4, "big") + header.counter.to_bytes(8, "big")
        try:
            plaintext = self._aead(header.type, direction, phase).decrypt(
                nonce, datagram[HEADER_SIZE:], datagram[:HEADER_SIZE]
            )
        except InvalidTag:
            raise Refused("does not open") from None
        if header.type != Type.PATH:
            windows = self._data_windows if header.type in DATA_KINDS else self._control_windows
            window = windows.of(index)
            if window is None or not window.take(header.counter):
                raise Refused("replay")
        return index, plaintext

    def open_resent(self, index: int, counter: int, plaintext: bytes) -> bytes:
        """The DATA plaintext in an opened RESENT. Raises Refused when it has been delivered before."""
        if len(plaintext) < 4 or plaintext[0] > index:
            raise Refused("bad_offload")
        window = self._data_windows.of(index - plaintext[0])
        if window is None:
            raise Refused("replay")
        near = window.highest if window.highest >= 0 else counter >> 48 << 48
        low = int.from_bytes(plaintext[1:4], "big")
        base = near >> 24 << 24 | low
        old = min(
            (c for c in (base - (1 << 24), base, base + (1 << 24)) if c >= 0), key=lambda c: abs(c - near)
        )
        if not window.take(old):
            raise Refused("replay")
        return plaintext[4:]

    def report(self, index: int) -> bytes:
        """What has come on an index: next counter, and what is missing among the 256 before it."""
        window = self._data_windows.of(index)
        if window is None:
            return index.to_bytes(4, "big") + bytes([0xFF] * 8) + bytes(32)
        known = min((window.highest & (1 << 48) - 1) + 1, 256) if window.highest >= 0 else 0
        missing = ~window.seen & ((1 << known) - 1)
        return (
            index.to_bytes(4, "big")
            + (window.highest + 1).to_bytes(8, "big")
            + missing.to_bytes(32, "little")
        )

    def request(
        self,
        attempt: int,
        index: int,
        version: int,
        cause: int,
        challenge: bytes,
        ticket: bytes = NO_TICKET,
        reports: tuple[bytes, ...] = (),
    ) -> bytes:
        counter = self._request_counts[index]
        self._request_counts[index] += 1
        header = Header(Type.REQUEST, self.steering_id(index), counter).pack()
        nonce = index.to_bytes(4, "big") + counter.to_bytes(8, "big")
        plaintext = pack_request(attempt, index, version, cause, challenge, reports)
        return header + ticket + self._reattach.encrypt(nonce, plaintext, header)

    def open_reply(self, datagram: bytes) -> bytes:
        """The plaintext of a REATTACH_ACK or REATTACH_FAIL. Raises Refused."""
        header, salt, sealed = datagram[:20], datagram[20:36], datagram[36:]
        try:
            key = self.suite.expand(self.secret, b"jvp1 reply" + salt)
            return self.suite.aead(key).decrypt(NONCE_0, sealed, header)
        except InvalidTag:
            raise Refused("does not open") from None

    def next_phase(self, dh_secret: bytes, kem_secret: bytes, init: bytes, response: bytes) -> None:
        """Sends under the next phase from now on; receives under it and the present one."""
        extracted = self.suite.extract(self.phases[self.phase], dh_secret + kem_secret)
        info = b"jvp1 phase" + self.suite.digest(init + response)
        self.phase += 1
        self.phases[self.phase] = self.suite.expand(extracted, info)

    def forget_old_phase(self) -> None:
        self.phases = {self.phase: self.phases[self.phase]}
        self._aeads.clear()

    def begin_epoch(self, epoch: int) -> None:
        """All keys anew, counts and windows from the start; the request counts go on."""
        self.epoch = epoch
        self._aeads.clear()
        self._data_counts.clear()
        self._control_counts.clear()
        self._data_windows = Windows()
        self._control_windows = Windows()

    def _aead(self, kind: Type, direction: int, phase: int) -> Aead:
        label = "control" if kind == Type.CONTROL else "data"
        key = label, direction, phase
        if key not in self._aeads:
            info = f"jvp1 {label}".encode() + bytes([direction]) + self.epoch.to_bytes(3, "big")
            self._aeads[key] = self.suite.aead(self.suite.expand(self.phases[phase], info))
        return self._aeads[key]
