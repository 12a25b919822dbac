"""Duplication: some packets arrive twice."""

import argparse
import sys

from vagrant.traffic.faults.means.medium import hold, params
from vagrant.traffic.faults.means.where import add_where, check, share
from vagrant.traffic.script import Run, main


def arguments(parser: argparse.ArgumentParser) -> None:
    add_where(parser)
    parser.add_argument("--share", type=share, required=True, help="of the packets, 0…1")


def work(run: Run) -> None:
    hold(run, params(duplicate=run.options.share))


if __name__ == "__main__":
    sys.exit(main("fault", "duplicate", __doc__, arguments, work, check))
