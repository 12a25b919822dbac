"""Loss: each packet is lost with the same chance, whatever became of the others."""

import argparse
import sys

from vagrant.traffic.faults.means.medium import hold, params
from vagrant.traffic.faults.means.where import add_where, check, share
from vagrant.traffic.script import Run, main


def arguments(parser: argparse.ArgumentParser) -> None:
    add_where(parser)
    parser.add_argument("--share", type=share, required=True, help="of the packets, 0…1")


def work(run: Run) -> None:
    hold(run, params(loss=run.options.share))


if __name__ == "__main__":
    sys.exit(main("fault", "loss", __doc__, arguments, work, check))
