"""The lab's one topology, whoever makes its machines.

::

    client                                   router                          gateways
    upA 10.201.1.2/24 (.102) ──── rA 10.201.1.1/24 │ w1 10.202.1.1/24 ──── out 10.202.1.2/24 gw1
    upB 10.201.2.2/24 (.102) ──── rB 10.201.2.1/24 │ w2 10.202.2.1/24 ──── out 10.202.2.2/24 gw2
                                  lan 192.0.2.1/24 ┴──────────────── lan 192.0.2.11/24, 192.0.2.12/24

IPv6 likewise: fd00:201:N::2, ::102 and ::1, fd00:202:N::2 and ::1. The second address of an uplink is for NAT to move
to. Addresses are the contract; a machine's devices are known by role ("upA", "rA", "w1", "out", "lan"), whatever the
kernel there calls them. Clients reach every gateway over every uplink, metrics 100, 200.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

UPLINKS: Final = ("A", "B")
GATEWAYS: Final = ("gw1", "gw2")
CLIENT, ROUTER = "client", "router"
PORT: Final = 51820
#: What the gateways' own inner address is, and the host behind a fleet.
GATEWAY_INNER, GATEWAY_INNER6 = "10.8.0.1", "fd00:8::1"
CLIENT_INNER, CLIENT_INNER6 = "10.8.0.2", "fd00:8::2"
HOST_BEHIND: Final = "192.0.2.1"


@dataclass(frozen=True, slots=True)
class UplinkShape:
    """What an uplink is like before anything happens to it: round trip, and in each direction jitter (ms), loss (0…1),
    rate (Mbit/s, 0: no limit) with a queue of *queue_ms*, and the largest IP packet (bytes, 0: the device's)."""

    rtt_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    rate_mbit: float = 0.0
    queue_ms: float = 50.0
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class Topology:
    """Uplinks by name ("A", "B") and how many gateways; *seed* is of whatever the links draw."""

    uplinks: Mapping[str, UplinkShape] = field(default_factory=lambda: {n: UplinkShape() for n in UPLINKS})
    gateways: int = 1
    seed: int = 1

    @property
    def gateway_names(self) -> tuple[str, ...]:
        return GATEWAYS[: self.gateways]

    @property
    def machine_names(self) -> tuple[str, ...]:
        return (CLIENT, ROUTER, *self.gateway_names)


def uplink_number(name: str) -> int:
    """1 for "A", 2 for "B": the N of its addresses."""
    return UPLINKS.index(name) + 1


def gateway_number(name: str) -> int:
    """1 for "gw1"."""
    return GATEWAYS.index(name) + 1


def outer(gateway: str, version: int = 4) -> str:
    """Where clients reach a gateway."""
    number = gateway_number(gateway)
    return f"10.202.{number}.2" if version == 4 else f"fd00:202:{number}::2"


def roles(machine: str, topology: Topology) -> dict[str, str]:
    """The IPv4 address, with its length, by which each device of a machine is known: role → address."""
    gateways = {name: gateway_number(name) for name in topology.gateway_names}
    if machine == CLIENT:
        return {f"up{name}": f"10.201.{uplink_number(name)}.2/24" for name in topology.uplinks}
    if machine == ROUTER:
        near = {f"r{name}": f"10.201.{uplink_number(name)}.1/24" for name in topology.uplinks}
        far = {f"w{number}": f"10.202.{number}.1/24" for number in gateways.values()}
        return {**near, **far, "lan": "192.0.2.1/24"}
    number = gateways[machine]
    return {"out": f"10.202.{number}.2/24", "lan": f"192.0.2.{10 + number}/24"}


def further_addresses(machine: str, role: str) -> list[str]:
    """What a device has besides the address that it is known by: `ip addr add` arguments without the device."""
    if role.startswith("up"):
        number = uplink_number(role[2:])
        return [
            f"10.201.{number}.102/24",
            f"fd00:201:{number}::2/64 nodad",
            f"fd00:201:{number}::102/64 nodad preferred_lft 0",
        ]
    if role == "out":
        return [f"fd00:202:{gateway_number(machine)}::2/64 nodad"]
    if role.startswith("r"):
        return [f"fd00:201:{uplink_number(role[1:])}::1/64 nodad"]
    return [f"fd00:202:{role[1:]}::1/64 nodad"] if role.startswith("w") else []


def uplink_routes(uplink: str, device: str, topology: Topology) -> list[str]:
    """A client's routes to all gateways over one uplink: `ip route replace` arguments (with -6 where it is IPv6)."""
    number = uplink_number(uplink)
    metric = 100 * number
    found = []
    for name in topology.gateway_names:
        gateway = gateway_number(name)
        found += [
            f"10.202.{gateway}.0/24 via 10.201.{number}.1 dev {device} metric {metric}",
            f"fd00:202:{gateway}::/64 via fd00:201:{number}::1 dev {device} metric {metric}",
        ]
    return found


def routes(machine: str, topology: Topology, devices: Mapping[str, str]) -> list[str]:
    """All of a machine's routes; *devices*: role → interface name. The router sends what is for clients' inner
    addresses to the first gateway of a fleet, which knows whose they are."""
    if machine == CLIENT:
        return [
            route
            for name in topology.uplinks
            for route in uplink_routes(name, devices[f"up{name}"], topology)
        ]
    if machine == ROUTER:
        return [f"10.8.0.0/24 via 192.0.2.11 dev {devices['lan']}"] if topology.gateways > 1 else []
    number = gateway_number(machine)
    return [
        f"10.201.0.0/16 via 10.202.{number}.1 dev {devices['out']}",
        f"fd00:201::/32 via fd00:202:{number}::1 dev {devices['out']}",
    ]
