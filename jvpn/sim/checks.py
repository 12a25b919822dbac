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

from jvpn.observability.events import StateChange, encode
from jvpn.observability.sink import MemorySink
from jvpn.observability.verify import Auditor
from jvpn.protocol.constants import Role
from jvpn.session.machine import State
from jvpn.session.ttl import TtlClock
from jvpn.session.walker import Walker
from jvpn.sim.clock import NS
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
        self._streams = [
            _Stream("gateway", world.gateway.sink, Auditor()),
            _Stream("client", world.client.sink, Auditor()),
        ]
        self._versions: dict[bytes, int] = {}
        self._ended: set[str] = set()
        #: Inner prefixes by client, from its first session on.
        self._prefixes: dict[bytes, tuple[str, ...]] = {}
        self._known: set[str] = set()
        self._well_since_ns: int | None = None
        self._handshakes = 0
        world.agenda.later(LOOK_MS, self._liveness)

    def __call__(self) -> None:
        for stream in self._streams:
            if len(stream.sink.events) > stream.read:
                self._audit(stream)
        self._gateway()
        self._client()

    # Events

    def _audit(self, stream: _Stream) -> None:
        events = stream.sink.events
        for event in events[stream.read :]:
            stream.auditor.feed(encode(event))
            if stream.name == "gateway" and isinstance(event, StateChange):
                self._known.add(event.session_id)
                if event.to is State.TERMINATED:
                    self._ended.add(event.session_id)
        stream.read = len(events)
        if stream.auditor.findings:
            raise Violation("EVENTS", f"{stream.name}'s events: {stream.auditor.findings[0]}")

    def finish(self) -> None:
        """What only the end shows. A client that died was asking for something, or is still asking."""
        for stream in self._streams:
            findings = [f for f in stream.auditor.finish() if f.code != "NO_RESULT"]
            if findings:
                raise Violation("EVENTS", f"{stream.name}'s events: {findings[0]}")

    # The gateway

    def _gateway(self) -> None:
        gateway = self._world.gateway
        for worker in gateway.workers.values():
            if worker.refused:
                raise Violation("REFUSED", f"the gateway's worker: {worker.refused[0]}")
        if gateway.core is None:
            return
        sessions = gateway.context.sessions
        for session_id, session in sessions.items():
            version = session.machine.state_version
            if version != self._versions.get(session_id):
                self._moved(session, version)
            if not self._world.gateway_is_due:
                self._clocks(session.hex_id, session.machine, session.ttl, gateway.clock.now_ms)
        self._addresses()
        if len(sessions) > 1:
            alive = [session.hex_id for session in sessions.values() if not session.machine.terminated]
            if len(alive) > 1:
                raise Violation("ID_REPLACED", f"one client has the sessions {' and '.join(alive)}")

    def _addresses(self) -> None:
        gateway = self._world.gateway
        holders: dict[str, bytes] = {}
        for session in gateway.context.sessions.values():
            client = session.peer.public_key
            known = self._prefixes.setdefault(client, session.prefixes)
            if session.prefixes != known:
                raise Violation("ADDRESS", f"{session.hex_id}: {known} → {session.prefixes}")
            for prefix in session.prefixes:
                if holders.setdefault(prefix, client) != client:
                    raise Violation("ADDRESS", f"two clients have {prefix}")
        unborn = {p for session, _ms in gateway.context.confirming.values() for p in session.prefixes}
        if not self._world.gateway_is_due and not gateway.steered.prefixes.keys() <= holders.keys() | unborn:
            raise Violation(
                "ADDRESS", f"steered {set(gateway.steered.prefixes)}, in use {set(holders) | unborn}"
            )

    def _moved(self, session: LiveSession, version: int) -> None:
        before = self._versions.get(session.session_id, -1)
        if version < before:
            raise Violation("VERSION_BACK", f"{session.hex_id}: {before:#x} → {version:#x}")
        self._versions[session.session_id] = version
        if session.bindings.count != session.machine.active_bindings:
            counted = f"{session.bindings.count} bound, {session.machine.active_bindings} in the machine"
            raise Violation("ONE_BINDING", f"{session.hex_id}: {counted}")
        self._one_binding(session)

    def _one_binding(self, session: LiveSession) -> None:
        gateway = self._world.gateway
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
        if not world.well:
            self._well_since_ns = None
            return
        core = world.client.core
        assert core is not None
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
        if now_ns - self._well_since_ns > bound_ms * NS:
            raise Violation("STRANDED", f"everything is well for {bound_ms} ms, and nothing is attached")
