"""ICMP filtered: no ICMP or ICMPv6 error passes the router or is sent by it, as many firewalls have it; echo does.

Without "fragmentation needed" and "packet too big" nobody is told how large packets may be (RFC 2923, section 2.1).
"""

import argparse
import sys

from vagrant.traffic.faults.means.nft import Table, chain, through
from vagrant.traffic.faults.means.where import add_where, check_device, directions
from vagrant.traffic.script import Run, main

ERRORS = (
    "icmp type { destination-unreachable, source-quench, redirect, time-exceeded, parameter-problem }",
    "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    add_where(parser)


def work(run: Run) -> None:
    device, ways = run.options.device, directions(run.options)
    # The router's own errors: those about what the client sent leave by the device, the others elsewhere.
    leaving = {"down": f'oifname "{device}"', "up": f'oifname != "{device}"'}
    passing = [
        f"{through(device, way)} {error} counter name {way}_dropped drop" for way in ways for error in ERRORS
    ]
    own = [f"{leaving[way]} {error} counter name {way}_dropped drop" for way in ways for error in ERRORS]
    with Table([f"{way}_dropped" for way in ways]) as table:
        table.load([chain("forward", passing), chain("output", own)])
        run.refresh = lambda: run.show(table.counters())
        run.in_force()
        run.wait()
        run.refresh()


if __name__ == "__main__":
    sys.exit(main("fault", "icmp", __doc__, arguments, work, check_device))
