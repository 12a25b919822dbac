"""What every attack is told, and what it refuses."""

import argparse
import ipaddress
from pathlib import Path
from typing import Any, Final

from jvpn.protocol.constants import PacketType
from vagrant.traffic.attacks.means.filters import Network
from vagrant.traffic.keylog import KeyLog, KeyLogError
from vagrant.traffic.ours import Endpoint, Refused, endpoint, guard_address, guard_device, guard_network
from vagrant.traffic.script import number, positive, whole

#: Seconds by which datagrams can be held back.
LATEST_S: Final = 60.0
#: Of a whole number: what a computer counts up to in a lifetime.
_DIGITS: Final = 18


def add_arguments(parser: argparse.ArgumentParser, *, rate: float | None) -> None:
    """What each attack is told; `rate` is its pace when it is not told one (None: as fast as it goes)."""
    pace = "as fast as it goes" if rate is None else f"{rate:g}"
    parser.add_argument(
        "--device", required=True, metavar="DEV", help="the router's interface towards the client"
    )
    parser.add_argument(
        "--gateway", required=True, type=_endpoint, metavar="ADDR[:PORT]", help="which one to attack"
    )
    parser.add_argument("--count", type=count, metavar="N", help="end after so many datagrams")
    parser.add_argument(
        "--rate", type=positive, default=rate, metavar="N", help=f"datagrams a second (default {pace})"
    )


def add_sources(parser: argparse.ArgumentParser) -> None:
    """For attacks that forge sources."""
    parser.add_argument(
        "--sources", type=_network, metavar="NETWORK",
        help="forged sources come from here (default: the upper half of DEV's network, where nobody lives)",
    )  # fmt: skip


def add_keylog(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """For attacks by who holds the session's keys."""
    parser.add_argument(
        "--keylog",
        type=Path,
        required=required,
        metavar="FILE",
        help="what the client wrote with its --keylog",
    )


def keylog(options: argparse.Namespace) -> KeyLog | None:
    """The key log that was named. Raises Refused when it cannot be read or has no keys."""
    if options.keylog is None:
        return None
    try:
        log = KeyLog.read(options.keylog)
    except (OSError, KeyLogError) as error:
        raise Refused(f"the key log cannot be used: {error}") from None
    if not len(log):
        raise Refused(
            f"{options.keylog} has no keys yet: run it when a session has begun under `jvpn client --keylog`"
        )
    return log


def add_owner(parser: argparse.ArgumentParser) -> None:
    """For attacks on another node of a fleet than the client's."""
    parser.add_argument(
        "--owner",
        type=_endpoint,
        metavar="ADDR[:PORT]",
        help="the node that has the session, when --gateway is another one of its fleet",
    )


def add_sink(parser: argparse.ArgumentParser) -> None:
    """For floods: what a gateway does about one is told from what the flood itself costs by sending it elsewhere."""
    parser.add_argument(
        "--sink",
        type=_endpoint,
        metavar="ADDR:PORT",
        help="send it there, and not to the gateway, to compare",
    )


def check(options: argparse.Namespace) -> None:
    """Raises Refused when a gateway, the device or the forged sources are not the lab's."""
    guard_device(options.device, options.i_own)
    guard_address(options.gateway.address, options.i_own)
    for name in ("owner", "sink"):
        other: Endpoint | None = getattr(options, name, None)
        if other is None:
            continue
        guard_address(other.address, options.i_own)
        if other.address.version != options.gateway.address.version:
            raise Refused(f"--{name} {other} is of another address family than --gateway {options.gateway}")
        if other == options.gateway:
            raise Refused(f"--{name} {other} is --gateway itself: name another one, or leave --{name} out")
    sources: Network | None = getattr(options, "sources", None)
    if sources is not None:
        if sources.version != options.gateway.address.version:
            raise Refused(f"{sources} is of another address family than {options.gateway}")
        guard_network(sources, options.i_own)


def one_of(*kinds: PacketType) -> dict[str, Any]:
    """Arguments of an option that takes some of these types, all unless told otherwise."""
    names = {kind.name: kind for kind in kinds}

    def parse(text: str) -> list[PacketType]:
        words = text.upper().split(",")
        unknown = [word for word in words if word not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(names)}")
        return [names[word] for word in words]

    return {
        "type": parse,
        "default": list(kinds),
        "metavar": "TYPE[,TYPE…]",
        "help": f"of {', '.join(names)} (default: all)",
    }


def _endpoint(text: str) -> Endpoint:
    try:
        return endpoint(text)
    except Refused as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def count(text: str) -> int:
    """For argparse: a whole number above 0."""
    found = whole(text, _DIGITS)
    if found < 1:
        raise argparse.ArgumentTypeError(
            f"must be a whole number, at least 1, of up to {_DIGITS} digits, not {text!r}"
        )
    return found


def late(text: str) -> float:
    """For argparse: 0…60 seconds by which datagrams come later; the session asks again long before."""
    value = number(text)
    if not 0 <= value <= LATEST_S:
        raise argparse.ArgumentTypeError(f"seconds lie in 0…{LATEST_S:g}, not {text}")
    return value
