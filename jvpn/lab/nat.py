"""A NAT in front of the client: the kernel's own, in the client's namespace, so no process notices.

Every UDP flow that leaves by a link gets one chosen source port; ``rebind`` replaces the mapping and forgets all
flows, after which the same socket appears from elsewhere, as when a home router restarts. What arrives without a
mapping is dropped silently, as such routers do.
"""

from __future__ import annotations

import ipaddress
import socket
import struct

from jvpn.lab.faults import Uplink
from jvpn.lab.namespaces import LabError, Namespace

_TABLE = "inet jvpn_lab_nat"
NETLINK_NETFILTER = 12
# NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE; without a tuple it deletes all (nf_conntrack_netlink.c).
_CT_DELETE = 1 << 8 | 2
_NLM_F_REQUEST_ACK = 1 | 4
_NLMSG_ERROR = 2


class Nat:
    """NAT of one client namespace, over any of its links. Methods return when the mapping is in force."""

    def __init__(self, client: Namespace) -> None:
        self._client = client
        self._rules: dict[str, list[str]] = {}

    def enable(self, link: Uplink, *, port: int, address: str | None = None) -> None:
        """Let UDP leaving by *link* come from *port* of *address* (default: the device's own address).

        *address* must exist on the device (``link.spare_ip`` and ``link.spare_ip6`` do). TCP keeps its ports.
        ValueError for a bad port or address.
        """
        if not 1 <= port <= 65_535:
            raise ValueError(f"port must lie in 1…65535, not {port}")
        self._rules[link.client_device] = _rules(link.client_device, port, address)
        self._load()

    def rebind(self, link: Uplink, *, port: int, address: str | None = None) -> None:
        """A new mapping for flows that go on: the same socket appears from *port* (and *address*)."""
        if link.client_device not in self._rules:
            raise LabError(f"no NAT on {link.client_device} yet: call enable() first")
        self.enable(link, port=port, address=address)

    def disable(self, link: Uplink) -> None:
        """No NAT on *link* any more; its flows appear from their own ports."""
        self._rules.pop(link.client_device, None)
        self._load()

    def _load(self) -> None:
        mappings = [rule for rules in self._rules.values() for rule in rules]
        filters = [
            f'iifname "{device}" meta l4proto {{ tcp, udp }} ct state new drop' for device in self._rules
        ]
        lines = [f"table {_TABLE}", f"delete table {_TABLE}"]
        if self._rules:
            lines += [f"table {_TABLE} {{"]
            lines += ["chain out {", "type nat hook postrouting priority srcnat", *mappings, "}"]
            lines += ["chain in {", "type filter hook input priority filter", *filters, "}", "}"]
        self._client.run(["nft", "-f", "-"], input="\n".join(lines) + "\n")
        flush_conntrack(self._client)


def _rules(device: str, port: int, address: str | None) -> list[str]:
    udp = f'oifname "{device}" meta l4proto udp'
    if address is None:
        return [f"{udp} masquerade to :{port}"]
    if ipaddress.ip_address(address).version == 6:
        return [f"{udp} meta nfproto ipv6 snat ip6 to [{address}]:{port}"]
    return [f"{udp} meta nfproto ipv4 snat ip to {address}:{port}"]


def flush_conntrack(namespace: Namespace) -> None:
    """Forget every tracked flow of *namespace*. LabError with the kernel's reason when it refuses."""
    message = struct.pack("=IHHIIBBH", 20, _CT_DELETE, _NLM_F_REQUEST_ACK, 1, 0, socket.AF_UNSPEC, 0, 0)
    with namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
        netlink.settimeout(5.0)
        netlink.send(message)
        reply = netlink.recv(4_096)
    kind, code = struct.unpack_from("=4xH10xi", reply)
    if kind != _NLMSG_ERROR or code != 0:
        raise LabError(f"could not flush connection tracking in {namespace.label}: error {-code}")
