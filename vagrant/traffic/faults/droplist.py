"""Droplist: the first, the third, … datagram to or from the gateway's port is dropped, counted for each direction from
the moment that this is in force; as QUIC's network simulator has it."""

import argparse
import sys

from vagrant.traffic.faults.means.nft import Table, chain, through
from vagrant.traffic.faults.means.where import (
    MOST_NUMBER,
    add_where,
    check_device,
    directions,
    port_number,
    whole,
)
from vagrant.traffic.ours import DEFAULT_PORT
from vagrant.traffic.script import Run, main


def arguments(parser: argparse.ArgumentParser) -> None:
    add_where(parser)
    parser.add_argument(
        "--numbers", type=_numbers, required=True, metavar="N,…", help="which, the first is 1"
    )
    parser.add_argument(
        "--port", type=port_number, default=DEFAULT_PORT, help=f"the gateway's (default {DEFAULT_PORT})"
    )


def work(run: Run) -> None:
    options = run.options
    ways = directions(options)
    listed = ", ".join(str(number - 1) for number in options.numbers)
    rules = []
    for way in ways:
        flow = f"{through(options.device, way)} udp {'dport' if way == 'up' else 'sport'} {options.port}"
        rules += [
            f"{flow} counter name {way}_offered",
            f"{flow} numgen inc mod {MOST_NUMBER} {{ {listed} }} counter name {way}_dropped drop",
        ]
    with Table([f"{way}_{what}" for way in ways for what in ("offered", "dropped")]) as table:
        table.load([chain("forward", rules)])
        run.refresh = lambda: run.show(table.counters())
        run.in_force()
        run.wait()
        run.refresh()


def _numbers(text: str) -> list[int]:
    return sorted({whole(number) for number in text.split(",")})


if __name__ == "__main__":
    sys.exit(main("fault", "droplist", __doc__, arguments, work, check_device))
