"""The kernel's connection tracking: forget some flows and no others (ctnetlink, nf_conntrack_netlink.c)."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Sequence
from ipaddress import ip_address, ip_network

from pyroute2 import NFCTSocket
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

from vagrant.traffic.faults.means.kernel import Network
from vagrant.traffic.script import Failed


def forget(clients: Sequence[Network], port: int) -> int:
    """Forget UDP flows between *clients* and *port*, as a NAT that restarts; how many there were. Raises Failed.

    Whichever end it has seen first: tracking that begins in the middle of a flow takes its next packet for the first.
    """
    forgotten = 0
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            with contextlib.closing(NFCTSocket(nfgen_family=family)) as tracking:
                for flow in _flows(tracking, family):
                    client = {flow.dport: flow.saddr, flow.sport: flow.daddr}.get(port)
                    if client is not None and any(ip_address(client) in network for network in clients):
                        with contextlib.suppress(NetlinkError):  # it ended by itself
                            tracking.entry("del", tuple_orig=flow)
                            forgotten += 1
        except (OSError, NetlinkError) as error:
            raise Failed(
                f"cannot ask connection tracking: {error}; has this kernel nf_conntrack_netlink?"
            ) from error
    return forgotten


def command(clients: Sequence[Network], port: int) -> list[str]:
    """``forget`` as a command, for whoever has to take back what a killed script left."""
    return [sys.executable, "-m", __spec__.name, str(port), *map(str, clients)]


def _flows(tracking: NFCTSocket, family: int) -> list[NFCTAttrTuple]:
    """The original direction of every UDP flow of *family*."""
    udp = NFCTAttrTuple(family=family, proto=socket.IPPROTO_UDP)
    found = []
    for message in tracking.dump():
        if message["nfgen_family"] == family and message.get_attr("CTA_TUPLE_ORIG"):
            flow = NFCTAttrTuple.from_netlink(family, message.get_attr("CTA_TUPLE_ORIG"))
            if flow.proto == udp.proto:
                found.append(flow)
    return found


if __name__ == "__main__":
    forget([ip_network(text) for text in sys.argv[2:]], int(sys.argv[1]))
