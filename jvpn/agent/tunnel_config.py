"""Addresses, routes and MTU of the client's TUN. All of it lives on the TUN and goes away with it.

Full tunnel is two halves of each family: more specific than the default route, which stays in place for the outer
packets. Those leave by sockets bound to their device (SO_BINDTODEVICE), and a lookup for a bound socket takes no route
of another device, however specific: fib_table_lookup (net/ipv4/fib_trie.c) passes over next hops of another interface,
find_rr_leaf (net/ipv6/route.c) likewise.
"""

import errno
import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from jvpn.protocol.offload import longest_superpacket

EVERYTHING = ("0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1")
#: Before what DHCP clients (100 and more), the kernel (IPv6: 256, 1 024) and NetworkManager set for the same prefix.
METRIC = 50


@dataclass(frozen=True, slots=True)
class _Wanted:
    addresses: frozenset[str]
    routes: frozenset[str]


class TunnelConfig:
    """`say` is told in a sentence of whatever the kernel refuses; the rest is configured nevertheless."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name = name
        self._say = say
        self._applied = _Wanted(frozenset(), frozenset())
        with IPRoute() as netlink:
            self._index: int = netlink.link_lookup(ifname=name)[0]

    def apply(self, addresses: Sequence[str], routes: Sequence[str], mtu: int) -> None:
        """Make it so; what an earlier call gave and this one does not is taken away."""
        wanted = _Wanted(frozenset(self._valid(addresses)), frozenset(self._valid(routes)))
        before, self._applied = self._applied, wanted
        with IPRoute() as netlink:
            for route in before.routes - wanted.routes:
                self._try(f"route {route}", partial(self._route, netlink, "del", route))
            for address in before.addresses - wanted.addresses:
                self._try(f"address {address}", partial(self._address, netlink, "del", address))
            for address in sorted(wanted.addresses):
                self._try(f"address {address}", partial(self._address, netlink, "replace", address))
            longest = longest_superpacket(mtu)
            change = partial(
                netlink.link, "set", index=self._index, mtu=mtu, gso_max_size=longest, state="up"
            )
            self._try(f"MTU {mtu}", change)
            for route in sorted(wanted.routes):
                self._try(f"route {route}", partial(self._route, netlink, "add", route))

    def _valid(self, prefixes: Sequence[str]) -> list[str]:
        """Those that are prefixes, in canonical form, of a family that this machine has."""
        found = []
        for prefix in prefixes:
            try:
                interface = ipaddress.ip_interface(prefix)
            except ValueError:
                self._say(
                    f"TUN {self._name}: the gateway gave {prefix!r}, which is no prefix; it is left out"
                )
                continue
            if interface.version == 4 or _ipv6_enabled(self._name):
                found.append(str(interface))
        return found

    def _try(self, what: str, change: Callable[[], object]) -> None:
        try:
            change()
        except NetlinkError as error:
            if error.code == errno.EEXIST and not self._foreign(what):
                return
            self._say(f"TUN {self._name}: {what} could not be set: {error.args[-1]}")

    def _foreign(self, what: str) -> bool:
        """Whether a route that exists already goes elsewhere."""
        kind, _, prefix = what.partition(" ")
        if kind != "route":
            return False
        network = ipaddress.ip_interface(prefix).network
        with IPRoute() as netlink:
            for route in netlink.get_routes(family=_family(network.version), dst_len=network.prefixlen):
                same = route.get_attr("RTA_DST") == str(network.network_address)
                if same and route.get_attr("RTA_PRIORITY") == METRIC:
                    return bool(route.get_attr("RTA_OIF") != self._index)
        return True

    def _address(self, netlink: IPRoute, verb: str, address: str) -> None:
        interface = ipaddress.ip_interface(address)
        netlink.addr(
            verb, index=self._index, address=str(interface.ip), prefixlen=interface.network.prefixlen
        )

    def _route(self, netlink: IPRoute, verb: str, prefix: str) -> None:
        network = ipaddress.ip_interface(prefix).network
        netlink.route(
            verb, dst=str(network), oif=self._index, priority=METRIC, family=_family(network.version)
        )


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def _ipv6_enabled(device: str) -> bool:
    path = Path("/proc/sys/net/ipv6/conf") / device / "disable_ipv6"
    return path.exists() and path.read_text().strip() == "0"
