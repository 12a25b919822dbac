"""Replays: what client or gateway said is said again, from its own address and from the router's.

Must hold while it runs: nothing of it is delivered, bound or acted upon. Versions, bindings and the client's traffic
are what they were; what is answered goes to the router's address in fewer bytes than it asked with, never as DATA.
"""

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

from jvpn.protocol.constants import PacketType
from vagrant.traffic.attacks.means import captured, options
from vagrant.traffic.attacks.means.captured import Captured
from vagrant.traffic.attacks.means.filters import End
from vagrant.traffic.attacks.means.place import Pace, Place, named
from vagrant.traffic.attacks.means.tap import Datagram
from vagrant.traffic.script import Run, main

#: Copies of what passes that may wait for their time; more are passed over and counted.
WAITING: Final = 10_000


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser, rate=2_000)
    captured.add_arguments(parser)
    parser.add_argument("--types", **options.one_of(*PacketType))
    parser.add_argument(
        "--source", choices=("own", "other", "both"), default="both",
        help="where copies come from: their own address, the router's, or each of them (default)",
    )  # fmt: skip
    parser.add_argument(
        "--copies", type=options.count, default=1, metavar="N", help="of each from each (default 1)"
    )
    parser.add_argument(
        "--delay", type=options.late, default=0.05, metavar="SECONDS", help="after it was seen (default 0.05)"
    )


def work(run: Run) -> None:
    with Place(run) as place:
        passing, pace = Captured(place), Pace(run)
        waiting: deque[tuple[float, Datagram, End]] = deque()
        run.in_force()
        for new in passing:
            now = time.monotonic()
            copies = [(now + run.options.delay, seen, end) for seen in new for end in sources(place, seen)]
            room = len(copies) if passing.ended else WAITING - len(waiting)
            waiting.extend(copies[:room])
            run.counters["passed_over"] += max(0, len(copies) - room)
            while waiting and waiting[0][0] <= now and pace.go():
                _, seen, source = waiting.popleft()
                place.send(seen.data, source, seen.destination)
                run.counters[f"sent_{named(seen.data)}"] += 1
            if pace.over or (passing.ended and not waiting):
                break


def sources(place: Place, seen: Datagram) -> Iterator[End]:
    """Where copies of this one come from; nowhere, if it is of no type that was asked for."""
    told = place.run.options
    if seen.data[0] in told.types:
        for _ in range(told.copies):
            if told.source != "other":
                yield seen.source
            if told.source != "own":
                yield place.own


if __name__ == "__main__":
    sys.exit(main("attack", "replay", __doc__, arguments, work, options.check))
