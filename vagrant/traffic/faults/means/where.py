"""Where a fault strikes: the router's interface towards the client, or a link of the emulator."""

from __future__ import annotations

import argparse
import json
import subprocess
from typing import Final

from vagrant.traffic import script
from vagrant.traffic.ours import Refused, guard_device

UP, DOWN = "up", "down"
DIRECTIONS: Final = {UP: (UP,), DOWN: (DOWN,), "both": (UP, DOWN)}
#: What nft's numgen counts up to; more datagrams than one run sends.
MOST_NUMBER: Final = 1 << 31
#: The router's address on an uplink's network, by the link's name.
ROUTER: Final = {"A": "10.201.1.1", "B": "10.201.2.1"}


def add_where(parser: argparse.ArgumentParser, direction: str | None = "both") -> None:
    """--device, --wire, --link and --direction; *direction* is the default, None: it has to be said."""
    group = parser.add_argument_group("where")
    group.add_argument("--device", metavar="DEV", help="the router's interface towards the client")
    group.add_argument(
        "--wire", metavar="SOCKET", help="the control socket of the emulator that carries the frames"
    )
    group.add_argument("--link", metavar="NAME", help="the emulator's name of the link (A, B)")
    group.add_argument(
        "--direction",
        choices=tuple(DIRECTIONS) if direction else (UP, DOWN),
        default=direction,
        required=not direction,
        help="up: from client to gateway" + (f" (default {direction})" if direction else ""),
    )


def directions(options: argparse.Namespace) -> tuple[str, ...]:
    """ "up", "down" or both."""
    return DIRECTIONS[options.direction]


def check(options: argparse.Namespace) -> None:
    """For what emulator or netem do: one of them is named, and the device is the lab's. Raises Refused."""
    _one_place(options)
    if bool(options.wire) != bool(options.link):
        raise Refused("--wire SOCKET and --link NAME go together: which emulator, and which of its links")
    if not options.wire and not options.device:
        raise Refused(
            "say where: --device DEV (the router's, with netem), or --wire SOCKET --link NAME (an emulator's)"
        )
    if options.device:
        guard_device(options.device, options.i_own)


def check_device(options: argparse.Namespace) -> None:
    """For what the router's nft does: the device, which by an emulator's --link is found by its address.

    --wire without effect is no mistake: who knows where a link is says so to all faults alike. Raises Refused.
    """
    _one_place(options)
    if not options.device:
        if options.link not in ROUTER:
            raise Refused(
                f"say where: --device DEV (the router's), or --link with one of {', '.join(ROUTER)}"
            )
        options.device = _device_with(ROUTER[options.link])
    guard_device(options.device, options.i_own)


def _one_place(options: argparse.Namespace) -> None:
    other = "--wire" if options.wire else "--link" if options.link else ""
    if options.device and other:
        raise Refused(
            f"--device {options.device} says where already, and {other} another place: leave one of them out"
        )


def share(text: str) -> float:
    """A share of the packets, 0…1, for argparse."""
    value = script.number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a share lies in 0…1, not {text}")
    return value


def milliseconds(text: str) -> float:
    """0…1 000 000, for argparse."""
    value = script.number(text)
    if not 0 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"milliseconds lie in 0…1000000, not {text}")
    return value


def whole(text: str) -> int:
    """1, 2, 3, … up to what nft counts up to, for argparse."""
    found = script.whole(text, len(str(MOST_NUMBER)))
    if not 0 < found <= MOST_NUMBER:
        raise argparse.ArgumentTypeError(f"a whole number above 0, up to {MOST_NUMBER}, not {text!r}")
    return found


def port_number(text: str) -> int:
    """1…65535, for argparse."""
    found = whole(text)
    if found > 65_535:
        raise argparse.ArgumentTypeError(f"a port lies in 1…65535, not {text}")
    return found


def _device_with(address: str) -> str:
    shown = subprocess.run(["ip", "-json", "address", "show"], capture_output=True, text=True, check=False)
    for link in json.loads(shown.stdout or "[]"):
        if any(row.get("local") == address for row in link.get("addr_info", ())):
            return str(link["ifname"])
    raise Refused(f"no device here has {address}: this runs in the lab's router, or takes --device")
