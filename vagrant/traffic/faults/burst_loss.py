"""Burst loss: what is lost is lost together, as over radio (Gilbert–Elliott: E. O. Elliott, "Estimates of Error Rates
for Codes on Burst-Noise Channels", 1963)."""

import argparse
import sys

from vagrant.traffic.faults.means.medium import hold, params
from vagrant.traffic.faults.means.where import add_where, check, share
from vagrant.traffic.script import Run, main, positive


def arguments(parser: argparse.ArgumentParser) -> None:
    add_where(parser)
    parser.add_argument("--share", type=share, required=True, help="of the packets lost in the long run, 0…1")
    parser.add_argument(
        "--frames", type=positive, default=8.0, help="mean length of a burst in packets (default 8)"
    )
    parser.add_argument("--density", type=share, default=1.0, help="share lost inside a burst (default 1)")


def work(run: Run) -> None:
    options = run.options
    hold(
        run,
        params(burst_loss=options.share, burst_frames=options.frames, burst_density=options.density),
    )


if __name__ == "__main__":
    sys.exit(main("fault", "burst_loss", __doc__, arguments, work, check))
