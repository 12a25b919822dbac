"""Topologies: a client and a gateway joined by one link per uplink, through the emulator or directly.

::

    client                    wan                       gateway
    upA 10.201.1.2/24 ──── cA │ emulator │ gA ──── netA 10.201.1.1/24
    upB 10.201.2.2/24 ──── cB │          │ gB ──── netB 10.201.2.1/24     lo: 203.0.113.1, 2001:db8:113::1

IPv6 likewise: fd00:201:N::2 and ::1. Each upX also has a second address (10.201.N.102, fd00:201:N::102) for NAT to
move to. The client reaches the service address over every uplink, metrics 100, 200, ….

veth is not a NIC. So that native XDP can run on netX: whoever sends into it fills in checksums itself (tx checksum
offload off), GRO of netX is on, and a pfifo holds back bursts that would overflow its ring.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from jvpn.lab.faults import DirectLink, EmulatedLink, Uplink
from jvpn.lab.link_model import LinkParams
from jvpn.lab.namespaces import Lab, Namespace
from jvpn.lab.nat import Nat
from jvpn.lab.wire import Wire

SERVICE_IP = "203.0.113.1"
SERVICE_IP6 = "2001:db8:113::1"
_TCP_BUFFERS = "4096 262144 67108864"

_ROUTER_FREE = {
    "net.ipv6.conf.{}.accept_ra": 0,
    "net.ipv6.conf.{}.accept_dad": 0,
    "net.ipv6.conf.{}.dad_transmits": 0,
    "net.ipv6.conf.{}.router_solicitations": 0,
    "net.ipv6.conf.{}.keep_addr_on_down": 1,
    "net.ipv4.conf.{}.rp_filter": 0,
}

L = TypeVar("L", bound=Uplink)


@dataclass(frozen=True)
class Network(Generic[L]):
    """Namespaces and links of one topology; ``net["A"]`` is the link of uplink A."""

    client: Namespace
    gateway: Namespace
    links: Mapping[str, L]
    nat: Nat
    wan: Namespace | None = None
    wires: Sequence[Wire] = ()
    service_ip: str = field(default=SERVICE_IP)
    service_ip6: str = field(default=SERVICE_IP6)

    def __getitem__(self, name: str) -> L:
        return self.links[name]

    def __iter__(self) -> Iterator[L]:
        return iter(self.links.values())

    def counters(self) -> dict[str, dict[str, int]]:
        """The emulator's counters by "LINK/DIRECTION"; empty without emulator."""
        return {name: counts for wire in self.wires for name, counts in wire.counters().items()}


def two_uplinks(
    lab: Lab, *, rtt_ms: float = 0.0, seed: int | str = 1, native_xdp: bool = True
) -> Network[EmulatedLink]:
    """Uplinks A and B, each with half of *rtt_ms* per direction."""
    return uplinks(lab, ("A", "B"), rtt_ms=rtt_ms, seed=seed, native_xdp=native_xdp)


def uplinks(
    lab: Lab,
    names: Sequence[str],
    *,
    rtt_ms: float = 0.0,
    seed: int | str = 1,
    native_xdp: bool = True,
) -> Network[EmulatedLink]:
    """Any number of uplinks, each through an emulator process of its own, so that a flood on one delays no other.

    *native_xdp* prepares netX as the module text says; without it superpackets reach the gateway whole.
    """
    client, gateway, wan = end(lab, "client"), _gateway(lab), quiet_namespace(lab, "wan")
    # Interfaces of the same index on both ends would have their carrier changes reported up to 1 s late
    # (linkwatch_urgent_event in net/core/link_watch.c), hence the explicit indices.
    wan.ip(
        *(
            f"link add c{name} index {100 + n} type veth peer name up{name} index {200 + n} netns {client.name}"
            for n, name in enumerate(names, 1)
        ),
        *(
            f"link add g{name} index {300 + n} type veth peer name net{name} index {400 + n} netns {gateway.name}"
            for n, name in enumerate(names, 1)
        ),
    )
    carry_as_is(wan, (f"{side}{name}" for name in names for side in "cg"))
    wires = {name: Wire(wan, [(name, f"c{name}", f"g{name}")], seed, n) for n, name in enumerate(names)}
    base = LinkParams(delay_ms=rtt_ms / 2)
    links = {
        name: EmulatedLink(name, n, client, gateway, f"c{name}", wan, wires[name], base)
        for n, name in enumerate(names, 1)
    }
    for link in links.values():
        link.address()
        link.heal()
        if native_xdp:
            prepare_for_xdp(link.gateway, link.gateway_device, wan, f"g{link.name}")
    return Network(client, gateway, links, Nat(client), wan, tuple(wires.values()))


def direct_links(lab: Lab, names: Sequence[str] = ("A",), *, native_xdp: bool = False) -> Network[DirectLink]:
    """The same addresses on plain veth pairs client↔gateway: no delay, no emulator."""
    client, gateway = end(lab, "client"), _gateway(lab)
    client.ip(
        *(
            f"link add up{name} index {200 + n} type veth peer name net{name} index {400 + n} netns {gateway.name}"
            for n, name in enumerate(names, 1)
        )
    )
    links = {
        name: DirectLink(name, n, client, gateway, f"net{name}", gateway) for n, name in enumerate(names, 1)
    }
    for link in links.values():
        link.address()
        if native_xdp:
            prepare_for_xdp(link.gateway, link.gateway_device, client, link.client_device)
    return Network(client, gateway, links, Nat(client))


def quiet_namespace(lab: Lab, label: str) -> Namespace:
    """One whose kernel sends nothing of its own accord, and takes what comes from anywhere."""
    namespace = lab.namespace(label)
    namespace.sysctl(
        {key.format(scope): v for scope in ("all", "default") for key, v in _ROUTER_FREE.items()}
    )
    return namespace


def end(lab: Lab, label: str) -> Namespace:
    """One in which connections end."""
    namespace = quiet_namespace(lab, label)
    # 3 Gbit/s over 20 ms are 7.5 MB in flight: above the usual limits.
    namespace.sysctl({"net.ipv4.tcp_rmem": _TCP_BUFFERS, "net.ipv4.tcp_wmem": _TCP_BUFFERS})
    return namespace


def _gateway(lab: Lab) -> Namespace:
    gateway = end(lab, "gateway")
    gateway.ip(f"addr add {SERVICE_IP}/32 dev lo", f"addr add {SERVICE_IP6}/128 dev lo nodad")
    return gateway


def prepare_for_xdp(receiver: Namespace, device: str, sender: Namespace, sender_device: str) -> None:
    """Let native XDP run on a veth *device*, as the module text says."""
    sender.run(["ethtool", "-K", sender_device, "tx", "off"])
    sender.run(["tc", "qdisc", "replace", "dev", sender_device, "root", "pfifo", "limit", "20000"])
    receiver.run(["ethtool", "-K", device, "gro", "on"])


def carry_as_is(wan: Namespace, devices: Iterable[str]) -> None:
    """Set up the two ends that an emulator joins: a wire sends nothing of its own, so no IPv6 there."""
    for device in devices:
        wan.sysctl({f"net.ipv6.conf.{device}.disable_ipv6": 1})
        wan.ip(f"link set {device} up")
