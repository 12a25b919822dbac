"""Changes of path by wish, while the present one delivers: an operator's or the gateway's; how a wish is asked for."""

from typing import TYPE_CHECKING

from jvpn.agent.narrator import path_ref
from jvpn.agent.paths import NS, Uplink
from jvpn.protocol import messages
from jvpn.protocol.reattach import Cause
from jvpn.protocol.wire import WireError
from jvpn.session.machine import Reason

if TYPE_CHECKING:
    from jvpn.agent.session import ClientSession

#: What a SWITCH may ask for; such a choice holds until its path is lost.
_ASKED = frozenset({Cause.OPERATOR_SWITCH.name, Cause.NODE_DRAIN.name})


class Choosing:
    """A part of its session: asks for what wishes and the policy (`Deciding`) want; binding is `Switching`'s."""

    def __init__(self, session: "ClientSession") -> None:
        self._session = session
        self._paths = session.paths
        self._requester = session.requester
        self._view = session.view
        self._narrator = session.narrator
        #: Uplink number that the operator or a draining node had us switch to: preference leaves it alone until that
        #: path is lost.
        self.chosen: int | None = None

    def switch(self, uplink: Uplink, cause: Cause, now_ms: int) -> bool:
        """Ask to move to `uplink` while the present path still delivers. False when that makes no sense now."""
        if (
            not self._session.configured
            or self._requester.attempt is not None
            or self._paths.active == uplink.number
        ):
            return False
        if uplink.number not in self._paths.paths or not self._view.allows(Reason[cause.name]):
            return False
        active = self._paths.active_path
        old = None if active is None else path_ref(active)
        self._requester.begin(cause, now_ms, 0.0, old, self._paths.active, uplink.number)
        self._session.switching.refused = ""
        self._view.apply(Reason[cause.name], now_ms)
        self._session.clocks(now_ms)
        return True

    def on_switch(self, value: bytes, now_ms: int) -> None:
        """SWITCH: the gateway wants the session on another path. Raises WireError for a wish that is none."""
        code = messages.decode_reason(value)
        if code not in _ASKED:
            raise WireError("unexpected_control")
        drains = code == Cause.NODE_DRAIN.name
        denied = self._session.leaving.leave(now_ms) if drains else self._move(now_ms)
        if denied:
            self._narrator.denied(code, denied, self._view.state_version)

    def _move(self, now_ms: int) -> str:
        """Begin to move to the best other candidate that is not known to be dead. Returns why not, empty if so."""
        alive = [
            path
            for path in self._paths.candidates(now_ms, without=self._paths.active)
            if not path.health.dead(now_ms * NS)
        ]
        if not alive:
            return "NO_CANDIDATE"
        begun = self.switch(alive[0].uplink, Cause.OPERATOR_SWITCH, now_ms)
        return "" if begun else "SWITCH_IN_FLIGHT"

    def bound(self, uplink: Uplink, cause: Cause) -> None:
        """The session has been bound to a path over `uplink`, for this cause."""
        if cause.name in _ASKED:
            self.chosen = uplink.number
        elif uplink.number != self.chosen:
            self.chosen = None
