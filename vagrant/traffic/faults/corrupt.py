"""Corruption: in some packets one bit flips.

The emulator spares ARP and Ethernet headers; netem may hit those too, and whatever it hits is lost as well.
"""

import argparse
import sys

from vagrant.traffic.faults.means.medium import hold, params
from vagrant.traffic.faults.means.where import add_where, check, share
from vagrant.traffic.script import Run, main


def arguments(parser: argparse.ArgumentParser) -> None:
    add_where(parser)
    parser.add_argument("--share", type=share, required=True, help="of the packets, 0…1")


def work(run: Run) -> None:
    hold(run, params(corrupt=run.options.share))


if __name__ == "__main__":
    sys.exit(main("fault", "corrupt", __doc__, arguments, work, check))
