"""The client's reattach: from the verdict that a path is gone (or to be left) to the ACK that names the new one.

One attempt at a time, under one attempt id on several candidates at once: the gateway binds the first whose challenge
it takes, and tells all the others which one that was. A candidate that has just answered is asked alone, for as long
as its answer may take; then, or when no candidate is that sure, up to `max_candidates` of them race. Each is asked on
an index of its own, no faster than every RETRY_MS, slower after FAST_MS unless traffic waits; a link event starts over
at once. ACK(pending) brings the challenge that the same request is repeated with, at once, but only once before it is
due again. A voluntary switch asks its target and nobody else.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from jvpn.agent.effects import SendDatagram
from jvpn.agent.paths import CHALLENGE_LIFE_MS, NS, ClientPath, PathTable
from jvpn.observability.events import PathRef
from jvpn.protocol import reattach
from jvpn.protocol.constants import Transport
from jvpn.protocol.keys import SessionSecrets
from jvpn.protocol.reattach import NO_CHALLENGE, Cause, Report, Request
from jvpn.protocol.tickets import NO_TICKET
from workers.commands import Endpoint

RETRY_MS = 50
RETRY_MAX_MS = 2_000
#: REQUESTs on `max_candidates` paths before others get their turn, where there are more.
TRIES_PER_CANDIDATE = 3
#: How long REQUESTs go at full speed, when no candidate answers at all; then each wait is a share of the time since.
FAST_MS = 3_000
SLOWER = 6

#: An uplink's number and the endpoint that it leads to.
Way = tuple[int, Endpoint]


@dataclass(slots=True)
class Lane:
    """What an attempt has asked on one path. `tries` begins anew with a link event, `sent` does not."""

    next_ms: float = 0.0
    tries: int = 0
    sent: int = 0
    sent_ms: int = 0
    echoed: bytes = NO_CHALLENGE
    #: The last REQUEST was an answer to ACK(pending): another one has to wait until the next is due by itself.
    prompted: bool = False

    def silent(self, now_ms: float) -> int:
        """REQUESTs that have waited for an answer long enough."""
        return max(0, self.tries - (self.next_ms > now_ms))


@dataclass(slots=True)
class Attempt:
    """A reattach in flight. `detect_ms` is how long the verdict took, `old` the path that was active.

    `wide`: whoever was to be asked first has not answered. `resets`, `not_owners`: ways that lead to nobody who has
    the session; the latter until the time that is named, when that node may have it.
    """

    number: int
    cause: Cause
    started_ms: float
    detect_ms: float
    old: PathRef | None
    leave: int | None
    next_ms: float
    fast_since_ms: float
    target: int | None = None
    tries: int = 0
    wide: bool = False
    lanes: dict[tuple[int, int], Lane] = field(default_factory=dict)
    not_owners: dict[Way, float] = field(default_factory=dict)
    resets: set[Way] = field(default_factory=set)
    #: When RESETs that nobody has contradicted are believed.
    reset_due_ms: int | None = None
    #: Uplink whose path has just shown that it lives, under another source.
    alive: int | None = None
    #: Since when what was under way on the old path has not been delivered; None: nothing was.
    gap_from_ms: float | None = None
    #: The oldest index of the first REQUESTs: DATA that does not wait for the bind goes on it.
    early: int | None = None
    #: No REQUEST goes earlier: the worker is asked what has arrived.
    not_before_ms: float = 0.0

    @property
    def voluntary(self) -> bool:
        return self.cause not in (Cause.TRANSPORT_DEAD, Cause.ADDRESS_CHANGED, Cause.REATTACH_REQUESTED)

    def refused(self, now_ms: float) -> set[Way]:
        """Ways that are not to be asked now."""
        return self.resets | {one for one, until_ms in self.not_owners.items() if now_ms < until_ms}

    def worth_asking_ms(self, now_ms: float) -> float | None:
        """When the first of the ways that are not to be asked now may be asked again; None: never."""
        later = (until_ms for until_ms in self.not_owners.values() if now_ms < until_ms < math.inf)
        return min(later, default=None)

    @property
    def asked(self) -> list[int]:
        """Indexes that REQUESTs have gone on, in the order of the first of each."""
        return list(dict.fromkeys(index for _uplink, index in self.asked_over))

    @property
    def asked_over(self) -> list[tuple[int, int]]:
        """The same with the uplink of each, (number, index): several may have had to share one."""
        return [key for key, lane in self.lanes.items() if lane.sent]

    def lane(self, path: ClientPath) -> Lane:
        return self.lanes.setdefault((path.uplink.number, path.index), Lane(self.not_before_ms))


def way(path: ClientPath) -> Way:
    return path.uplink.number, path.uplink.remote


class Requester:
    """Sends the REQUESTs of one attempt after another; `version()` is the state version they claim."""

    def __init__(self, secrets: SessionSecrets, paths: PathTable, version: Callable[[], int]) -> None:
        self._secrets = secrets
        self._paths = paths
        self._version = version
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
        *,
        started_ms: float | None = None,
    ) -> Attempt:
        """Start a new attempt; its REQUESTs go when they are due. `leave`: uplink to try last, `target`: only this."""
        self._last_number += 1
        started_ms = now_ms if started_ms is None else started_ms
        self.attempt = Attempt(
            self._last_number, cause, started_ms, detect_ms, old, leave, now_ms, now_ms, target
        )
        return self.attempt

    def hurry(self, now_ms: float) -> None:
        """Something changed that may help: ask all of them now, at full speed again."""
        attempt = self.attempt
        if attempt is None:
            return
        attempt.next_ms = max(now_ms, attempt.not_before_ms)
        attempt.fast_since_ms = now_ms
        attempt.tries = 0
        for lane in attempt.lanes.values():
            lane.next_ms, lane.tries = attempt.next_ms, 0

    def traffic_waits(self, now_ms: int) -> None:
        """Somebody has something to send: full speed for as long as that is so, however long nobody has answered."""
        attempt = self.attempt
        if attempt is None:
            return
        attempt.fast_since_ms = max(attempt.fast_since_ms, now_ms - FAST_MS)
        for (number, _index), lane in attempt.lanes.items():
            if lane.sent:
                soonest_ms = lane.sent_ms + self._wait_ms(self._paths.paths.get(number), now_ms)
                lane.next_ms = min(lane.next_ms, max(soonest_ms, now_ms))
                attempt.next_ms = min(attempt.next_ms, lane.next_ms)

    def get_timer(self) -> float | None:
        return None if self.attempt is None else self.attempt.next_ms

    def racing(self, now_ms: int) -> list[ClientPath]:
        """Who is in the race at present, best first. It widens here, when none of those in it has answered in time."""
        attempt = self.attempt
        assert attempt is not None, "there is no reattach to request"
        racers = self._racers(attempt, now_ms)
        first = self._first(attempt, racers, now_ms)
        if first and all(attempt.lane(path).silent(now_ms) > 0 for path in first):
            attempt.wide = True
        return racers if attempt.wide else first

    def due(self, racing: list[ClientPath], now_ms: int) -> list[ClientPath]:
        """Those to send a REQUEST on now."""
        attempt = self.attempt
        assert attempt is not None, "there is no reattach to request"
        return [path for path in racing if attempt.lane(path).next_ms <= now_ms]

    def rest(self, racing: list[ClientPath], now_ms: int) -> None:
        """Those that were due have been asked: set when to look again."""
        attempt = self.attempt
        assert attempt is not None, "there is no reattach to request"
        if not racing:
            attempt.tries += 1
        at_ms = [attempt.lane(path).next_ms for path in racing] or [now_ms + self._wait_ms(None, now_ms)]
        again_ms = attempt.worth_asking_ms(now_ms)
        attempt.next_ms = max(min(at_ms if again_ms is None else [*at_ms, again_ms]), now_ms)

    @staticmethod
    def _first(attempt: Attempt, racers: list[ClientPath], now_ms: int) -> list[ClientPath]:
        """Whom to ask before everybody: a sure one alone, else all but the path that seemed dead and damped ones."""
        if racers and _sure(racers[0], now_ms):
            best = racers[0].uplink
            if best.damped_until_ms <= now_ms or best.number == attempt.alive:
                return racers[:1]
        others = [path for path in racers if path.uplink.number != attempt.leave]
        trusted = [path for path in others if path.uplink.damped_until_ms <= now_ms]
        return trusted or others or racers

    def _racers(self, attempt: Attempt, now_ms: int) -> list[ClientPath]:
        """At most `max_candidates`, each on another index: an ACK names what it bound by the index alone."""
        if attempt.target is not None:
            target = self._paths.paths.get(attempt.target)
            return [target] if target is not None and target.uplink.link_up else []
        refused = attempt.refused(now_ms)
        candidates = [path for path in self._paths.candidates(now_ms) if way(path) not in refused]
        # The path that seemed dead comes last, but it comes: it may be the only one that returns. Others of its device
        # may have died with it, so of those that are sure they come after the ones that share nothing with it.
        left = self._paths.paths.get(-1 if attempt.leave is None else attempt.leave)
        shared = -1 if left is None else left.uplink.socket
        candidates.sort(
            key=lambda path: (
                attempt.lane(path).silent(now_ms) // TRIES_PER_CANDIDATE,
                path.uplink.number == attempt.leave,
                path.uplink.number != attempt.alive,
                path.uplink.damped_until_ms > now_ms,
                not _sure(path, now_ms),
                path.uplink.socket == shared,
            )
        )
        racers: dict[int, ClientPath] = {}
        for path in candidates:
            racers.setdefault(path.index, path)
        return list(racers.values())[: self._paths.policy.max_candidates]

    def request(self, path: ClientPath, now_ms: int, reports: tuple[Report, ...]) -> SendDatagram:
        """The next REQUEST of the attempt over `path`, saying what has arrived on the paths before."""
        attempt = self.attempt
        assert attempt is not None, "there is no reattach to request"
        lane = attempt.lane(path)
        attempt.tries += 1
        lane.tries += 1
        lane.sent += 1
        lane.sent_ms = now_ms
        lane.prompted = False
        lane.next_ms = now_ms + self._wait_ms(path, now_ms)
        lane.echoed = self._proof(path, attempt, now_ms)
        counter = self._paths.take_counter(path.index)
        request = Request(
            attempt.number, path.index, self._version(), attempt.cause, Transport.UDP, 0, lane.echoed, reports
        )
        ticket = self._paths.tickets.get(path.index, NO_TICKET)
        datagram = reattach.seal_request(self._secrets, path.steering_id, counter, request, ticket)
        return SendDatagram(path.uplink.socket, path.uplink.remote, datagram)

    def _proof(self, path: ClientPath, attempt: Attempt, now_ms: int) -> bytes:
        """The challenge to echo over `path`, or zeros.

        That of the uplink's path before is good still if nothing but time has passed. It is not shown at first: of a
        path that is dead in one direction only it would bind the dead one. When nobody at all has answered for as long
        as anything is kept to be sent again, the first that answers is the best there is, and a round trip sooner so.
        """
        if path.validated(now_ms):
            return path.challenge
        lonely = not any(p.validated(now_ms) for p in self._paths.paths.values() if p.uplink.link_up)
        waited_ms = now_ms - attempt.started_ms
        if attempt.voluntary or not lonely or waited_ms < self._paths.policy.resend_window_ms:
            return NO_CHALLENGE
        challenge, since_ms = path.before
        return challenge if challenge and now_ms - since_ms < CHALLENGE_LIFE_MS else NO_CHALLENGE

    def _wait_ms(self, path: ClientPath | None, now_ms: int) -> float:
        assert self.attempt is not None
        slow_ms = now_ms - self.attempt.fast_since_ms - FAST_MS
        wait_ms = min(RETRY_MAX_MS, max(RETRY_MS, slow_ms // SLOWER))
        return max(wait_ms, min(0.0 if path is None else path.patience_ms or 0.0, RETRY_MAX_MS))


def _sure(path: ClientPath, now_ms: int) -> bool:
    """It has a challenge and has answered lately, in a known time: one round trip will do."""
    seen = path.health.snapshot(now_ms * NS)
    answers = seen.answering and not seen.dead and path.patience_ms is not None
    return answers and path.validated(now_ms)
