"""MTU: larger packets vanish without a word, or, with --answer, with the ICMP error that says how large they may be.

Answered, it is the kernel's own path: a routing table with that MTU for what passes the device; what was dropped is
counted by the errors then.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from vagrant.traffic.faults.means import kernel, ledger
from vagrant.traffic.faults.means.nft import Table, chain, through
from vagrant.traffic.faults.means.where import add_where, check_device, directions
from vagrant.traffic.script import Run, main

TOO_BIG = ("icmp type destination-unreachable icmp code frag-needed", "icmpv6 type packet-too-big")
#: Routing tables of scripts are numbered from here on; rules come before the main table's.
_TABLES, _PREFERENCE = 1 << 24, 900


def arguments(parser: argparse.ArgumentParser) -> None:
    add_where(parser)
    parser.add_argument(
        "--bytes", type=_mtu, required=True, help="the largest IP packet that passes, 68…65535"
    )
    parser.add_argument(
        "--answer", action="store_true", help="send ICMP errors, as a router shall (RFC 1191, RFC 8201)"
    )


def work(run: Run) -> None:
    options = run.options
    device, ways = options.device, directions(options)
    with Table([f"{way}_dropped" for way in ways]) as table, contextlib.ExitStack() as stack:
        if options.answer:
            stack.enter_context(narrow_routes(device, ways, options.bytes))
            leaving = {"up": f'oifname "{device}"', "down": f'oifname != "{device}"'}
            answers = [
                f"{leaving[way]} {kind} counter name {way}_dropped" for way in ways for kind in TOO_BIG
            ]
            table.load([chain("output", answers)])
        else:
            big = f"meta length > {options.bytes}"
            table.load(
                [
                    chain(
                        "forward",
                        [f"{through(device, way)} {big} counter name {way}_dropped drop" for way in ways],
                    )
                ]
            )
        run.refresh = lambda: run.show(table.counters())
        run.in_force()
        run.wait()
        run.refresh()


@contextlib.contextmanager
def narrow_routes(device: str, ways: tuple[str, ...], mtu: int) -> Iterator[None]:
    """What comes in by *device* (up) or goes out by it (down) takes the same routes, each with this MTU."""
    number = str(_TABLES + os.getpid())
    for family, version in (("-4", 4), ("-6", 6)):
        ledger.will_undo(["ip", family, "route", "flush", "table", number])
        selectors = [["iif", device]] if "up" in ways else []
        if "down" in ways:
            selectors += [["to", str(one)] for one in kernel.networks(device) if one.version == version]
        for route in kernel.shown(["ip", family, "-json", "route", "show", "table", "main"]):
            if route.get("type", "unicast") == "unicast" and not route["dst"].startswith("fe80"):
                kernel.run(["ip", family, "route", "add", *narrowed(route, mtu), "table", number])
        for selector in selectors:
            rule = [*selector, "lookup", number, "preference", str(_PREFERENCE)]
            ledger.will_undo(["ip", family, "rule", "del", *rule])
            kernel.run(["ip", family, "rule", "add", *rule])
    yield


def narrowed(route: dict[str, Any], mtu: int) -> list[str]:
    """A route of `ip -json route` as arguments of `ip route add`, with *mtu* that no ICMP error changes."""
    via = ["via", route["gateway"]] if "gateway" in route else []
    return [
        route["dst"],
        *via,
        "dev",
        route["dev"],
        "metric",
        str(route.get("metric", 0)),
        "mtu",
        "lock",
        str(mtu),
    ]


def _mtu(text: str) -> int:
    value = int(text)
    if not 68 <= value <= 65_535:
        raise argparse.ArgumentTypeError(f"an MTU lies in 68…65535, not {text}")
    return value


if __name__ == "__main__":
    sys.exit(main("fault", "mtu", __doc__, arguments, work, check_device))
