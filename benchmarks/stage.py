"""The lab network as the trials use it: links that come and go with their routes, and neighbours that need no asking.

A link that is lost takes its routes with it at once, as a network manager sees to. Neighbours are entered by hand: in
this lab asking for one takes a round trip of the whole path.
"""

from typing import Any

from jvpn.lab.faults import EmulatedLink
from jvpn.lab.links import Network
from jvpn.lab.namespaces import Namespace


class Stage:
    """A network of uplinks A and B."""

    def __init__(self, network: Network[Any]) -> None:
        self.network = network
        self._up = {link.name: self._lines_up(link) for link in network}
        for link in network:
            near = _mac(network.client, link.client_device)
            for address in (link.client_ip, link.spare_ip):
                network.gateway.ip(_neighbour(address, near, link.gateway_device))
            # Whoever lets the kernel choose its source answers from the address that was asked, on either link.
            net = f"10.201.{link.number}.0/24"
            network.gateway.ip(f"route replace {net} dev {link.gateway_device} src {network.service_ip}")
            network.client.ip(*self._up[link.name])

    def _lines_up(self, link: EmulatedLink) -> list[str]:
        device, service = link.client_device, self.network.service_ip
        return [
            f"link set {device} up",
            _neighbour(link.gateway_ip, _mac(self.network.gateway, link.gateway_device), device),
            f"route replace {service}/32 via {link.gateway_ip} dev {device} metric {100 * link.number}",
        ]

    def links(self, *changes: tuple[EmulatedLink, bool]) -> None:
        """Links come (True) and go, in one step: well within a millisecond of each other."""
        lines: list[str] = []
        for link, up in changes:
            lines += self._up[link.name] if up else [f"link set {link.client_device} down"]
        self.network.client.ip(*lines)


def _mac(namespace: Namespace, device: str) -> str:
    words = namespace.run(["ip", "-o", "link", "show", "dev", device]).stdout.split()
    return words[words.index("link/ether") + 1]


def _neighbour(address: str, mac: str, device: str) -> str:
    return f"neigh replace {address} lladdr {mac} dev {device} nud permanent"
