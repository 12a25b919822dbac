"""What the nodes of a fleet promise together, by what the simulator knows itself: store, fences, clocks.

    TWO_OWNERS    a session lives at two nodes in one epoch, or at one in an epoch that the store has not given it; a
                  claim that does not raise the epoch by one; an owner changed by somebody who may not; a node takes a
                  session from another whose lease goes on
    FENCED        a node past its fence delivers or sends user data
    NOT_LET_GO    a node sends user data of a session that it has let go
    SESSION_LOST  a client is told that its session is gone, and no node has ended it
    HISTORY       claims and reads, as the nodes saw them, are not those of one store (owner_history.py)

docs/simulator.md says what an owner may do that has been overtaken and does not know it.
"""

from typing import Final

from jvpn.observability.events import OwnershipEvent, StateChange
from jvpn.protocol.constants import DATA_KINDS
from jvpn.protocol.keys import steering_id
from jvpn.session.machine import State
from jvpn.session.record import SessionRecord
from jvpn.sim.clock import NS
from jvpn.sim.cluster import Cluster
from jvpn.sim.gateway import GatewayNode
from jvpn.sim.network import Flight
from jvpn.sim.owner_history import BadHistory
from jvpn.sim.recorder import Recorder
from jvpn.sim.violation import Violation
from jvpn.sim.world import World

#: How late the news may be by which a node believes that another's lease has ended: longer than any watch lags.
NEWS_MS: Final = 20_000


class Ownership:
    """A tap of the network and a watcher of the world."""

    def __init__(self, world: World, cluster: Cluster) -> None:
        self._world = world
        self._cluster = cluster
        #: Who has claimed each epoch of a session, or was handed it.
        self._owner: dict[tuple[bytes, int], str] = {}
        self.claims = 0
        #: Claims of what another node owned.
        self.taken = 0
        self._read = dict.fromkeys(world.gateways, 0)
        self._ended: set[str] = set()
        self._client_read = 0
        self.recorder = Recorder(world.agenda)
        cluster.on_record = self._changed
        cluster.on_served = self.recorder.served
        world.network.taps.append(self._tap)
        world.watchers.append(self._look)
        world.on_delivery = self._delivers

    # The store

    def _changed(
        self, session_id: bytes, was: SessionRecord | None, now: SessionRecord | None, by: str
    ) -> None:
        self.recorder.changed(session_id, now)
        if now is None:
            return
        key = (session_id, now.epoch)
        if was is None:
            self._owner.setdefault(key, now.owner_node)
        elif now.epoch != was.epoch:
            self._claimed(session_id, was, now, by)
        elif now.owner_node != was.owner_node:
            if by != was.owner_node:
                raise Violation("TWO_OWNERS", f"{by} gives {was.owner_node}'s session to {now.owner_node}")
            self._owner[key] = now.owner_node

    def _claimed(self, session_id: bytes, was: SessionRecord, now: SessionRecord, by: str) -> None:
        self.claims += 1
        name = session_id.hex()
        if now.epoch != was.epoch + 1 or now.owner_node != by:
            text = f"{by} makes epoch {now.epoch} of {name} {now.owner_node}'s, after {was.epoch}"
            raise Violation("TWO_OWNERS", text)
        if (session_id, now.epoch) in self._owner:
            raise Violation("TWO_OWNERS", f"epoch {now.epoch} of {name} is claimed again, by {by}")
        self._owner[session_id, now.epoch] = by
        old = next((node for node in self._world.gateways if node.node_id == was.owner_node), None)
        if old is None or by == was.owner_node:
            return
        self.taken += 1
        if self._acts(old, session_id) and not self._may_be_taken(old):
            raise Violation("TWO_OWNERS", f"{by} takes {name} from {old.node_id}, whose lease goes on")

    @staticmethod
    def _acts(node: GatewayNode, session_id: bytes) -> bool:
        """Whether the node still may act as the session's owner, and would."""
        if node.core is None or node.fenced(node.clock.now_ms):
            return False
        session = node.context.sessions.get(session_id)
        return session is not None and session.bindings.active is not None

    def _may_be_taken(self, old: GatewayNode) -> bool:
        """It is draining, or its last lease had ended: that news may be late."""
        gone_ns = self._cluster.gone_ns.get(old.node_id)
        lately = gone_ns is not None and self._world.agenda.now_ns - gone_ns < NEWS_MS * NS
        drained_ns = self._cluster.drained_ns.get(old.node_id)
        drains = drained_ns is not None and self._world.agenda.now_ns - drained_ns < NEWS_MS * NS
        return old.about.draining or lately or drains

    # The nodes

    def _look(self) -> None:
        for node in self._world.gateways:
            self._ends(node)
            for session_id, session in {} if node.core is None else node.context.sessions.items():
                self._lives(node, session_id, session.epoch)
        self._client_told()

    def _lives(self, node: GatewayNode, session_id: bytes, epoch: int) -> None:
        owner = self._owner.get((session_id, epoch))
        if owner not in (None, node.node_id):
            raise Violation(
                "TWO_OWNERS", f"{session_id.hex()} lives at {node.node_id} in {owner}'s epoch {epoch}"
            )
        others = [n for n in self._world.gateways if n is not node and n.core is not None]
        for other in others:
            session = other.context.sessions.get(session_id)
            if session is not None and session.epoch == epoch:
                text = f"{session_id.hex()} lives at {node.node_id} and {other.node_id} in epoch {epoch}"
                raise Violation("TWO_OWNERS", text)

    def _delivers(self, node: GatewayNode) -> None:
        if node.fenced(node.clock.now_ms):
            raise Violation("FENCED", f"{node.node_id} delivers user data past its fence")

    def _tap(self, flight: Flight) -> None:
        if flight.up or flight.data[0] not in DATA_KINDS:
            return
        node = self._world.nodes[flight.source]
        if node.fenced(node.clock.now_ms):
            raise Violation("FENCED", f"{node.node_id} sends user data past its fence")
        wanted = flight.data[4:12]
        if (
            node.core is not None
            and wanted not in node.context.by_steering_id
            and not self._drains(node, wanted)
        ):
            raise Violation("NOT_LET_GO", f"{node.node_id} sends user data of a session that it has not")

    @staticmethod
    def _drains(node: GatewayNode, wanted: bytes) -> bool:
        """Whether that is the index on which the traffic of a session that has left the node drains."""
        for session in node.context.departing.values():
            draining = session.bindings.draining
            known = None if draining is None else steering_id(session.secrets, draining.index)
            if known == wanted and node.clock.now_ms <= session.bindings.drain_until_ms + 1:
                return True
        return False

    # The client

    def _ends(self, node: GatewayNode) -> None:
        events = node.sink.events
        for event in events[self._read[node] :]:
            ended = isinstance(event, StateChange) and event.to is State.TERMINATED
            if ended or (isinstance(event, OwnershipEvent) and event.action == "released"):
                self._ended.add(event.session_id)
        self._read[node] = len(events)

    def _client_told(self) -> None:
        events = self._world.client.sink.events
        for event in events[self._client_read :]:
            reset = isinstance(event, StateChange) and (event.details or {}).get("reset")
            if reset and event.session_id not in self._ended:
                raise Violation("SESSION_LOST", f"{event.session_id} was reset, and no node has ended it")
        self._client_read = len(events)

    def finish(self) -> None:
        try:
            self.recorder.check()
        except BadHistory as error:
            raise Violation("HISTORY", str(error)) from error
