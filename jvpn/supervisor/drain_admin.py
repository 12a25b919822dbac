"""What the admin socket answers about leaving this node: `jvpn drain`."""

from typing import TYPE_CHECKING, Any

from jvpn.clocks import now_ms
from jvpn.observability.admin import AdminError
from jvpn.observability.snapshot import DrainSnapshot, StayingSnapshot
from jvpn.supervisor.arrival import path_text
from jvpn.supervisor.node_drain import DEFAULT_PER_S, MOST_PER_S
from jvpn.supervisor.peer_admin import BY_MAX

if TYPE_CHECKING:
    from jvpn.supervisor.process import Gateway

#: Sessions that are named one by one in an answer.
MOST_NAMED = 20


class DrainAdmin:
    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway

    def begin(self, request: dict[str, Any]) -> DrainSnapshot:
        """Begin to send this node's clients to others. Raises AdminError where there is nobody to send them to."""
        self._check_name(request)
        per_s = request.get("per_s", DEFAULT_PER_S)
        if not isinstance(per_s, int) or not 1 <= per_s <= MOST_PER_S:
            raise AdminError(f"{per_s!r} is no rate: give 1 … {MOST_PER_S} sessions a second")
        self._check_others()
        self._gateway.core.drain.begin(per_s, _by(request), now_ms())
        return self._known()

    def undo(self, request: dict[str, Any]) -> dict[str, object]:
        self._check_name(request)
        core = self._gateway.core
        if not core.context.draining:
            raise AdminError(f"{self._gateway.plan.node_id} does not drain")
        core.drain.undo(_by(request))
        return {"undone": self._gateway.plan.node_id, "sessions": len(core.context.sessions)}

    def look(self) -> DrainSnapshot:
        """How far it is. Raises AdminError when nothing drains."""
        return self._known()

    def snapshot(self) -> DrainSnapshot | None:
        core, at_ms = self._gateway.core, now_ms()
        progress = core.drain.progress(at_ms)
        if progress is None:
            return None
        return DrainSnapshot(
            node_id=self._gateway.plan.node_id,
            for_ms=progress.for_ms,
            announced=progress.announced,
            moved=progress.moved,
            left=progress.left,
            away=progress.away,
            nodes=self._others(),
            staying=self._staying(),
        )

    def _known(self) -> DrainSnapshot:
        found = self.snapshot()
        if found is None:
            raise AdminError(f"{self._gateway.plan.node_id} does not drain")
        return found

    def _staying(self) -> list[StayingSnapshot]:
        """Sessions with a path, those that were asked most first."""
        core = self._gateway.core
        asked = core.drain.asked
        bound = [s for s in core.context.sessions.values() if s.bindings.active is not None]
        bound.sort(key=lambda session: -asked.get(session.session_id, 0))
        return [
            StayingSnapshot(
                session_id=session.hex_id,
                peer=session.peer.name,
                path=path_text(session.bindings.active),
                asked=asked.get(session.session_id, 0),
                read=session.switch_id is not None and not session.channel.awaits(session.switch_id),
            )
            for session in bound[:MOST_NAMED]
        ]

    def _check_name(self, request: dict[str, Any]) -> None:
        named, ours = str(request.get("node") or ""), self._gateway.plan.node_id
        if named and named != ours:
            raise AdminError(f"this node is {ours}, not {named}: run jvpn drain on {named} itself")

    def _check_others(self) -> None:
        gateway = self._gateway
        if gateway.plan.fleet is None:
            raise AdminError(
                "there is nobody to move to: this gateway is no node of a fleet (no fleet section in its configuration)"
            )
        if not self._others():
            raise AdminError(
                "there is nobody to move to: no other node of the fleet runs and does not drain, as far as etcd says; "
                "start one, or undo its drain there (jvpn drain --undo)"
            )

    def _others(self) -> list[str]:
        """Nodes that take sessions."""
        fleet, ours = self._gateway.core.context.fleet, self._gateway.plan.node_id
        nodes = {} if fleet is None or fleet.nodes is None else fleet.nodes
        return sorted(name for name, about in nodes.items() if name != ours and not about.draining)


def _by(request: dict[str, Any]) -> str:
    by = str(request.get("by", ""))
    return by[:BY_MAX] if by.isprintable() else ""
