"""Delay: every packet takes so much longer, in each direction that is asked for."""

import argparse
import sys

from vagrant.traffic.faults.means.medium import hold, params
from vagrant.traffic.faults.means.where import add_where, check, milliseconds
from vagrant.traffic.script import Run, main


def arguments(parser: argparse.ArgumentParser) -> None:
    add_where(parser)
    parser.add_argument("--ms", type=milliseconds, required=True, help="on top of what is, one way")


def work(run: Run) -> None:
    hold(run, params(delay_ms=run.options.ms))


if __name__ == "__main__":
    sys.exit(main("fault", "delay", __doc__, arguments, work, check))
