"""Commands of the kernel's tools, in a process group of their own: Ctrl-C does not stop what takes something back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_interface
from typing import Any

from vagrant.traffic.script import Failed

TIMEOUT_S = 30
Network = IPv4Network | IPv6Network


def run(argv: Sequence[str], text: str = "") -> str:
    """What the command says. Raises Failed with its own words when it fails or is not there."""
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, check=False, timeout=TIMEOUT_S, start_new_session=True
        )  # fmt: skip
    except FileNotFoundError as error:
        raise Failed(
            f"{argv[0]} is not installed (Debian: iproute2 has ip and tc, nftables has nft)"
        ) from error
    if done.returncode != 0:
        raise Failed(f"`{' '.join(argv)}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def shown(argv: Sequence[str]) -> Any:
    """What a command says in JSON; an empty list when it says nothing."""
    return json.loads(run(argv) or "[]")


def undo(argv: Sequence[str]) -> None:
    """Take something back; what is not there any more need not be."""
    subprocess.run(argv, capture_output=True, check=False, timeout=TIMEOUT_S, start_new_session=True)


def networks(device: str) -> list[Network]:
    """The networks that *device* has addresses in, without link-local ones."""
    found = []
    for link in shown(["ip", "-json", "address", "show", "dev", device]):
        for row in link.get("addr_info", ()):
            interface = ip_interface(f"{row['local']}/{row['prefixlen']}")
            if not interface.is_link_local:
                found.append(interface.network)
    return found
