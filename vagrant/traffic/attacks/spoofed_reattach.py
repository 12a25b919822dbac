"""Forged reattach: REATTACH_REQUESTs with a bad proof for the steering id that the wire shows, from the client's own
source and from forged ones by turns.

Must hold while it runs: no state, version or binding changes, no process grows, nothing is answered, and the session
still moves to another path when its own dies.
"""

import argparse
import sys
from typing import Final

from jvpn.protocol.constants import HEADER_SIZE, REATTACH_REQUEST_SIZE, TAG_SIZE, TICKET_SIZE
from vagrant.traffic.attacks.means import options
from vagrant.traffic.attacks.means.learned import flood_on_the_wire, steering_id
from vagrant.traffic.attacks.means.packets import packet
from vagrant.traffic.attacks.means.place import Place, variety
from vagrant.traffic.attacks.means.sources import drawn, forged_sources
from vagrant.traffic.attacks.means.tap import Datagram
from vagrant.traffic.jvp import JVP, JVPReattachRequest
from vagrant.traffic.script import Run, main

#: Different ones; they are sent again and again.
VARIETY: Final = 128
_SEALED: Final = REATTACH_REQUEST_SIZE - HEADER_SIZE - TICKET_SIZE - TAG_SIZE


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser, rate=None)
    options.add_sink(parser)
    options.add_sources(parser)
    parser.add_argument(
        "--source", choices=("own", "forged", "both"), default="both",
        help="where they come from: the client's own source, forged ones, or by turns (default)",
    )  # fmt: skip


def work(run: Run) -> None:
    network = forged_sources(run.options)
    with Place(run, forged=network) as place:

        def requests(shown: Datagram) -> list[bytes]:
            made = []
            for number in range(variety(run, VARIETY)):
                own = run.options.source == "own" or (run.options.source == "both" and number % 2)
                source = shown.source if own else drawn(place.dice, network)
                made.append(packet(source, place.goal, bytes(request(place, shown))))
            return made

        run.in_force()
        flood_on_the_wire(place, requests)


def request(place: Place, shown: Datagram) -> JVP:
    """A REQUEST on the id that was shown, sealed by nobody."""
    octets = place.dice.randbytes
    return JVP(steering_id=steering_id(shown), counter=place.dice.getrandbits(20)) / JVPReattachRequest(
        ticket=octets(TICKET_SIZE), sealed=octets(_SEALED), tag=octets(TAG_SIZE)
    )


if __name__ == "__main__":
    sys.exit(main("attack", "spoofed_reattach", __doc__, arguments, work, options.check))
