"""The network between one client and one gateway: uplinks, each with two directions that lose, delay and spoil.

    client socket ── up ──► NAT (`external`) ── … ──► gateway
    client socket ◄── down ── NAT ◄── … ── gateway

A fleet's gateways differ in their endpoints; each can be cut off from the client by itself.
What a direction does to each datagram is the lab's link model; corruption, NAT and taps are added here.
"""

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from jvpn.lab.link_model import LinkModel, LinkParams, merge
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import HEADER_SIZE, MAC_SIZE, TICKET_SIZE, PacketType
from jvpn.sim.clock import NS, Agenda
from workers.commands import Endpoint

GATEWAY: Final = Endpoint(to_bytes("203.0.113.1"), 51820)
#: Where the nodes of a fleet are reached.
GATEWAYS: Final = (GATEWAY, *(Endpoint(to_bytes(f"203.0.113.{n}"), 51820) for n in (2, 3)))
#: Ethernet, IPv4 and UDP around each datagram.
WIRE_OVERHEAD: Final = 14 + 20 + 8
UP, DOWN = True, False


@dataclass(frozen=True, slots=True)
class Flight:
    """A datagram on the wire. `uplink` is None when it goes to or comes from somewhere else (a racer).

    `genuine` is False for what an end has not sent, or not so.
    """

    up: bool
    uplink: int | None
    source: Endpoint
    destination: Endpoint
    data: bytes
    genuine: bool = True

    @property
    def kind(self) -> PacketType:
        return PacketType(self.data[0])


class Direction:
    """One direction of one uplink: its usual properties, and what faults that overlap in time make of them."""

    def __init__(self, seed: str, usual: LinkParams) -> None:
        self.usual = usual
        self.corrupt = 0.0
        self._model = LinkModel(seed, usual)
        self._overlays: dict[int, dict[str, Any]] = {}
        self._corrupted = random.Random(f"{seed}/corrupt")

    def overlay(self, number: int, changes: dict[str, Any]) -> None:
        self._overlays[number] = changes
        self._configure()

    def lift(self, number: int) -> None:
        self._overlays.pop(number, None)
        self._configure()

    def calm(self, params: LinkParams) -> None:
        """Forget all faults: from now on it is as `params` say."""
        self.usual = params
        self._overlays.clear()
        self._configure()

    def _configure(self) -> None:
        params = self.usual
        self.corrupt = 0.0
        for changes in self._overlays.values():
            link = {name: value for name, value in changes.items() if name != "corrupt"}
            self.corrupt = max(self.corrupt, changes.get("corrupt", 0.0))
            params = merge(params, link)
        self._model.configure(params)

    @property
    def params(self) -> LinkParams:
        return self._model.params

    @property
    def passes(self) -> bool:
        """Whether nearly everything gets through."""
        params = self._model.params
        bad = params.drop or params.loss > 0.05 or params.burst_loss > 0.05 or self.corrupt > 0.05
        return not bad and not params.rate_mbit and not 0 < params.mtu < 1_500

    def arrivals(self, now_ns: int, size: int) -> tuple[int, ...]:
        return self._model.offer(now_ns, size + WIRE_OVERHEAD)

    def spoil(self, data: bytes) -> bytes | None:
        """`data` with one bit flipped, now and then; None: it passes as it is."""
        if not self.corrupt or self._corrupted.random() >= self.corrupt:
            return None
        return flip(data, self._corrupted)


def flip(data: bytes, draw: random.Random) -> bytes:
    """`data` with one bit flipped that the protocol protects (a ticket and mac2 are outside of every proof)."""
    spots = len(data)
    skipped = 0
    if data[0] == PacketType.HANDSHAKE_INIT:
        spots -= MAC_SIZE
    elif data[0] == PacketType.REATTACH_REQUEST:
        spots -= TICKET_SIZE
        skipped = TICKET_SIZE
    at = draw.randrange(spots)
    if skipped and at >= HEADER_SIZE:
        at += skipped
    return data[:at] + bytes((data[at] ^ 1 << draw.randrange(8),)) + data[at + 1 :]


@dataclass(slots=True)
class UplinkPath:
    """One uplink of the client as the network has it. `external`: what the gateway sees, the NAT's choice."""

    number: int
    own: Endpoint
    external: Endpoint
    up: Direction
    down: Direction
    link_up: bool = True

    def direction(self, up: bool) -> Direction:
        return self.up if up else self.down

    @property
    def usable(self) -> bool:
        return self.link_up and self.up.passes and self.down.passes


@dataclass(slots=True)
class Network:
    """Carries datagrams. `to_gateway` and `to_client` take what arrives, `taps` see what is sent, when it is.

    `strangers` is what goes to sources that are no uplink's.
    """

    agenda: Agenda
    to_gateway: Callable[[Flight], None]
    to_client: Callable[[Flight], None]
    uplinks: list[UplinkPath] = field(default_factory=list)
    taps: list[Callable[[Flight], None]] = field(default_factory=list)
    strangers: list[Flight] = field(default_factory=list)
    #: What was sent lately, for who would send it again.
    recent: deque[Flight] = field(default_factory=lambda: deque(maxlen=64))
    #: Gateways that no uplink reaches, by endpoint: how often each was cut off.
    cut_off: Counter[Endpoint] = field(default_factory=Counter)
    sent: int = 0
    #: The longest that a datagram has been, or will be, under way.
    longest_ms: float = 0.0

    def add(self, seed: str, up: LinkParams, down: LinkParams) -> UplinkPath:
        number = len(self.uplinks)
        own = Endpoint(to_bytes(f"10.201.{number + 1}.2"), 40_000 + number)
        path = UplinkPath(
            number, own, own, Direction(f"{seed}/{number}/up", up), Direction(f"{seed}/{number}/down", down)
        )
        self.uplinks.append(path)
        return path

    def rebind(self, number: int, draw: random.Random) -> None:
        """The NAT forgets its mapping: another port, or another address too; what goes to the old one is lost."""
        path = self.uplinks[number]
        address = path.external.address
        if draw.random() < 0.3:
            address = to_bytes(f"198.51.100.{draw.randrange(1, 255)}")
        path.external = Endpoint(address, 20_000 + draw.randrange(20_000))

    def send_up(self, number: int, destination: Endpoint, data: bytes) -> None:
        path = self.uplinks[number]
        self._send(path.up if path.link_up else None, Flight(UP, number, path.external, destination, data))

    def send_down(self, data: bytes, source: Endpoint, destination: Endpoint) -> None:
        path = next((path for path in self.uplinks if path.external == destination), None)
        if path is None:
            self._tap(Flight(DOWN, None, source, destination, data))
            self.strangers.append(Flight(DOWN, None, source, destination, data))
            return
        flight = Flight(DOWN, path.number, source, destination, data)
        self._send(path.down if path.link_up else None, flight)

    def _tap(self, flight: Flight) -> None:
        self.sent += 1
        self.recent.append(flight)
        for tap in self.taps:
            tap(flight)

    def _send(self, direction: Direction | None, flight: Flight) -> None:
        self._tap(flight)
        gateway = flight.destination if flight.up else flight.source
        if direction is None or self.cut_off[gateway]:
            return
        for at_ns in direction.arrivals(self.agenda.now_ns, len(flight.data)):
            self.longest_ms = max(self.longest_ms, (at_ns - self.agenda.now_ns) / NS)
            spoilt = direction.spoil(flight.data)
            arriving = flight
            if spoilt is not None:
                arriving = Flight(flight.up, flight.uplink, flight.source, flight.destination, spoilt, False)
            self.agenda.at(at_ns, lambda arriving=arriving: self.arrive(arriving))  # type: ignore[misc]

    def arrive(self, flight: Flight) -> None:
        """It is there, unless its uplink's link has gone or its NAT mapping is forgotten meanwhile."""
        if flight.up:
            self.to_gateway(flight)
            return
        if flight.uplink is not None:
            path = self.uplinks[flight.uplink]
            if path.link_up and (path.external == flight.destination or not flight.genuine):
                self.to_client(flight)
