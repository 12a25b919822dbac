"""The client's side of a handshake: INITs over one uplink after another until one is answered."""

from collections.abc import Callable
from dataclasses import dataclass, field

from jvpn.agent.effects import Effect, PersistTimestamp, SendDatagram
from jvpn.agent.paths import Uplink
from jvpn.protocol.handshake import HandshakeError, HandshakeResult, Initiator, Kem
from jvpn.protocol.suites import Suite
from workers.commands import Endpoint

FIRST_RETRY_MS = 300
LAST_RETRY_MS = 5_000


def back_off_ms(times: int) -> int:
    """How long to wait after one try and `times` more that came to nothing."""
    return min(LAST_RETRY_MS, FIRST_RETRY_MS << min(times, 8))


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the client is and whom it trusts. Keys are 32 bytes; `kem` is the least it takes of a gateway."""

    suite: Suite
    private_key: bytes = field(repr=False)
    gateway_public: bytes
    psk: bytes = field(repr=False)
    policy_name: str
    kem: Kem = Kem.MLKEM768


class Handshaking:
    """One attempt after another until `receive_response` returns a result. Times are milliseconds. `first`: the uplink
    to begin with, at the endpoint that it leads to now.

    `wall_us()` is the wall clock: message 1 carries max(now, last + 1), made durable before it is sent.
    """

    def __init__(
        self,
        identity: Identity,
        uplinks: list[Uplink],
        last_timestamp_us: int,
        random_bytes: Callable[[int], bytes],
        wall_us: Callable[[], int],
        now_ms: int,
        first: Uplink | None = None,
    ) -> None:
        self._identity = identity
        self._uplinks = uplinks
        self.last_timestamp_us = last_timestamp_us
        self._random_bytes = random_bytes
        self._wall_us = wall_us
        self._initiator: Initiator | None = None
        self.tries = 0
        self._next_ms = now_ms
        self.uplink: Uplink | None = None
        self._first = None if first is None else (first, first.remote)

    def get_timer(self) -> int:
        return self._next_ms

    def hurry(self, now_ms: int) -> None:
        """A link came up: try at once."""
        self._next_ms = now_ms
        self.tries = 0

    def handle_timer(self, now_ms: int) -> list[Effect]:
        if now_ms < self._next_ms:
            return []
        ways = self._ways()
        rounds = self.tries // max(len(ways), 1)
        self._next_ms = now_ms + back_off_ms(rounds)
        self.tries += 1
        if not ways:
            return []
        uplink, remote = ways[(self.tries - 1) % len(ways)]
        uplink.remote = remote
        self.uplink = uplink
        identity = self._identity
        self.last_timestamp_us = max(self._wall_us(), self.last_timestamp_us + 1)
        self._initiator = Initiator(
            identity.suite,
            identity.private_key,
            identity.gateway_public,
            identity.psk,
            self._random_bytes(32),
            self._random_bytes(8),
            self.last_timestamp_us,
            0,
            identity.policy_name,
        )
        datagram = self._initiator.init_datagram
        return [
            PersistTimestamp(self.last_timestamp_us),
            SendDatagram(uplink.socket, uplink.remote, datagram),
        ]

    def receive_cookie(self, datagram: bytes) -> list[Effect]:
        """The gateway is under load: the same INIT again, with the proof that this source receives.

        Raises HandshakeError for anything but a COOKIE that answers the newest INIT.
        """
        if self._initiator is None or self.uplink is None:
            raise HandshakeError("not_an_answer")
        init = self._initiator.read_cookie(datagram)
        return [SendDatagram(self.uplink.socket, self.uplink.remote, init)]

    def _ways(self) -> list[tuple[Uplink, Endpoint]]:
        """Uplinks × endpoints: every device's best endpoint, preferred uplinks first, then their next ones; but
        before all of them the way to begin with."""
        usable = [uplink for uplink in self._uplinks if uplink.link_up]
        usable.sort(key=lambda uplink: (uplink.rank, -uplink.preference, uplink.number))
        choices = [(uplink, uplink.remotes or (uplink.remote,)) for uplink in usable]
        most = max((len(remotes) for _uplink, remotes in choices), default=0)
        ways = [
            (uplink, remotes[rank])
            for rank in range(most)
            for uplink, remotes in choices
            if rank < len(remotes)
        ]
        return sorted(ways, key=lambda way: way != self._first)

    def receive_response(self, datagram: bytes) -> HandshakeResult:
        """Raises HandshakeError for anything but the answer to the newest INIT."""
        if self._initiator is None:
            raise HandshakeError("not_an_answer")
        return self._initiator.read_response(datagram)
