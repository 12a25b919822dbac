"""What must never happen, looked for after every step that may have changed what a core has.

    ONE_BINDING      two active bindings: in the table, in the steering maps or in workers
    ID_REPLACED      another SessionID without an explicit end and a new handshake
    VERSION_BACK     a state version that falls
    OVERDUE          RECOVERING beyond the recovery window, no binding beyond the transport-loss TTL
    EVENTS           the auditor refuses the event stream (transition not in the table, no reason, no event, …)
    ADDRESS          an inner address that changes, that two clients have, or that is steered to nobody
    REFUSED          a worker refused a command
    STRANDED         the network is good and everything runs, and still there is no session that delivers
    MOVED            something that proves nothing has changed something (guard.py)

Nonces are watched by nonces.py, payloads by traffic.py.
"""

from dataclasses import dataclass
from typing import Final

from jvpn.observability.events import AnyEvent, StateChange, encode
from jvpn.observability.sink import MemorySink
from jvpn.observability.verify import Auditor, Finding
from jvpn.protocol.constants import Role
from jvpn.session.machine import State
from jvpn.session.ttl import TtlClock
from jvpn.session.version import split_version
from jvpn.session.walker import Walker
from jvpn.sim.clock import NS
from jvpn.sim.gateway import GatewayNode
from jvpn.sim.violation import Violation
from jvpn.sim.world import World
from jvpn.supervisor.live_session import LiveSession

#: How long after everything is well again the session may take: to reattach, or to shake hands anew.
REATTACH_MS: Final = 8_000
ANEW_MS: Final = 20_000
#: How often that is looked at.
LOOK_MS: Final = 100


@dataclass(slots=True)
class _Stream:
    """An event stream, as far as the auditor has read it."""

    name: str
    sink: MemorySink
    auditor: Auditor
    read: int = 0


class Checks:
    """A watcher of the world."""

    def __init__(self, world: World) -> None:
        self._world = world
        #: A session moves between gateways, and stays one life.
        self._of_gateways = Auditor()
        self._streams = [
            *(_Stream("gateway", node.sink, self._of_gateways) for node in world.gateways),
            _Stream("client", world.client.sink, Auditor()),
        ]
        self._versions: dict[tuple[str, bytes], int] = {}
        self._ended: set[str] = set()
        #: Inner prefixes by client, from its first session on.
        self._prefixes: dict[bytes, tuple[str, ...]] = {}
        self._known: set[str] = set()
        self._well_since_ns: int | None = None
        self._serving: frozenset[str] = frozenset()
        self._handshakes = 0
        world.agenda.later(LOOK_MS, self._liveness)

    def __call__(self) -> None:
        for stream in self._streams:
            if len(stream.sink.events) > stream.read:
                self._audit(stream)
        for node in self._world.gateways:
            self._gateway(node)
        self._one_session()
        self._client()

    # Events

    def _audit(self, stream: _Stream) -> None:
        events = stream.sink.events
        for event in events[stream.read :]:
            if stream.name == "gateway" and self._is_late(event):
                continue
            stream.auditor.feed(encode(event))
            if stream.name == "gateway" and isinstance(event, StateChange):
                self._known.add(event.session_id)
                if event.to is State.TERMINATED:
                    self._ended.add(event.session_id)
        stream.read = len(events)
        self._judge(stream.name, stream.auditor.findings)

    def _judge(self, name: str, findings: list[Finding]) -> None:
        # In a fleet a claim may be kept whose node never learns it: the epoch that it opened is told by nobody.
        bad = findings if self._world.cluster is None else [f for f in findings if f.severity == "violation"]
        if bad:
            raise Violation("EVENTS", f"{name}'s events: {bad[0]}")

    def _is_late(self, event: AnyEvent) -> bool:
        """What an owner tells of a session that is another's by now, and it does not know yet: the other one may even
        have ended it."""
        cluster = self._world.cluster
        newest = 0 if cluster is None else cluster.newest_epoch(bytes.fromhex(event.session_id))
        return newest > split_version(event.state_version).epoch

    def finish(self) -> None:
        """What only the end shows. A client that died was asking for something, or is still asking."""
        for name, auditor in (("gateway", self._of_gateways), ("client", self._streams[-1].auditor)):
            self._judge(name, [f for f in auditor.finish() if f.code != "NO_RESULT"])

    # The gateway

    def _gateway(self, gateway: GatewayNode) -> None:
        for worker in gateway.workers.values():
            if worker.refused:
                raise Violation("REFUSED", f"the gateway's worker: {worker.refused[0]}")
        if gateway.core is None:
            return
        sessions = gateway.context.sessions
        for session_id, session in sessions.items():
            version = session.machine.state_version
            if version != self._versions.get((gateway.node_id, session_id)):
                self._moved(gateway, session, version)
            if not self._world.is_due(gateway):
                self._clocks(session.hex_id, session.machine, session.ttl, gateway.clock.now_ms)
        self._addresses(gateway)

    def _one_session(self) -> None:
        """At each node: another may not have heard yet that its client has a new one."""
        for node in self._world.gateways:
            sessions = {} if node.core is None else node.context.sessions
            alive = [session.hex_id for session in sessions.values() if not session.machine.terminated]
            if len(alive) > 1:
                raise Violation("ID_REPLACED", f"one client has the sessions {' and '.join(alive)}")

    def _addresses(self, gateway: GatewayNode) -> None:
        holders: dict[str, bytes] = {}
        for session in gateway.context.sessions.values():
            client = session.peer.public_key
            known = self._prefixes.setdefault(client, session.prefixes)
            if session.prefixes != known:
                raise Violation("ADDRESS", f"{session.hex_id}: {known} → {session.prefixes}")
            for prefix in session.prefixes:
                if holders.setdefault(prefix, client) != client:
                    raise Violation("ADDRESS", f"two clients have {prefix}")
        context = gateway.context
        others = [session for session, _ms in context.confirming.values()] + list(context.departing.values())
        used = holders.keys() | {prefix for session in others for prefix in session.prefixes}
        if not self._world.is_due(gateway) and not gateway.steered.prefixes.keys() <= used:
            raise Violation("ADDRESS", f"steered {set(gateway.steered.prefixes)}, in use {set(used)}")

    def _moved(self, gateway: GatewayNode, session: LiveSession, version: int) -> None:
        before = self._versions.get((gateway.node_id, session.session_id), -1)
        if version < before:
            raise Violation("VERSION_BACK", f"{session.hex_id}: {before:#x} → {version:#x}")
        self._versions[gateway.node_id, session.session_id] = version
        if session.bindings.count != session.machine.active_bindings:
            counted = f"{session.bindings.count} bound, {session.machine.active_bindings} in the machine"
            raise Violation("ONE_BINDING", f"{session.hex_id}: {counted}")
        self._one_binding(gateway, session)

    @staticmethod
    def _one_binding(gateway: GatewayNode, session: LiveSession) -> None:
        ids = session.indexes.ids.values()
        steered = [i for i in ids if i in gateway.steered.ids and gateway.steered.ids[i].role is Role.ACTIVE]
        active = 0
        for worker in gateway.workers.values():
            held = worker.table.by_record.get(session.record)
            if held is not None and worker.alive and held.session_id == session.session_id:
                active += sum(entry.role is Role.ACTIVE for entry in held.entries.values())
        if len(steered) > 1 or active > 1:
            raise Violation(
                "ONE_BINDING", f"{session.hex_id}: {len(steered)} ids steered, {active} in workers are active"
            )

    def _clocks(self, whose: str, machine: Walker, ttl: TtlClock, now_ms: int) -> None:
        if machine.state is State.RECOVERING:
            late_ms = now_ms - machine.since_ms - self._world.longest_window_ms
            if late_ms > 1:
                raise Violation("OVERDUE", f"{whose}: RECOVERING {late_ms} ms beyond its window")
        deadline_ms = ttl.loss_deadline_ms
        if not machine.active_bindings and deadline_ms is not None and now_ms > deadline_ms + 1:
            raise Violation("OVERDUE", f"{whose}: no binding, {now_ms - deadline_ms} ms beyond the TTL")

    # The client

    def _client(self) -> None:
        client = self._world.client
        if client.worker.refused:
            raise Violation("REFUSED", f"the client's worker: {client.worker.refused[0]}")
        core = client.core
        session = None if core is None else core.session
        if core is None or session is None or self._world.client_is_due:
            return
        self._clocks("the client", session.view, session.ttl, client.clock.now_ms)

    # Liveness

    def _liveness(self) -> None:
        world = self._world
        now_ns = world.agenda.now_ns
        world.agenda.later(LOOK_MS, self._liveness)
        # At least one node must have been serving all the time.
        self._serving &= world.serving
        if not self._serving:
            self._serving, self._well_since_ns = world.serving, None
        core = world.client.core
        if not self._serving or core is None:
            return
        if self._well_since_ns is None or world.attached:
            self._well_since_ns = now_ns
            self._handshakes = core.handshakes_done
            return
        bound_ms = ANEW_MS
        if core.session is not None:
            # Who has nothing to send looks at its path that often.
            bound_ms = REATTACH_MS + core.session.policy.idle_probe_interval_ms
        if core.handshakes_done != self._handshakes:
            bound_ms = max(ANEW_MS, bound_ms)
        bound_ms += world.patience_ms
        if now_ns - self._well_since_ns > bound_ms * NS:
            raise Violation("STRANDED", f"everything is well for {bound_ms} ms, and nothing is attached")
