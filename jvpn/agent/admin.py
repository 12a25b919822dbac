"""What the client answers on its admin socket."""

import time
from typing import TYPE_CHECKING, Any

from jvpn.agent.paths import NS, ClientPath
from jvpn.observability.admin import AdminError
from jvpn.observability.snapshot import ClientSnapshot, PathSnapshot
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
        raise AdminError(f"unknown command {command!r}; this client knows status and switch")

    def switch(self, device: str) -> dict[str, str]:
        if not self._agent.core.switch(device, time.clock_gettime_ns(time.CLOCK_BOOTTIME)):
            names = ", ".join(uplink.name for uplink in self._agent.core.uplinks)
            raise AdminError(f"cannot switch to {device!r} now; uplinks are {names}")
        return {"asked": device}

    def status(self) -> ClientSnapshot:
        core = self._agent.core
        session = core.session
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        counters = dict(core.counters)
        values = self._agent.page.counters(0)
        counters |= {f"worker_{c.name.lower()}": values[c] for c in Counter if values[c]}
        counters["handshakes"] = core.handshakes_done
        if session is None:
            return ClientSnapshot(
                session=None, state=State.BIRTH, state_version=0, active=None, paths=[], counters=counters
            )
        active = session.paths.active_path
        return ClientSnapshot(
            session=session.session_id.hex(),
            state=session.view.state,
            state_version=session.view.state_version,
            active=None if active is None else active.uplink.name,
            paths=[
                self._path(path, path is active, now_ns)
                for _number, path in sorted(session.paths.paths.items())
            ],
            counters=counters,
        )

    def _path(self, path: ClientPath, active: bool, now_ns: int) -> PathSnapshot:
        seen = path.health.snapshot(now_ns)
        now_ms = now_ns // NS
        if active:
            state = "active"
        elif not path.uplink.link_up or seen.dead:
            state = "dead"
        else:
            state = "candidate" if path.validated(now_ms) else "probing"
        remote = path.uplink.remote
        return PathSnapshot(
            name=path.uplink.name,
            device=path.uplink.name,
            index=path.index,
            state=state,
            validated=path.validated(now_ms),
            rtt_ms=seen.latency_ms,
            loss=seen.loss,
            last_ack_ago_ms=None if seen.last_answer_ms is None else now_ms - seen.last_answer_ms,
            source=endpoint_text(remote.address, remote.port),
        )
