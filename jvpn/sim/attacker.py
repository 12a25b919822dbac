"""Somebody who sees everything, sends from any address, and holds no key of either end.

What it has seen it keeps by direction and type, old and new. Everything that it sends arrives at once, by one of four
doors, which differ in what is demanded of the end:

    forge   nobody has sent this: nothing may move, in memory neither
    again   an end has taken this already: it decides nothing more
    early   a genuine datagram from the attacker's own address, before the genuine one or instead of it
    carry   from its own address, and the answers go on to the client: it is a path, and may become the path

After every bind and every datagram that the gateway sends it looks itself whether it got what it must not get.
"""

import random
from collections import deque
from functools import partial
from typing import Final

from jvpn.protocol import reattach
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import DATA_KINDS, HANDSHAKE_TYPES, PacketType
from jvpn.protocol.keys import steering_id
from jvpn.protocol.wire import WireError
from jvpn.sim.guard import Guard
from jvpn.sim.network import DOWN, UP, Flight
from jvpn.sim.violation import Violation
from jvpn.sim.worker import SimWorker
from jvpn.sim.world import World
from jvpn.supervisor.live_session import LiveSession
from workers.commands import Endpoint
from workers.counters import Counter

#: Where an attacker that is no relay sends from, and where the relay does.
OWN: Final = Endpoint(to_bytes("192.0.2.66"), 6_666)
RELAY: Final = Endpoint(to_bytes("192.0.2.77"), 7_777)
#: By which the cores count what they put away before they have read it.
_UNREAD: Final = ("control_not_bound", "unknown_id", "wrong_source")
#: Of each type and direction: how many of the first and of the last are kept.
KEPT: Final = 24


class Attacker:
    """A watcher and a tap of the world; what arrives at the ends passes it."""

    def __init__(self, world: World, guard: Guard) -> None:
        self._world = world
        self._guard = guard
        self._first: dict[tuple[bool, int], list[Flight]] = {}
        self._last: dict[tuple[bool, int], deque[Flight]] = {}
        #: Datagrams that an end has had while all of it ran.
        self._taken: set[bytes] = set()
        #: Uplinks that are relayed.
        self._relayed: set[int] = set()
        self._relays_data = self._beside = True
        self._relay_ever = False
        self._spent = self._got = 0
        self.sent = 0
        world.network.taps.append(self._tap)
        world.watchers.append(self._look)
        world.network.to_gateway = self._up
        world.network.to_client = self._down

    # What it sees

    def _up(self, flight: Flight) -> None:
        refused = self._refusals()
        ready = self._world.nodes[flight.destination].up
        if flight.uplink in self._relayed and flight.genuine:
            self._carry_up(flight)
        else:
            self._guard.receive_up(flight)
        if ready and flight.genuine and refused == self._refusals():
            self._taken.add(flight.data)

    def _refusals(self) -> int:
        """How many datagrams the gateway has put away unread: copies of those are taken later, if ever."""
        nodes = self._world.gateways
        found = sum(node.context.counters[name] for node in nodes for name in _UNREAD)
        return found + sum(_put_away(worker) for node in nodes for worker in node.workers.values())

    def _down(self, flight: Flight) -> None:
        refused = self._refused_by_client()
        ready = self._world.client.up
        self._guard.receive_down(flight)
        # What is still on its way to the core may be refused there.
        read = not self._world.client.reports.waiting
        if ready and read and flight.genuine and refused == self._refused_by_client():
            self._taken.add(flight.data)

    def _refused_by_client(self) -> int:
        """An answer may come over another uplink than the one that it answers, where its id is none."""
        client = self._world.client
        found = 0 if client.core is None else sum(client.core.counters[name] for name in _UNREAD)
        return found + _put_away(client.worker)

    def _tap(self, flight: Flight) -> None:
        if not flight.up and flight.destination in (OWN, RELAY):
            self._answered(flight)
            return
        key = (flight.up, flight.data[0])
        first = self._first.setdefault(key, [])
        if len(first) < KEPT:
            first.append(flight)
        else:
            self._last.setdefault(key, deque(maxlen=KEPT)).append(flight)

    def seen(self, up: bool, kind: int) -> list[Flight]:
        return self._first.get((up, kind), []) + list(self._last.get((up, kind), ()))

    def pick(self, draw: random.Random, up: bool) -> Flight | None:
        """One that it has seen: every type is as likely as any other."""
        kinds = sorted(kind for way, kind in self._first if way is up)
        return draw.choice(self.seen(up, draw.choice(kinds))) if kinds else None

    # What it must not get

    def _answered(self, flight: Flight) -> None:
        """The gateway sends something to the attacker."""
        if flight.destination == RELAY:
            self._carry_down(flight)
            return
        self._got += len(flight.data)
        if flight.data[0] in DATA_KINDS:
            raise Violation("ATTACKER", "the gateway sends user data to an address that has proved nothing")
        if self._got > self._spent:
            raise Violation("AMPLIFIED", f"an attacker sent {self._spent} bytes and got {self._got}")

    def _look(self) -> None:
        nodes = [node for node in self._world.gateways if node.core is not None]
        for session in [session for node in nodes for session in node.context.sessions.values()]:
            active = session.bindings.active
            if active is None:
                continue
            source = Endpoint(to_bytes(active.source[0]), active.source[1])
            if source == OWN or (source == RELAY and not self._relay_ever):
                raise Violation(
                    "ATTACKER", f"{session.hex_id} is bound to an address that echoed no challenge"
                )

    # What it sends

    def forge(self, flight: Flight) -> None:
        """Something that no end has sent so."""
        self._count(flight)
        (self._guard.receive_up if flight.up else self._guard.receive_down)(flight)

    def again(self, seen: Flight, source: Endpoint, uplink: int) -> None:
        """What it has seen once more, from `source`, to the gateway or over an uplink to the client."""
        if seen.up:
            copy = Flight(UP, uplink, source, seen.destination, seen.data, False)
        else:
            own = self._world.network.uplinks[uplink].external
            copy = Flight(DOWN, uplink, seen.source, own, seen.data, False)
        self._count(copy)
        if self._is_stale(copy):
            self._guard.stale(copy)
        else:
            (self._world.receive_up if copy.up else self._world.client.receive)(copy)

    def early(self, seen: Flight) -> None:
        """A genuine datagram of the client, from the attacker's address."""
        copy = Flight(UP, seen.uplink, OWN, seen.destination, seen.data, False)
        self._count(copy)
        before = self._delivered()
        self._world.receive_up(copy)
        if self._delivered() != before:
            raise Violation("ATTACKER", "the gateway delivers user data from an address that is not bound")

    def _delivered(self) -> int:
        workers = [worker for node in self._world.gateways for worker in node.workers.values()]
        return sum(worker.count(Counter.DELIVERED_PACKETS) for worker in workers)

    def _count(self, flight: Flight) -> None:
        self.sent += 1
        if flight.up and flight.source == OWN:
            self._spent += len(flight.data)

    def _is_stale(self, copy: Flight) -> bool:
        """Whether nothing may come of it. A copy of what an end has never had is no worse than a late original."""
        kind = copy.data[0]
        if kind == PacketType.REATTACH_REQUEST:
            return copy.source == OWN or self._is_decided(copy)
        if kind in HANDSHAKE_TYPES and copy.up:
            return True
        return copy.data in self._taken

    def _is_decided(self, copy: Flight) -> bool:
        """A REQUEST of an attempt that has been bound or refused where it arrives."""
        data, gateway = copy.data, self._world.nodes[copy.destination]
        if gateway.core is None:
            return False
        for session in gateway.context.sessions.values():
            for index in range(session.indexes.highest_installed + 1):
                if steering_id(session.secrets, index) == data[4:12]:
                    return _decided(session, index, data)
        return False

    # A relay

    def relay(self, uplink: int, data: bool, beside: bool) -> None:
        """From now on everything on `uplink` goes over the attacker; `data` False: but user data does not go on.
        `beside`: the genuine datagrams come too, later."""
        self._relayed.add(uplink)
        self._relays_data, self._beside, self._relay_ever = data, beside, True

    def leave(self, uplink: int) -> None:
        self._relayed.discard(uplink)

    def _carry_up(self, flight: Flight) -> None:
        """It comes from the relay's address."""
        if flight.data[0] not in DATA_KINDS or self._relays_data:
            self.sent += 1
            self._world.receive_up(Flight(UP, flight.uplink, RELAY, flight.destination, flight.data, False))
        if self._beside:
            self._guard.receive_up(flight)

    def _carry_down(self, flight: Flight) -> None:
        """To the uplink that is relayed, as if the gateway had sent it there."""
        if flight.data[0] in DATA_KINDS and not self._relays_data:
            return
        network = self._world.network
        for number in sorted(self._relayed):
            to = network.uplinks[number].external
            self._world.agenda.later(
                1, partial(network.arrive, Flight(DOWN, number, flight.source, to, flight.data))
            )


def _decided(session: LiveSession, index: int, data: bytes) -> bool:
    try:
        attempt = reattach.open_request(session.secrets, index, data).attempt
    except WireError:
        return False
    refused = 0 if session.refused is None else session.refused.attempt
    return session.bound_in_epoch and attempt <= max(session.last_attempt, refused)


def _put_away(worker: SimWorker) -> int:
    return sum(worker.count(of) for of in (Counter.UNKNOWN_ID, Counter.WRONG_SOURCE, Counter.NOT_BOUND))
