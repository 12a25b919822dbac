"""Rate: a bottleneck with a queue, whose rate may go in steps; the last one stays until the end."""

import argparse
import sys

from vagrant.traffic.faults.means.medium import chosen, params
from vagrant.traffic.faults.means.where import add_where, check, directions, milliseconds
from vagrant.traffic.script import Run, main, positive


def arguments(parser: argparse.ArgumentParser) -> None:
    add_where(parser)
    parser.add_argument(
        "--steps", type=_steps, required=True, metavar="MBIT,…", help="one rate after the other, Mbit/s"
    )
    parser.add_argument(
        "--every", type=positive, default=2.0, metavar="SECONDS", help="how long a step (default 2)"
    )
    parser.add_argument(
        "--queue-ms",
        type=milliseconds,
        default=50.0,
        help="what the queue holds, at the rate of the step (default 50)",
    )


def work(run: Run) -> None:
    ways = directions(run.options)
    wanted = [params(rate_mbit=mbit, queue_ms=run.options.queue_ms) for mbit in run.options.steps]
    with chosen(run.options) as medium:
        medium.impair(dict.fromkeys(ways, wanted[0]))
        run.refresh = lambda: run.show(medium.counters())
        run.in_force()
        for step in wanted[1:]:
            if not run.wait(run.options.every):
                break
            medium.impair(dict.fromkeys(ways, step))
            run.counters["steps"] += 1
        run.wait()
        run.refresh()


def _steps(text: str) -> list[float]:
    return [positive(step) for step in text.split(",")]


if __name__ == "__main__":
    sys.exit(main("fault", "rate", __doc__, arguments, work, check))
