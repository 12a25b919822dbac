"""What the gateway answers on its admin socket: snapshots, and the few things an operator may ask it to do."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jvpn.clocks import now_ms
from jvpn.observability.admin import AdminError
from jvpn.observability.snapshot import (
    FleetSnapshot,
    GatewaySnapshot,
    SessionSnapshot,
    SwitchSnapshot,
    WorkerSnapshot,
)
from jvpn.policy.parameters import MINUTE
from jvpn.protocol.addresses import endpoint_text, to_bytes
from jvpn.session.machine import Reason
from jvpn.supervisor.arrival import path_text
from jvpn.supervisor.dataplane import counters_of
from jvpn.supervisor.drain_admin import DrainAdmin
from jvpn.supervisor.live_session import LiveSession
from jvpn.supervisor.peer_admin import BY_MAX, PeerAdmin
from jvpn.supervisor.policies import MODES, Applied, named
from workers.counters import Counter

if TYPE_CHECKING:
    from jvpn.supervisor.process import Gateway

COUNTER_NAMES = [""] * 128
for _counter in Counter:
    COUNTER_NAMES[_counter] = _counter.name.lower()


class GatewayAdmin:
    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._peers = PeerAdmin(gateway)
        self._drain = DrainAdmin(gateway)

    def handle(self, request: dict[str, Any]) -> object:
        """Answer one request. Raises AdminError."""
        command = request.get("command")
        if command == "status":
            return self.status()
        if command == "sessions":
            sessions = self._gateway.core.context.sessions.values()
            return [self.session(session) for session in sessions]
        if command == "terminate":
            return self.terminate(str(request.get("session", "")))
        if command == "switch":
            return self.switch(str(request.get("session", "")))
        if command == "switching":
            return self.switching(str(request.get("session", "")), str(request.get("peer", "")))
        if command == "peers":
            return self._peers.show(str(request.get("peer", "")))
        if command == "policy-apply":
            return self.apply(str(request.get("mode", "")), str(request.get("by", "")))
        if command == "policies":
            return self.policies()
        if command == "reset-clock":
            return self._peers.reset_clock(str(request.get("peer", "")), str(request.get("by", "")))
        if command == "release-address":
            return self._peers.release_address(str(request.get("peer", "")))
        if command == "drain":
            return self._drain.begin(request)
        if command == "undrain":
            return self._drain.undo(request)
        if command == "draining":
            return self._drain.look()
        known = (
            "drain, draining, peers, policies, policy-apply, release-address, reset-clock, sessions, status, switch, "
            "switching, terminate and undrain"
        )
        raise AdminError(f"unknown command {command!r}; this gateway knows {known}")

    def status(self) -> GatewaySnapshot:
        gateway = self._gateway
        core, plane, plan = gateway.core, gateway.dataplane, gateway.plan
        counters = dict(core.context.counters)
        if gateway.member is not None:
            counters |= gateway.member.counters()
        counters |= {f"xdp_{name}": n for name, n in gateway.steering.counters().items() if n}
        workers = [self._worker(slot) for slot in sorted(plane.seats)]
        for worker in workers:
            for name, count in worker.counters.items():
                counters[f"worker_{name}"] = counters.get(f"worker_{name}", 0) + count
        return GatewaySnapshot(
            node_id=plan.node_id,
            version=gateway.version,
            uptime_ms=now_ms() - gateway.started_ms,
            listeners=[f"{address}:{port}" for address, port in plan.listen],
            xdp_mode=dict(gateway.xdp.modes),
            steering=self._steering_sentence(),
            workers=workers,
            sessions=len(core.context.sessions),
            counters=counters,
            policy=f"{plan.default_policy.name}@{plan.default_policy.version}",
            offload=str(gateway.dataplane.inventory.offload) if plan.offload else "off by configuration",
            steering_notes=list(gateway.xdp.notes),
            store=self._store_sentence(),
            fleet=self._fleet(),
            drain=self._drain.snapshot(),
            keylog="" if gateway.keylog is None else gateway.keylog.warning,
        )

    def _store_sentence(self) -> str:
        plan, durable = self._gateway.plan, self._gateway.core.context.narrator.durable
        where = (
            str(plan.store_path) if plan.fleet is None else f"etcd, {', '.join(plan.fleet.access.endpoints)}"
        )
        return where if durable else f"{where}: cannot be written, new sessions are refused"

    def _fleet(self) -> FleetSnapshot | None:
        fleet, member = self._gateway.core.context.fleet, self._gateway.member
        if fleet is None or member is None:
            return None
        known = fleet.nodes
        return FleetSnapshot(
            nodes=None if known is None else sorted(known),
            draining=sorted(name for name, about in (known or {}).items() if about.draining),
            lease_ms=max(0, member.fence_ms - now_ms()),
            routes=member.routes,
        )

    def apply(self, mode: str, by: str) -> Applied:
        """Read policies again, and put them in force for new sessions alone (grace) or for all (strict)."""
        if mode not in ("", *MODES):
            raise AdminError(f"{mode!r} is no mode; they are: {', '.join(MODES)}")
        wanted = next((known for known in MODES if known == mode), None)
        return self._gateway.reload(wanted, by[:BY_MAX] if by.isprintable() else "")

    def policies(self) -> dict[str, object]:
        """The policy of peers that name none, and all that new sessions may have, by name."""
        core, usual = self._gateway.core, self._gateway.plan.default_policy
        held = core.context.known_policies()
        usual = held.get(usual.name, usual)
        return {
            "kind": "gateway",
            "policy": asdict(usual),
            "loaded": {name: asdict(policy) for name, policy in sorted(({usual.name: usual} | held).items())},
            "now": {
                "sessions": [self._limits(session, now_ms()) for session in core.context.sessions.values()]
            },
        }

    @staticmethod
    def _limits(session: LiveSession, at_ms: int) -> dict[str, object]:
        """Which policy a session has, whether new ones would have another, and what its limits leave it."""
        given, times = (
            session.peer.policy_for(session.policy.name) or session.peer.policy,
            session.switches.times_ms,
        )
        return {
            "session": session.hex_id,
            "peer": session.peer.name,
            "policy": named(session.policy),
            "new_sessions": named(given),
            "switches_in_minute": sum(1 for time_ms in times if at_ms - time_ms < MINUTE),
            "max_switches_per_minute": session.policy.max_switches_per_minute,
            "retry_after_ms": session.switches.wait_ms(session.policy, at_ms),
        }

    def _steering_sentence(self) -> str:
        gateway = self._gateway
        if not gateway.steering.available:
            return "no BPF: one worker serves all sessions"
        modes = set(gateway.xdp.modes.values()) - {"none"}
        if not modes:
            return "the reuseport program picks the owner's process; no XDP"
        return f"{' and '.join(sorted(modes))} XDP picks the owner's core, the reuseport program its process"

    def _worker(self, slot: int) -> WorkerSnapshot:
        gateway = self._gateway
        seat = gateway.dataplane.seats[slot]
        sessions = sum(1 for s in gateway.core.context.sessions.values() if s.slot == slot)
        counters = counters_of(gateway.dataplane.page, slot, COUNTER_NAMES)
        return WorkerSnapshot(
            slot=slot, pid=seat.pid, cpu=seat.cpu, state="running", sessions=sessions, counters=counters
        )

    def session(self, session: LiveSession) -> SessionSnapshot:
        active, machine = session.bindings.active, session.machine
        at_ms = now_ms()
        seen = self._gateway.dataplane.page.read_activity(session.record)
        source = None
        if active is not None:
            source = endpoint_text(to_bytes(active.source[0]), active.source[1])
        return SessionSnapshot(
            session_id=session.hex_id,
            peer=session.peer.name,
            state=machine.state,
            state_version=machine.state_version,
            epoch=session.epoch,
            index=None if active is None else active.index,
            transport=None if active is None else active.transport.name.lower(),
            source=source,
            inner_addresses=list(session.prefixes),
            age_ms=at_ms - session.created_ms,
            since_ms=at_ms - machine.since_ms,
            rx_bytes=seen.received_bytes,
            tx_bytes=seen.sent_bytes,
            rx_packets=seen.received_packets,
            tx_packets=seen.sent_packets,
            policy=named(session.policy),
            last_switch=self._last_switch(session, at_ms),
        )

    def _last_switch(self, session: LiveSession, now_ms: int) -> SwitchSnapshot | None:
        last = session.last_switch
        if last is None:
            return None
        return SwitchSnapshot(
            ago_ms=now_ms - last.at_ms,
            reason_code=last.reason,
            old_transport=last.old,
            new_transport=last.new,
            gap_ms=last.gap_ms,
        )

    def _one(self, prefix: str) -> LiveSession:
        found = self._gateway.core.find(prefix) if prefix else []
        if not found:
            begins = f"begins with {prefix!r}" if prefix else "was named"
            raise AdminError(f"no session {begins}; 'jvpn sessions' lists those that there are")
        if len(found) > 1:
            raise AdminError(f"{len(found)} sessions begin with {prefix!r}; give more digits of the id")
        return found[0]

    def terminate(self, prefix: str) -> dict[str, str]:
        session = self._one(prefix)
        self._gateway.core.terminate(session, Reason.OPERATOR_TERMINATED, now_ms())
        return {"terminated": session.hex_id}

    def switch(self, prefix: str) -> dict[str, object]:
        """Ask a client to move to another path; `switching` says how it went on."""
        session, at_ms = self._one(prefix), now_ms()
        if session.bindings.active is None:
            raise AdminError("the session has no path just now; its client looks for one already")
        if not session.policy.max_switches_per_minute:
            raise AdminError("the session's policy allows no voluntary switch: max_switches_per_minute is 0")
        wait_ms = session.switches.wait_ms(session.policy, at_ms)
        if wait_ms:
            raise AdminError(f"the session's policy allows no switch for another {wait_ms} ms")
        before = self.switching(session.hex_id)
        self._gateway.core.switch(session, Reason.OPERATOR_SWITCH, at_ms)
        return before

    def switching(self, prefix: str, peer: str = "") -> dict[str, object]:
        """The path that a session is bound to, and whether its client has read the last SWITCH.

        `peer`: where the session is no more, the one that this peer has instead.
        """
        core = self._gateway.core
        known = core.context.peers.named(peer)
        instead = None if known is None or core.find(prefix) else core.context.by_peer.get(known.public_key)
        session = self._one(prefix) if instead is None else instead
        active, asked = session.bindings.active, session.switch_id
        return {
            "session": session.hex_id,
            "peer": session.peer.name,
            "index": None if active is None else active.index,
            "path": path_text(active),
            "state": session.machine.state.name,
            "read": asked is not None and not session.channel.awaits(asked),
        }
