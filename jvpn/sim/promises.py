"""What both ends promise beyond their own tables: looked for by what the simulator knows itself, not by their word.

    WRONG_PATH   user data to an address, or over an uplink, that the session is not bound to
    LINKED       a steering id over two uplinks although fresh ones were left: both networks see the same client
    ID_REPLACED  a session that is gone, or another in its place, and no TERMINATED was told
    OVERDUE      no binding for longer than the transport-loss TTL, by the simulator's clock

A tap of the network and a watcher of the world.
"""

from jvpn.agent.core import ClientCore
from jvpn.observability.events import OwnershipEvent, StateChange
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import DATA_KINDS, HANDSHAKE_TYPES
from jvpn.session.machine import State
from jvpn.sim.client import ClientNode
from jvpn.sim.clock import NS, TimedSink
from jvpn.sim.gateway import GatewayNode
from jvpn.sim.network import Flight
from jvpn.sim.violation import Violation
from jvpn.sim.world import World
from jvpn.supervisor.core import GatewayCore

_SLACK_MS = 2


class Promises:
    def __init__(self, world: World) -> None:
        self._world = world
        self._uplink_of: dict[bytes, int] = {}
        #: Ids that two uplinks had to share when there was no other left.
        self._shared: set[bytes] = set()
        self._ended: dict[GatewayNode | ClientNode, _Ends] = {end: _Ends(end.sink) for end in world.ends}
        self._had: dict[GatewayNode, tuple[GatewayCore | None, frozenset[bytes]]] = {}
        self._client_had: tuple[ClientCore | None, bytes | None] = (None, None)
        self._unbound_ns: dict[tuple[str, bytes], int] = {}
        self._client_since_ns: int | None = None
        world.network.taps.append(self._tap)
        world.watchers.append(self._look)

    # What is sent

    def _tap(self, flight: Flight) -> None:
        data = flight.data[0] in DATA_KINDS
        if flight.up:
            if data:
                self._data_up(flight)
            self._unlinked(flight)
        elif data:
            self._data_down(flight)

    def _data_down(self, flight: Flight) -> None:
        gateway = self._world.nodes[flight.source]
        found = gateway.context.by_steering_id.get(flight.data[4:12]) if gateway.core is not None else None
        if found is None:
            return
        session, index = found
        active = session.bindings.active
        bound = active is not None and (active.index, active.source[1]) == (index, flight.destination.port)
        if not bound or active is None or to_bytes(active.source[0]) != flight.destination.address:
            raise Violation("WRONG_PATH", f"user data to #{index}, but bound is {active}")

    def _data_up(self, flight: Flight) -> None:
        core = self._world.client.core
        session = None if core is None else core.session
        if session is None or session.requester.attempt is not None:
            return
        active = session.paths.active_path
        if active is None or active.uplink.socket != flight.uplink or active.steering_id != flight.data[4:12]:
            where = "none" if active is None else f"#{active.index}"
            raise Violation("WRONG_PATH", f"user data over uplink {flight.uplink}, but active is {where}")

    def _unlinked(self, flight: Flight) -> None:
        if flight.uplink is None or flight.data[0] in HANDSHAKE_TYPES:
            return
        steering_id = flight.data[4:12]
        first = self._uplink_of.setdefault(steering_id, flight.uplink)
        if first == flight.uplink or steering_id in self._shared:
            return
        core = self._world.client.core
        session = None if core is None else core.session
        paths = None if session is None else session.paths
        if paths is not None and paths.last_index < paths.highest_fresh:
            raise Violation("LINKED", f"one steering id over the uplinks {first} and {flight.uplink}")
        self._shared.add(steering_id)

    # What is kept

    def _look(self) -> None:
        for node in self._world.gateways:
            if node.core is not None:
                self._gateway(node, node.core)
        self._client()

    def _gateway(self, node: GatewayNode, core: GatewayCore) -> None:
        before, had = self._had.get(node, (None, frozenset()))
        sessions = node.context.sessions
        if before is core and had - sessions.keys():
            ended = self._ended[node].ended()
            for session_id in had - sessions.keys():
                if session_id.hex() not in ended:
                    raise Violation("ID_REPLACED", f"{session_id.hex()} is gone, and no TERMINATED was told")
        if before is not core or had != sessions.keys():
            self._had[node] = core, frozenset(sessions)
        for of, session_id in list(self._unbound_ns):
            if of == node.node_id and session_id not in sessions:
                del self._unbound_ns[of, session_id]
        for session_id, session in sessions.items():
            key = (node.node_id, session_id)
            if session.machine.active_bindings or session.machine.terminated:
                self._unbound_ns.pop(key, None)
            elif not self._world.is_due(node):
                since_ns = self._unbound_ns.setdefault(key, self._world.agenda.now_ns)
                self._not_too_long("gateway", since_ns, session.policy.transport_loss_ttl_ms)

    def _not_too_long(self, where: str, since_ns: int, ttl_ms: int) -> None:
        late_ms = (self._world.agenda.now_ns - since_ns) // NS - ttl_ms
        if late_ms > _SLACK_MS:
            raise Violation("OVERDUE", f"the {where} has no binding, {late_ms} ms beyond the TTL")

    def _client(self) -> None:
        core = self._world.client.core
        before, had = self._client_had
        session = None if core is None else core.session
        has = None if session is None else session.session_id
        if session is None or has != had or session.view.active_bindings or not session.configured:
            self._client_since_ns = None
        elif not session.view.terminated and not self._world.client_is_due:
            self._client_since_ns = self._client_since_ns or self._world.agenda.now_ns
            self._not_too_long("client", self._client_since_ns, session.policy.transport_loss_ttl_ms)
        if core is before and has == had:
            return
        if core is before and had is not None and had.hex() not in self._ended[self._world.client].ended():
            raise Violation("ID_REPLACED", f"the client left {had.hex()}, and no TERMINATED was told")
        self._client_had = core, has


class _Ends:
    """Sessions whose TERMINATED an end has told, or that it has let go to another node."""

    def __init__(self, sink: TimedSink) -> None:
        self._sink = sink
        self._read = 0
        self._ended: set[str] = set()

    def ended(self) -> set[str]:
        events = self._sink.events
        for event in events[self._read :]:
            if isinstance(event, StateChange) and event.to is State.TERMINATED:
                self._ended.add(event.session_id)
            elif isinstance(event, OwnershipEvent) and event.reason_code == "TAKEN_OVER":
                (self._ended.add if event.action == "transferred" else self._ended.discard)(event.session_id)
        self._read = len(events)
        return self._ended
