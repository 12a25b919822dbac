"""Two gateway cores of one fleet at two endpoints, and the client of `core_pair`, which may reach either.

They share a store in memory; what a watch would tell is told WATCH_MS after it has come about.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import msgspec
from core_pair import GATEWAY, CorePair, Flight

from jvpn.agent.paths import Uplink
from jvpn.policy.model import Policy
from jvpn.protocol.addresses import to_bytes
from jvpn.store.memory import MemoryStore
from jvpn.store.node_about import NodeAbout
from jvpn.supervisor import effects as gateway_does
from jvpn.supervisor.fleet import Fleet
from jvpn.supervisor.live_session import LiveSession
from workers.commands import Endpoint

SECOND: Final = Endpoint(to_bytes("203.0.113.2"), 51820)
WATCH_MS: Final = 5


class SharedStore(MemoryStore):
    """What one node has of a store that others write too."""

    def __init__(self, shared: MemoryStore) -> None:
        super().__init__(shared.fleet_key)
        self._records, self._timestamps_us = shared._records, shared._timestamps_us
        self._addresses, self.asked = shared._addresses, shared.asked


class SecondGateway(CorePair):
    """A further node: its clock, network and client are those of the pair that it belongs to."""

    node_id = "gw2"
    endpoint = SECOND

    def __init__(self, first: "FleetPair") -> None:
        self.first = first
        self.capacity, self.random, self.policy = first.capacity, first.random, first.policy
        self.pool = first.pool
        self.store = SharedStore(first.store)
        self.gateway_sink = first.gateway_sink
        self.gateway_keys = first.gateway_keys
        self._make_gateway(tuple(first.workers))

    @property
    def now_ns(self) -> int:  # type: ignore[override]
        return self.first.now_ns

    def _gateway_effect(self, effect: gateway_does.Effect) -> None:
        super()._gateway_effect(effect)
        self.first.announced(self.node_id, effect)

    def _later(self, delay_ms: float, action: Any) -> None:
        self.first._later(delay_ms, action)

    def _send_down(self, data: bytes, source: Endpoint, to: Endpoint) -> None:
        self.first._send_down(data, source, to)

    def settle(self) -> None:
        self.first.settle()


class FleetPair(CorePair):
    """`ways`: for each uplink of the client, where its ways lead; a way more than there are uplinks shares the last
    one's socket. Everything of the first node is the pair's own, the second one's is `second`'s."""

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        ways: tuple[tuple[Endpoint, ...], ...] = ((GATEWAY,), (SECOND,)),
        uplinks: int = 1,
        seed: int = 1,
    ) -> None:
        self._ways = ways
        super().__init__(policy, seed=seed, uplinks=uplinks)
        self.second = SecondGateway(self)
        self.gateways: tuple[CorePair, CorePair] = (self, self.second)
        #: Until it is set, nobody watches.
        self.nodes: Mapping[str, NodeAbout] = {}
        self._owners: dict[bytes, str] = {}
        #: Whether the store takes what nodes say of themselves.
        self.announces = True
        #: The node that return traffic is sent to.
        self.returns_to = "gw"
        self._asked = 0
        for node in self.gateways:
            node.context.fleet = Fleet(node.node_id)
        self.tell(gw=NodeAbout(), gw2=NodeAbout())

    def _new_uplinks(self) -> list[Uplink]:
        last = len(self.addresses) - 1
        return [
            Uplink(
                number,
                f"up{'ABCDEFGH'[min(number, last)]}",
                100,
                remotes[0],
                remotes=remotes,
                socket=min(number, last),
                rank=max(0, number - last),
            )
            for number, remotes in enumerate(self._ways)
        ]

    # The fleet

    def tell(self, **changed: NodeAbout | None) -> None:
        """What nodes say of themselves from now on; None: the lease has ended."""
        known = {**self.nodes, **changed}
        self.nodes = {name: about for name, about in known.items() if about is not None}

        def watched() -> None:
            for node in self.gateways:
                node.gateway.others.alive(self.nodes)

        self._later(WATCH_MS, watched)

    def _gateway_effect(self, effect: gateway_does.Effect) -> None:
        super()._gateway_effect(effect)
        self.announced(self.node_id, effect)

    def announced(self, node_id: str, effect: gateway_does.Effect) -> None:
        if isinstance(effect, gateway_does.Announce) and self.announces:
            self.drains(node_id, effect.draining)

    def drains(self, node_id: str, draining: bool = True) -> None:
        self.tell(**{node_id: msgspec.structs.replace(self.nodes[node_id], draining=draining)})

    def owner(self) -> CorePair:
        """The node that has the client's session."""
        (node,) = (node for node in self.gateways if node.context.sessions)
        return node

    def owned_by(self, node: CorePair) -> bool:
        """The session is that node's, and bound there, as both ends know."""
        ours, others = self.client.session, [other for other in self.gateways if other is not node]
        if ours is None or not ours.configured or ours.requester.attempt is not None:
            return False
        live = node.context.sessions.get(ours.session_id)
        return (
            live is not None
            and not any(other.context.sessions for other in others)
            and ours.view.state_version == live.machine.state_version
        )

    def session_at(self, node: CorePair) -> LiveSession:
        (session,) = node.context.sessions.values()
        return session

    def _watch(self) -> None:
        """Sessions that have changed hands, and owners that were asked, become known at the nodes."""
        owners = {record.session_id: record.owner_node for record in self.store.sessions()}
        for session_id, before in self._owners.items():
            if owners.get(session_id) != before:
                self._later(WATCH_MS, partial(self._moved, session_id, before))
        self._owners = owners
        for asked in self.store.asked[self._asked :]:
            self._later(WATCH_MS, partial(self._ask, *asked))
        self._asked = len(self.store.asked)

    def _moved(self, session_id: bytes, before: str) -> None:
        self._node(before).gateway.others.doubt([session_id])
        self.returns_to = self._owners.get(session_id, self.returns_to)

    def _ask(self, session_id: bytes, owner: str, asker: str, attempt: int) -> None:
        self._node(owner).gateway.others.asked_for(session_id, asker, attempt, self.now_ms)

    def _node(self, node_id: str) -> CorePair:
        return next(node for node in self.gateways if node.node_id == node_id)

    # The network and time of the pair, for two gateways

    def _arrive(self, flight: Flight) -> None:
        if flight.up and flight.destination == SECOND:
            self.second._arrive(flight)
        else:
            super()._arrive(flight)

    def _turn(self) -> bool:
        busy = super()._turn()
        at_ms = self.second.gateway.get_timer()
        if at_ms is not None and at_ms <= self.now_ms:
            self.second.gateway.handle_timer(self.now_ms)
            self._carry_out()
            busy = True
        return busy

    def _gateway_timers(self) -> list[int | None]:
        return [*super()._gateway_timers(), *self.second._gateway_timers()]

    def _carry_out(self) -> bool:
        second = getattr(self, "second", None)
        before = 0 if second is None else len(second.done)
        if second is not None:
            second.keeping.settle(second._gateway_effects, self.now_ms)
        busy = super()._carry_out()
        if second is not None:
            self._watch()
            busy = busy or len(second.done) > before
        return busy

    # What tests ask

    def refusals(self) -> list[str]:
        return super().refusals() + [text for w in self.second.workers.values() for text in w.refused]

    def data_down(self, payload: bytes) -> bool:
        """A packet for the client comes to the node that is known to have its session."""
        ours = self.client.session
        assert ours is not None
        node = self._node(self.returns_to)
        context = node.context
        live = context.sessions.get(ours.session_id) or context.departing.get(ours.session_id)
        sent = live is not None and node.workers[live.slot].send_data(live.record, payload, self.now_ns)
        self.settle()
        return sent

    def came_up(self) -> list[bytes]:
        """What the client's packets were that came out at either node, in no order."""
        return [data for n in self.gateways for worker in n.workers.values() for data in worker.delivered]
