"""Reordering: some packets are held back, and later ones overtake them."""

import argparse
import sys

from vagrant.traffic.faults.means.medium import hold, params
from vagrant.traffic.faults.means.where import add_where, check, milliseconds, share
from vagrant.traffic.script import Run, main


def arguments(parser: argparse.ArgumentParser) -> None:
    add_where(parser)
    parser.add_argument("--share", type=share, required=True, help="of the packets, 0…1")
    parser.add_argument(
        "--ms", type=milliseconds, default=5.0, help="how long they are held back (default 5)"
    )


def work(run: Run) -> None:
    hold(run, params(reorder=run.options.share, reorder_ms=run.options.ms))


if __name__ == "__main__":
    sys.exit(main("fault", "reorder", __doc__, arguments, work, check))
