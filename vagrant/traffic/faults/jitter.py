"""Jitter: packets take between nothing and so much longer, each as chance has it, in their order: as queues do."""

import argparse
import sys

from vagrant.traffic.faults.means.medium import hold, params
from vagrant.traffic.faults.means.where import add_where, check, milliseconds
from vagrant.traffic.script import Run, main


def arguments(parser: argparse.ArgumentParser) -> None:
    add_where(parser)
    parser.add_argument("--ms", type=milliseconds, required=True, help="at most, one way")


def work(run: Run) -> None:
    hold(run, params(jitter_ms=run.options.ms))


if __name__ == "__main__":
    sys.exit(main("fault", "jitter", __doc__, arguments, work, check))
