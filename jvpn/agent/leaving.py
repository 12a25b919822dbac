"""A node that drains is left for another one: over which way, and to which of the gateway's endpoints.

Which endpoints are one node's, nobody tells a client. But a node that does not own the session answers no probe of it:
wherever a path answers, the node is that is to be left. Of the others, the one that has not been asked for the longest
time is asked first, by a device that has a living path if there is one.
"""

from typing import TYPE_CHECKING

from jvpn.agent.paths import NS, Uplink
from jvpn.protocol.reattach import Cause
from workers.commands import Endpoint

if TYPE_CHECKING:
    from jvpn.agent.session import ClientSession


class Leaving:
    """A part of its session."""

    def __init__(self, session: "ClientSession") -> None:
        self._session = session
        self._paths = session.paths
        #: Endpoints that were to be moved to, and when.
        self._asked_ms: dict[Endpoint, int] = {}

    def leave(self, now_ms: int) -> str:
        """Begin to move to another node. Returns why not, empty when that is under way."""
        session, attempt = self._session, self._session.requester.attempt
        if attempt is not None:
            return "" if attempt.cause is Cause.NODE_DRAIN else "SWITCH_IN_FLIGHT"
        choices = self._choices(now_ms)
        self._asked_ms = {known: at_ms for known, at_ms in self._asked_ms.items() if known in choices}
        if not choices:
            return "NO_CANDIDATE"
        remote = min(choices, key=lambda endpoint: self._asked_ms.get(endpoint, -1))
        uplink = choices[remote]
        self._asked_ms[remote] = now_ms
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
