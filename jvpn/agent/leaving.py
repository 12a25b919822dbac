"""A node that drains is left for another one: over which way, and to which of the gateway's endpoints.

Which endpoints are one node's, nobody tells a client. But a node that does not own the session answers no probe of it:
wherever a path answers, the node is that is to be left. Of the others, the one that has not been asked for the longest
time is asked first, by a device that has a living path if there is one. One that does not answer at all, as a node does
that drains too, is not waited for while there is another.
"""

from typing import TYPE_CHECKING

from jvpn.agent.paths import NS, Uplink
from jvpn.agent.reattaching import Attempt
from jvpn.protocol.reattach import Cause
from workers.commands import Endpoint

if TYPE_CHECKING:
    from jvpn.agent.session import ClientSession

#: An endpoint has answered by then, and three times as late as the present one would, or the next one is asked.
SILENT_MS = 1_000
SLOWER = 3


class Leaving:
    """A part of its session."""

    def __init__(self, session: "ClientSession") -> None:
        self._session = session
        self._paths = session.paths
        #: Endpoints that were to be moved to, and when; and when the gateway last wished for it.
        self._asked_ms: dict[Endpoint, int] = {}
        self._wished_ms = 0
        #: When the endpoint that was asked last has had long enough to answer.
        self._silent_ms: float | None = None

    def leave(self, now_ms: int) -> str:
        """Begin to move to another node. Returns why not, empty when that is under way."""
        attempt = self._session.requester.attempt
        if attempt is not None:
            return "" if attempt.cause is Cause.NODE_DRAIN else "SWITCH_IN_FLIGHT"
        self._wished_ms = now_ms
        choices = self._choices(now_ms)
        self._asked_ms = {known: at_ms for known, at_ms in self._asked_ms.items() if known in choices}
        return self._go(choices, now_ms) if choices else "NO_CANDIDATE"

    def go_on(self, attempt: Attempt, now_ms: int) -> None:
        """This attempt has come to nothing: if it was to leave, another endpoint is asked, but each once a wish."""
        if attempt.cause is Cause.NODE_DRAIN:
            left = self._not_asked(now_ms)
            if left:
                self._go(left, now_ms)

    def get_timer(self) -> float | None:
        """When `handle_timer` is due, ms."""
        return self._silent_ms

    def handle_timer(self, now_ms: int) -> None:
        if self._silent_ms is None or now_ms < self._silent_ms:
            return
        self._silent_ms = None
        attempt = self._session.requester.attempt
        if attempt is None or attempt.cause is not Cause.NODE_DRAIN or attempt.target is None:
            return
        asked = self._paths.paths.get(attempt.target)
        answered = asked is not None and asked.validated(now_ms)
        if not answered and self._not_asked(now_ms):
            self._session.switching.refuse(attempt, "NO_ANSWER", 0, now_ms)

    def _not_asked(self, now_ms: int) -> dict[Endpoint, Uplink]:
        """Choices that have not been asked since the gateway last wished for it."""
        choices = self._choices(now_ms).items()
        return {end: way for end, way in choices if self._asked_ms.get(end, -1) < self._wished_ms}

    def _go(self, choices: dict[Endpoint, Uplink], now_ms: int) -> str:
        session, remote = self._session, min(choices, key=lambda end: self._asked_ms.get(end, -1))
        uplink = choices[remote]
        self._asked_ms[remote] = now_ms
        active = self._paths.active_path
        usual_ms = 0.0 if active is None else active.patience_ms or 0.0
        self._silent_ms = now_ms + max(SILENT_MS, SLOWER * usual_ms)
        if uplink.remote != remote:
            uplink.remote = remote
            session.switching.reroute(uplink, now_ms)
        return "" if session.choosing.switch(uplink, Cause.NODE_DRAIN, now_ms) else "SWITCH_IN_FLIGHT"

    def _choices(self, now_ms: int) -> dict[Endpoint, Uplink]:
        """Endpoints that may be another node's, best first, and the way to each."""
        active = self._paths.active_path
        alive = [
            p for p in self._paths.paths.values() if p.probe_answered and p.health.answering(now_ms * NS)
        ]
        alive += [] if active is None else [active]
        here, devices = {path.uplink.remote for path in alive}, {path.uplink.name for path in alive}
        ways = [path.uplink for path in self._paths.candidates(now_ms, without=self._paths.active)]
        found: dict[Endpoint, Uplink] = {}
        for uplink in sorted(ways, key=lambda way: way.name not in devices):
            for remote in uplink.remotes or (uplink.remote,):
                if remote not in here:
                    found.setdefault(remote, uplink)
        return found
