"""A racer on the path: copies of the client's REATTACH_REQUESTs and probes come first, from the router's address.

The client's own are held back meanwhile (nft drops them in the router, this script sends them on --late later, as they
were), and what the gateway answers the racer is only counted.

Must hold while it runs: the path that can echo its challenge is bound, which is the client's. The genuine datagram is
not taken for a replay of its copy. The racer gets no reply larger than what it sent and never DATA.
"""

import argparse
import sys
from typing import Final

from jvpn.protocol.constants import PacketType
from vagrant.traffic.attacks.means import options
from vagrant.traffic.attacks.means.holding import Holding
from vagrant.traffic.attacks.means.place import Pace, Place, named
from vagrant.traffic.script import Run, main, positive

LOOK_S: Final = 0.001


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser, rate=None)
    parser.add_argument("--types", **options.one_of(PacketType.REATTACH_REQUEST, PacketType.PATH))
    parser.add_argument(
        "--late", type=_late, default=0.005, metavar="SECONDS",
        help="by how much the genuine ones are late (default 0.005)",
    )  # fmt: skip


def _late(text: str) -> float:
    """Above 0: else nothing would be held back."""
    positive(text)
    return options.late(text)


def work(run: Run) -> None:
    with Place(run) as place, Holding(place, run.options.types, run.options.late) as holding:
        pace = Pace(run)
        run.in_force()
        while run.wait(LOOK_S) and not pace.over:
            for seen in holding.passing():
                if pace.go():
                    place.send(seen.data, place.own)
                    run.counters[f"sent_{named(seen.data)}"] += 1
                    run.counters["largest_sent"] = max(run.counters["largest_sent"], len(seen.data))
            holding.send_on()


if __name__ == "__main__":
    sys.exit(main("attack", "relay_race", __doc__, arguments, work, options.check))
