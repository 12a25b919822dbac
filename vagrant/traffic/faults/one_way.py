"""One-way death: packets go through in one direction and vanish in the other, which --direction names."""

import argparse
import sys

from vagrant.traffic.faults.means.nft import Table, chain, through
from vagrant.traffic.faults.means.where import add_where, check_device
from vagrant.traffic.script import Run, main


def arguments(parser: argparse.ArgumentParser) -> None:
    add_where(parser, None)


def work(run: Run) -> None:
    way = run.options.direction
    with Table([f"{way}_dropped"]) as table:
        table.load(
            [chain("forward", [f"{through(run.options.device, way)} counter name {way}_dropped drop"])]
        )
        run.refresh = lambda: run.show(table.counters())
        run.in_force()
        run.wait()
        run.refresh()


if __name__ == "__main__":
    sys.exit(main("fault", "one_way", __doc__, arguments, work, check_device))
