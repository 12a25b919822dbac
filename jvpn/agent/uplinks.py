"""The client's uplinks: for each a device-bound socket, whether it has a link, and which gateway endpoints it reaches.

A device may be absent, vanish and come back with another interface index (a USB modem): SO_BINDTODEVICE binds to the
index, so the socket is opened anew then. An endpoint counts as reachable over a device that has an address of its
family: asking the kernel says nothing, since for a bound socket without a route every IPv4 address is on-link.

Each device has one way out to begin with. While there are fewer devices than paths that the policy keeps warm, those
that reach several endpoints get further ways, to share the endpoints among them (`ways.py`).
"""

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from jvpn.agent.netlinks import link_is_up, usable_addresses
from jvpn.agent.paths import Uplink
from jvpn.agent.ways import share_out, shares
from jvpn.protocol import addresses
from jvpn.transports.udp import UdpTransport
from workers import udp
from workers.commands import Endpoint

UNKNOWN = Endpoint(addresses.ANY, 0)


@dataclass(slots=True)
class Port:
    """One device as it is now, and the ways out over it. `index` None: there is no such device."""

    ways: list[Uplink]
    index: int | None = None
    link: bool = False
    addresses: frozenset[str] = frozenset()
    opened: socket.socket | None = None
    transport: UdpTransport | None = None
    #: When a route event last made us try it.
    hurried_ms: int = field(default=0)

    @property
    def uplink(self) -> Uplink:
        """The way that there always is."""
        return self.ways[0]

    @property
    def name(self) -> str:
        return self.uplink.name

    def reachable(self, remotes: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
        """Those of the families that the device has an address of."""
        ipv4 = any(":" not in address for address in self.addresses)
        ipv6 = any(":" in address for address in self.addresses)
        return tuple(remote for remote in remotes if (ipv4 if addresses.is_ipv4(remote.address) else ipv6))


class Uplinks:
    """`attach(number, socket)` hands a new socket to the data worker, None takes it away again."""

    def __init__(
        self,
        devices: Sequence[tuple[str, int]],
        attach: Callable[[int, socket.socket | None], None],
        gro: bool = True,
        most_ways: int = 1,
        labels: Mapping[str, tuple[int, str]] | None = None,
    ) -> None:
        """`most_ways`: how many paths are kept warm, the active one among them. `labels`: by device, its cost and
        network."""
        self._labels = labels or {}
        self._gro = gro
        self.most_ways = most_ways
        self._last_number = -1
        self._attach = attach
        self.ports: list[Port] = []
        self.remotes: tuple[Endpoint, ...] = ()
        for device, preference in devices:
            self.add(device, preference)

    def add(self, device: str, preference: int) -> Port:
        """A further uplink; its device is looked at in `refresh`."""
        port = Port([])
        self.ports.append(port)
        self._add_way(port, device, preference)
        return port

    def _add_way(self, port: Port, device: str, preference: int) -> None:
        self._last_number += 1
        socket_number, rank = self.ports.index(port), len(port.ways)
        way = Uplink(
            self._last_number, device, preference, UNKNOWN, link_up=False, socket=socket_number, rank=rank
        )
        way.cost, way.network = self._labels.get(device, (0, ""))
        port.ways.append(way)

    def by_name(self, device: str) -> Port | None:
        return next((port for port in self.ports if port.name == device), None)

    def by_index(self, index: int) -> Port | None:
        return next((port for port in self.ports if port.index == index), None)

    @staticmethod
    def name_of(index: int) -> str | None:
        try:
            return socket.if_indextoname(index)
        except OSError:
            return None

    def sockets(self) -> dict[int, socket.socket]:
        return {port.uplink.socket: port.opened for port in self.ports if port.opened is not None}

    def send(self, number: int, remote: Endpoint, data: bytes) -> None:
        """Best effort, as UDP is."""
        port = self.ports[number]
        if port.transport is not None:
            port.transport.send(data, port.uplink.local_for(remote), remote)

    # What changed

    def refresh(self, port: Port) -> None:
        """Look at everything again; `port.uplink` is not touched (see `settle`)."""
        try:
            index: int | None = socket.if_nametoindex(port.name)
        except OSError:
            index = None
        self.link_changed(port, index, index is not None and link_is_up(port.name))
        self.read_addresses(port)

    def link_changed(self, port: Port, index: int | None, link: bool) -> None:
        if index != port.index or (index is not None and port.opened is None):
            self._close(port)
            port.index = index
            if index is not None:
                self._open(port)
        elif link and not port.link:
            self.renew(port)
        port.link = link and port.opened is not None

    @staticmethod
    def read_addresses(port: Port) -> None:
        port.addresses = frozenset() if port.index is None else usable_addresses(port.index)

    def settle(self, port: Port, active: Uplink | None = None) -> list[tuple[Uplink, bool]]:
        """Bring the endpoints of its ways up to date; returns for each whether it can be used (its `link_up`).

        `active`: the way that DATA goes out on keeps its endpoint while that can be reached, whatever the name says.
        """
        reached = list(port.reachable(self.remotes))
        if active in port.ways and port.reachable([active.remote]):
            reached = list(dict.fromkeys([active.remote, *reached]))
        wanted = min(self._fair_share(port), len(reached))
        while len(port.ways) < wanted:
            self._add_way(port, port.name, port.uplink.preference)
        share_out(port.ways, reached, wanted, active)
        sources = tuple(self._sources(port, reached))
        for way in port.ways:
            way.sources = sources
        return [(way, port.link and bool(way.remotes)) for way in port.ways]

    def _fair_share(self, port: Port) -> int:
        """How many ways the port may have."""
        usable = [p for p in self.ports if p.link and p.reachable(self.remotes)]
        choices = [(p.uplink.preference, len(p.reachable(self.remotes))) for p in usable]
        return shares(choices, self.most_ways)[usable.index(port)] if port in usable else 1

    @staticmethod
    def turn(way: Uplink) -> bool:
        """Go on to the way's next endpoint. False when there is no other."""
        if not way.remotes or way.remotes == (way.remote,):
            return False
        known = way.remotes.index(way.remote) if way.remote in way.remotes else -1
        way.remote = way.remotes[(known + 1) % len(way.remotes)]
        return True

    @staticmethod
    def _sources(port: Port, reached: Iterable[Endpoint]) -> Iterator[bytes]:
        """Of each family the address that the endpoints are reached from. One in use stays while the device has it."""
        known = [own for own in port.uplink.sources if addresses.to_text(own) in port.addresses]
        for ipv4 in (True, False):
            same = [own for own in known if addresses.is_ipv4(own) is ipv4]
            remotes = [r for r in reached if addresses.is_ipv4(r.address) is ipv4]
            if same:
                yield same[0]
            elif remotes and port.opened is not None:
                yield from _source_for(port.name, remotes[0])

    # Sockets

    def renew(self, port: Port) -> None:
        """Another socket, so another port: on another network the old one would tell who comes."""
        if port.opened is not None:
            self._close(port)
            self._open(port)

    def _open(self, port: Port) -> None:
        try:
            port.opened = udp.open_socket("::", 0, device=port.name, offload=self._gro)
        except OSError:
            # Gone again already; the kernel's next news says so.
            return
        port.transport = UdpTransport(port.opened)
        self._attach(port.uplink.socket, port.opened)

    def _close(self, port: Port) -> None:
        if port.opened is not None:
            self._attach(port.uplink.socket, None)
            port.opened.close()
        port.opened = port.transport = None

    def close(self) -> None:
        for port in self.ports:
            if port.opened is not None:
                port.opened.close()
            port.opened = port.transport = None


def _source_for(device: str, remote: Endpoint) -> list[bytes]:
    """The address that the kernel would send from; empty without a route."""
    try:
        with udp.open_socket("::", 0, device=device) as asking:
            asking.connect((addresses.for_socket(remote.address), remote.port))
            return [addresses.to_bytes(asking.getsockname()[0])]
    except OSError:
        return []
