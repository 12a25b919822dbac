"""Which of the gateway's endpoints has the session: what to make of RESET, of NOT_OWNER and of a new owner.

A RESET ends a session only when nothing contradicts it: it has the session's token, it answers a REQUEST since which
nothing authenticated has come, and every other way (uplink and endpoint) has been asked and says the same, or does
not answer for RESET_PATIENCE_MS.
"""

import math
from typing import TYPE_CHECKING

from jvpn.agent.paths import ClientPath
from jvpn.agent.reattaching import Attempt, Way, way
from jvpn.protocol.tickets import is_reset
from jvpn.protocol.wire import WireError

if TYPE_CHECKING:
    from jvpn.agent.session import ClientSession

RESET_PATIENCE_MS = 1_000


class Owners:
    """A part of its session. `token` is what a RESET has to show."""

    def __init__(self, session: "ClientSession") -> None:
        self._session = session
        self._paths = session.paths
        self._requester = session.requester
        self._heard_ms = -1
        self.token = b""

    def heard(self, now_ms: int) -> None:
        """Something authenticated has arrived: whoever said that there is no session is wrong."""
        self._heard_ms = now_ms
        attempt = self._requester.attempt
        if attempt is not None and attempt.resets:
            attempt.resets.clear()
            attempt.reset_due_ms = None

    def on_reset(self, data: bytes, path: ClientPath, now_ms: int) -> None:
        """Raises WireError when it says nothing; nothing has changed then."""
        if not is_reset(data, self.token):
            raise WireError("bad_proof")
        attempt = self._requester.attempt
        lane = None if attempt is None else attempt.lanes.get((path.uplink.number, path.index))
        if attempt is None or lane is None or not lane.sent:
            raise WireError("unexpected_type")
        self._read_data(now_ms)
        if self._heard_ms > lane.sent_ms:
            raise WireError("reset_contradicted")
        if attempt.voluntary:
            # The path that DATA goes out on has not been asked; should it be dead too, it will be.
            self._session.switching.refuse(attempt, "RESET", 0, now_ms)
            return
        if not attempt.resets:
            attempt.reset_due_ms = now_ms + RESET_PATIENCE_MS
        attempt.resets.add(way(path))
        if not self._ask_elsewhere(attempt, path, now_ms):
            self._end(attempt, now_ms)

    def not_owner(self, attempt: Attempt, path: ClientPath, retry_after_ms: int, now_ms: int) -> bool:
        """Another node owns the session. Returns whether there is one left to ask under the same attempt: now, or this
        one itself after `retry_after_ms`, should it have the session by then; 0: it will not."""
        again = way(path) in attempt.not_owners
        attempt.not_owners[way(path)] = now_ms + retry_after_ms if retry_after_ms else math.inf
        if again:
            # Everybody else has been asked since.
            return bool(retry_after_ms or self._ways_left(attempt, now_ms))
        return self._ask_elsewhere(attempt, path, now_ms) or bool(retry_after_ms)

    def _ask_elsewhere(self, attempt: Attempt, path: ClientPath, now_ms: int) -> bool:
        ways = self._ways_left(attempt, now_ms)
        same_uplink = next((remote for number, remote in ways if number == path.uplink.number), None)
        if (
            same_uplink is not None
            and way(path) in attempt.refused(now_ms)
            and path.uplink.remote != same_uplink
        ):
            path.uplink.remote = same_uplink
            self._session.switching.reroute(path.uplink, now_ms)
        if ways:
            attempt.wide = True
            self._requester.hurry(now_ms)
        return bool(ways)

    def _ways_left(self, attempt: Attempt, now_ms: int) -> list[Way]:
        uplinks = [path.uplink for path in self._paths.paths.values() if path.uplink.link_up]
        ways = [(u.number, remote) for u in uplinks for remote in u.remotes or (u.remote,)]
        refused = attempt.refused(now_ms)
        return [one for one in ways if one not in refused]

    def _read_data(self, now_ms: int) -> None:
        received_ms = self._session.upkeep.received_ms()
        if received_ms > self._heard_ms:
            self.heard(min(received_ms, now_ms))

    def get_timer(self) -> int | None:
        attempt = self._requester.attempt
        return None if attempt is None else attempt.reset_due_ms

    def handle_timer(self, now_ms: int) -> None:
        attempt = self._requester.attempt
        if attempt is None or attempt.reset_due_ms is None or now_ms < attempt.reset_due_ms:
            return
        self._read_data(now_ms)
        if attempt.resets:
            self._end(attempt, now_ms)

    def _end(self, attempt: Attempt, now_ms: int) -> None:
        self._session.reset(len(attempt.resets), now_ms)

    def moved(self, bound: ClientPath, now_ms: int) -> None:
        """Another node, or one that began anew, has bound `bound`: the other paths are to lead there too."""
        for path in list(self._paths.paths.values()):
            uplink, remote = path.uplink, bound.uplink.remote
            if uplink is not bound.uplink and uplink.remote != remote and remote in uplink.remotes:
                uplink.remote = remote
                self._session.switching.reroute(uplink, now_ms)
