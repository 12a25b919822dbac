"""What the client answers on its admin socket."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jvpn.agent.configuring import named
from jvpn.agent.explaining import explained
from jvpn.agent.paths import NS, ClientPath, Uplink
from jvpn.clocks import now_ms
from jvpn.observability.admin import AdminError
from jvpn.observability.snapshot import ClientSnapshot, PathSnapshot
from jvpn.policy.decisions import excluded
from jvpn.protocol.addresses import endpoint_text
from jvpn.session.machine import State
from workers.counters import Counter

if TYPE_CHECKING:
    from jvpn.agent.process import Agent


class ClientAdmin:
    def __init__(self, agent: "Agent") -> None:
        self._agent = agent

    def handle(self, request: dict[str, Any]) -> object:
        """Answer one request. Raises AdminError."""
        command = request.get("command")
        if command == "status":
            return self.status()
        if command == "switch":
            return self.switch(str(request.get("device", "")))
        if command == "switching":
            return self.switching()
        if command == "policies":
            return self.policies()
        raise AdminError(
            f"unknown command {command!r}; this client knows policies, status, switch and switching"
        )

    def policies(self) -> dict[str, object]:
        """The policy of the session, or the one that a client works by until it has one."""
        session = self._agent.core.session
        policy = self._agent.plan.policy if session is None else session.policy
        return {
            "kind": "client",
            "policy": asdict(policy),
            "loaded": {policy.name: asdict(policy)},
            "now": None if session is None else explained(session, now_ms()),
        }

    def switch(self, device: str) -> dict[str, object]:
        """Begin to move to `device`; `switching` says how it went on. `done`: it is there already."""
        core = self._agent.core
        ways = [uplink for uplink in core.uplinks if uplink.name == device]
        if not ways:
            names = ", ".join(dict.fromkeys(uplink.name for uplink in core.uplinks)) or "none"
            raise AdminError(f"{device!r} is no uplink; they are: {names}")
        session = core.session
        if session is None:
            raise AdminError("there is no session yet; look again with: jvpn status")
        if any(session.paths.active == uplink.number for uplink in ways):
            return {"asked": device, "done": True}
        if not any(uplink.link_up for uplink in ways):
            raise AdminError(f"{device} has no link, or no address that the gateway can be reached from")
        paths = [session.paths.paths[way.number] for way in ways if way.number in session.paths.paths]
        why = [excluded(session.policy, path.candidate(now_ms())) for path in paths]
        if why and all(why):
            raise AdminError(f"the session's policy ({named(session.policy)}) leaves it out: {why[0]}")
        if session.requester.attempt is not None:
            raise AdminError("the session is changing its path just now; try again in a moment")
        if not core.switch(device, time.clock_gettime_ns(time.CLOCK_BOOTTIME)):
            state = session.view.state.name
            raise AdminError(f"the session cannot switch in state {state}; look again with: jvpn status")
        return {"asked": device, "done": False}

    def switching(self) -> dict[str, object]:
        """Whether a change of path or a handshake is in flight, where DATA goes out, why the last change was refused.

        `configured`: the TUN has its addresses and routes.
        """
        session = self._agent.core.session
        if session is None:
            state = State.BIRTH.name
            shaking_hands = not self._agent.core.stopped
            return {
                "in_flight": shaking_hands,
                "active": None,
                "state": state,
                "refused": "",
                "configured": False,
            }
        active = session.paths.active_path
        return {
            "in_flight": session.requester.attempt is not None or not session.configured,
            "active": None if active is None else active.uplink.name,
            "state": session.view.state.name,
            "refused": session.switching.refused,
            "configured": session.configured,
        }

    def status(self) -> ClientSnapshot:
        core = self._agent.core
        session = core.session
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        counters = dict(core.counters)
        values = self._agent.page.counters(0)
        counters |= {f"worker_{c.name.lower()}": values[c] for c in Counter if values[c]}
        counters["handshakes"] = core.handshakes_done
        agent = self._agent
        offload = str(agent.offload) if agent.plan.offload else "off by configuration"
        keylog = "" if agent.keylog is None else agent.keylog.warning
        if session is None:
            return ClientSnapshot(
                session=None,
                state=State.BIRTH,
                state_version=0,
                active=None,
                paths=[self._idle(uplink) for uplink in core.uplinks if _shown(uplink)],
                offload=offload,
                keylog=keylog,
                counters=counters,
            )
        active = session.paths.active_path
        return ClientSnapshot(
            session=session.session_id.hex(),
            state=session.view.state,
            state_version=session.view.state_version,
            active=None if active is None else active.uplink.name,
            paths=[
                self._path(path, active, now_ns)
                for _number, path in sorted(session.paths.paths.items())
                if _shown(path.uplink)
            ],
            offload=offload,
            policy=named(session.policy) if session.configured else "",
            asked_policy=session.asked_policy,
            keylog=keylog,
            counters=counters,
        )

    @staticmethod
    def _idle(uplink: Uplink) -> PathSnapshot:
        """An uplink while there is no session: nothing is known of its path."""
        remote = uplink.remote
        return PathSnapshot(
            name=uplink.name,
            device=uplink.name,
            index=None,
            state="probing" if uplink.link_up else "dead",
            validated=False,
            rtt_ms=None,
            loss=None,
            last_ack_ago_ms=None,
            source=endpoint_text(remote.address, remote.port) if uplink.link_up else None,
        )

    def _path(self, path: ClientPath, active: ClientPath | None, now_ns: int) -> PathSnapshot:
        seen = path.health.snapshot(now_ns)
        at_ms = now_ns // NS
        remote = path.uplink.remote
        return PathSnapshot(
            name=path.uplink.name,
            device=path.uplink.name,
            index=path.index,
            state=path_state(path, active, now_ns),
            validated=path.validated(at_ms),
            rtt_ms=seen.latency_ms,
            loss=seen.loss,
            last_ack_ago_ms=None if seen.last_answer_ms is None else at_ms - seen.last_answer_ms,
            source=endpoint_text(remote.address, remote.port),
        )


def _shown(uplink: Uplink) -> bool:
    """A device is shown whether it has a link or not, a further way over it only when it leads somewhere."""
    return uplink.link_up or not uplink.rank


def path_state(path: ClientPath, active: ClientPath | None, now_ns: int) -> str:
    """As PathSnapshot has it. Silence says nothing of a path that leads elsewhere than the active one and has answered
    no PROBE: that endpoint may be another node's, and only a session's owner answers."""
    if path is active:
        return "active"
    if not path.uplink.link_up:
        return "dead"
    if path.health.snapshot(now_ns).dead:
        elsewhere = active is not None and path.uplink.remote != active.uplink.remote
        return "standby" if elsewhere and not path.probe_answered else "dead"
    return "candidate" if path.validated(now_ns // NS) else "probing"
