"""Whose network it is: traffic scripts touch the lab's addresses, and others only when told so in so many words."""

from __future__ import annotations

import argparse
import ipaddress
import json
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: The lab's own: uplinks, the gateways' side, the network behind them, inner addresses; 203.0.113.0/24 and
#: 2001:db8::/32 are documentation's (RFC 5737, RFC 3849) and nobody's.
LAB: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "10.201.0.0/16", "10.202.0.0/16", "192.0.2.0/24", "10.8.0.0/24", "203.0.113.0/24",
        "fd00:201::/32", "fd00:202::/32", "fd00:8::/64", "2001:db8::/32",
    )
)  # fmt: skip
DEFAULT_PORT: Final = 51_820


class Refused(argparse.ArgumentTypeError):
    """An argument that a script does not accept: a sentence with what and why. Exit status 2."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where datagrams go."""

    address: Address
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


def address(text: str) -> Address:
    """*text* as an address. Raises Refused."""
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise Refused(f"{text!r} is not an IP address") from error


def endpoint(text: str) -> Endpoint:
    """ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT. Raises Refused."""
    host, colon, port = text.rpartition(":")
    if text.startswith("[") and not text.endswith("]"):
        host = host.removeprefix("[").removesuffix("]")
    elif text.count(":") != 1:
        host, colon, port = text.removeprefix("[").removesuffix("]"), "", ""
    if colon and not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise Refused(f"{text!r}: the port must lie in 1…65535")
    return Endpoint(address(host), int(port) if colon else DEFAULT_PORT)


def is_ours(address: Address, owned: Collection[Address] = ()) -> bool:
    """Whether scripts may touch *address*: the lab's, or one that --i-own named."""
    return address in owned or any(
        address.version == network.version and address in network for network in LAB
    )


def guard_address(address: Address, owned: Collection[Address] = ()) -> None:
    """Raises Refused when *address* is neither the lab's nor *owned*."""
    if not is_ours(address, owned):
        raise Refused(f"{address} is not one of the lab's addresses{_ADVICE} --i-own {address}")


def guard_network(network: Network, owned: Collection[Address] = ()) -> None:
    """Raises Refused unless all of *network* lies in one of the lab's, or is the one address that is *owned*: of a
    larger network --i-own says nothing."""
    if network.num_addresses == 1:
        guard_address(network.network_address, owned)
    elif not any(network.version == ours.version and network.subnet_of(ours) for ours in LAB):  # type: ignore[arg-type]
        raise Refused(
            f"{network} does not lie in one of the lab's networks ({', '.join(map(str, LAB))}), and others live there: "
            "name a part of one, or a single address that is yours with --i-own"
        )


def guard_device(device: str, owned: Collection[Address] = ()) -> None:
    """Raises Refused when *device* is not here, has no address, or has one that is neither the lab's nor *owned*."""
    found = addresses_of(device)
    if not found:
        raise Refused(
            f"{device} has no address that would tell whose it is: only the lab's devices are touched"
        )
    for one in found:
        if not is_ours(one, owned):
            raise Refused(
                f"{device} has the address {one}, which is not one of the lab's{_ADVICE} --i-own {one}"
            )


def addresses_of(device: str) -> list[Address]:
    """The addresses of *device* in this network namespace, without link-local ones. Raises Refused: no such device."""
    shown = subprocess.run(
        ["ip", "-json", "address", "show", "dev", device], capture_output=True, text=True, check=False
    )
    if shown.returncode != 0:
        raise Refused(
            f"there is no device {device} here ({shown.stderr.strip()}): `ip -br link` shows which there are"
        )
    found = (
        ipaddress.ip_address(row["local"])
        for link in json.loads(shown.stdout)
        for row in link.get("addr_info", ())
    )
    return [one for one in found if not one.is_link_local]


_ADVICE: Final = f" ({', '.join(map(str, LAB))}); if it is yours to break, say so:"
