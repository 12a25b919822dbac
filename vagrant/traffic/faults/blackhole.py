"""Blackhole: the router takes packets and passes none on, in one direction or both; with --period again and again."""

import argparse
import sys

from vagrant.traffic.faults.means.nft import Table, chain, through
from vagrant.traffic.faults.means.where import add_where, check_device, directions, share
from vagrant.traffic.script import Run, main, positive


def arguments(parser: argparse.ArgumentParser) -> None:
    add_where(parser)
    parser.add_argument(
        "--period", type=positive, metavar="SECONDS", help="again and again, so long from one to the next"
    )
    parser.add_argument(
        "--duty",
        type=share,
        default=0.5,
        help="share of the period that is dark, which comes first (default 0.5)",
    )


def work(run: Run) -> None:
    options = run.options
    ways = directions(options)
    hole = chain(
        "forward", [f"{through(options.device, way)} counter name {way}_dropped drop" for way in ways]
    )
    with Table([f"{way}_dropped" for way in ways]) as table:
        table.load([hole])
        run.refresh = lambda: run.show(table.counters())
        run.in_force()
        while run.wait(options.period and options.period * options.duty):
            table.load([])
            if not run.wait(options.period * (1 - options.duty)):
                break
            table.load([hole])
            run.counters["periods"] += 1
        run.refresh()


if __name__ == "__main__":
    sys.exit(main("fault", "blackhole", __doc__, arguments, work, check_device))
