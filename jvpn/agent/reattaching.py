"""The client's reattach: from the verdict that a path is gone (or to be left) to the ACK that names the new one.

One attempt at a time, with one attempt id on however many candidates it takes: candidates in order, a few REQUESTs on
each, no faster than every RETRY_MS while traffic waits, then slower; a link event starts over at once. ACK(pending)
brings the challenge that the same request is repeated with.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from jvpn.agent.effects import SendDatagram
from jvpn.agent.paths import NS, ClientPath, PathTable
from jvpn.observability.events import PathRef
from jvpn.protocol import reattach
from jvpn.protocol.constants import Transport
from jvpn.protocol.keys import SessionSecrets
from jvpn.protocol.reattach import NO_CHALLENGE, Cause, Report, Request
from jvpn.protocol.tickets import NO_TICKET

RETRY_MS = 50
RETRY_MAX_MS = 2_000
TRIES_PER_CANDIDATE = 3
#: REQUESTs at full speed before the retries slow down, when no candidate answers at all.
FAST_TRIES = 60


@dataclass(slots=True)
class Attempt:
    """A reattach in flight. `detect_ms` is how long the verdict took, `old` the path that was active."""

    number: int
    cause: Cause
    started_ms: float
    detect_ms: float
    old: PathRef | None
    leave: int | None
    next_ms: float
    tries: int = 0
    on_candidate: int = 0
    target: int | None = None
    sent_ns: dict[int, int] = field(default_factory=dict)
    #: No REQUEST goes earlier: the worker is asked what has arrived.
    not_before_ms: float = 0.0

    @property
    def voluntary(self) -> bool:
        return self.cause not in (Cause.TRANSPORT_DEAD, Cause.ADDRESS_CHANGED, Cause.REATTACH_REQUESTED)


class Requester:
    """Sends the REQUESTs of one attempt after another; `version()` is the state version they claim."""

    def __init__(self, secrets: SessionSecrets, paths: PathTable, version: Callable[[], int]) -> None:
        self._secrets = secrets
        self._paths = paths
        self._version = version
        #: What finds the session at a node that does not know it, by index.
        self.tickets: dict[int, bytes] = {}
        self.attempt: Attempt | None = None
        self._last_number = 0

    def begin(
        self,
        cause: Cause,
        now_ms: float,
        detect_ms: float,
        old: PathRef | None,
        leave: int | None,
        target: int | None,
    ) -> Attempt:
        """Start a new attempt; the REQUEST goes at the next `due`. `leave`: uplink to try last, `target`: only this."""
        self._last_number += 1
        self.attempt = Attempt(self._last_number, cause, now_ms, detect_ms, old, leave, now_ms, target=target)
        return self.attempt

    def hurry(self, now_ms: float) -> None:
        """Something changed that may help: try again now, from the best candidate on."""
        if self.attempt is not None:
            self.attempt.next_ms = max(now_ms, self.attempt.not_before_ms)
            self.attempt.tries = self.attempt.on_candidate = 0

    def get_timer(self) -> float | None:
        return None if self.attempt is None else self.attempt.next_ms

    def choose(self, now_ms: int) -> ClientPath | None:
        """The candidate whose turn it is, None when there is none with a link."""
        attempt = self.attempt
        if attempt is None:
            return None
        if attempt.target is not None:
            target = self._paths.paths.get(attempt.target)
            return target if target is not None and target.uplink.link_up else None
        # The path that seemed dead comes last, but it comes: it may be the only one that returns.
        candidates = self._paths.candidates(now_ms)
        candidates.sort(key=lambda path: path.uplink.number == attempt.leave)
        if not candidates:
            return None
        return candidates[attempt.on_candidate // TRIES_PER_CANDIDATE % len(candidates)]

    def request(self, path: ClientPath, now_ms: int, reports: tuple[Report, ...]) -> SendDatagram:
        """The next REQUEST of the attempt over `path`, saying what has arrived on the paths before."""
        attempt = self.attempt
        assert attempt is not None, "there is no reattach to request"
        attempt.tries += 1
        attempt.on_candidate += 1
        attempt.next_ms = now_ms + self._wait_ms(path)
        attempt.sent_ns[path.index] = now_ms * NS
        challenge = path.challenge if path.validated(now_ms) else NO_CHALLENGE
        counter = self._paths.take_counter(path.index)
        request = Request(
            attempt.number, path.index, self._version(), attempt.cause, Transport.UDP, 0, challenge, reports
        )
        ticket = self.tickets.get(path.index, NO_TICKET)
        datagram = reattach.seal_request(self._secrets, path.steering_id, counter, request, ticket)
        return SendDatagram(path.uplink.number, path.uplink.remote, datagram)

    def wait(self, now_ms: int) -> None:
        """No candidate has a link: look again later."""
        if self.attempt is not None:
            self.attempt.tries += 1
            self.attempt.next_ms = now_ms + self._wait_ms(None)

    def _wait_ms(self, path: ClientPath | None) -> float:
        assert self.attempt is not None
        slow = max(0, self.attempt.tries - FAST_TRIES)
        wait_ms = min(RETRY_MAX_MS, RETRY_MS << min(slow // 4, 6))
        srtt_ns = path.health.srtt_ns if path is not None else None
        patience_ms = 0.0 if srtt_ns is None or path is None else (srtt_ns + 4 * path.health.rttvar_ns) / NS
        return max(wait_ms, min(patience_ms, RETRY_MAX_MS))
