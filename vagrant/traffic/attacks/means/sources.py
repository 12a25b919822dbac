"""Where attacks' datagrams say that they come from, and by which way they go."""

import argparse
import json
import random
import subprocess
from ipaddress import ip_network
from typing import Any, Final

from vagrant.traffic.attacks.means.filters import End, Network
from vagrant.traffic.ours import Refused, addresses_of, guard_network
from vagrant.traffic.script import Failed

_PORTS: Final = range(1_024, 65_536)


def forged_sources(options: argparse.Namespace) -> Network:
    """Where forged sources come from. Raises Refused when the device has no network of the gateway's family, or one in
    which others than the lab live."""
    if options.sources is not None:
        told: Network = options.sources
        return told
    version = options.gateway.address.version
    for address in addresses_of(options.device):
        if address.version == version:
            upper = upper_half(network_of(options.device, str(address)))
            guard_network(upper, options.i_own)
            return upper
    raise Refused(f"{options.device} has no address of the gateway's family: name a network with --sources")


def upper_half(network: Network) -> Network:
    _, upper = network.subnets()
    return upper


def drawn(dice: random.Random, network: Network) -> End:
    """A source in this network."""
    return str(network[dice.randrange(network.num_addresses)]), dice.choice(_PORTS)


def network_of(device: str, address: str) -> Network:
    """The network of an address that `device` has."""
    for link in _asked("address", "show", "dev", device):
        for row in link.get("addr_info", ()):
            if row["local"] == address:
                return ip_network(f"{address}/{row['prefixlen']}", strict=False)
    raise Failed(f"{device} does not have {address} any more: see `ip address show dev {device}`")


def route_to(address: str) -> tuple[str, str]:
    """The device by which `address` is reached, and our address there. Raises Failed when there is no way."""
    (route,) = _asked("route", "get", address) or ({},)
    try:
        return route["dev"], route["prefsrc"]
    except KeyError:
        raise Failed(
            f"there is no way to {address} from here: attacks run on the lab's router (`ip route get {address}`)"
        ) from None


def _asked(*words: str) -> list[dict[str, Any]]:
    shown = subprocess.run(["ip", "-json", *words], capture_output=True, text=True, check=False)
    found: list[dict[str, Any]] = json.loads(shown.stdout) if shown.returncode == 0 and shown.stdout else []
    return found


def next_hop(device: str, address: str) -> str:
    """The link address that frames for `address` go to. Raises Failed when the kernel does not know it."""
    (route,) = _asked("route", "get", address) or ({},)
    via = route.get("gateway", address)
    for row in _asked("neighbour", "show", "dev", device, via):
        if "lladdr" in row:
            return str(row["lladdr"])
    raise Failed(f"no link address is known of {via} on {device}: let something be sent there first")
