"""Garbage for a session that exists: datagrams with its steering id, from its own source, whose bodies nobody sealed.

Must hold while it runs: all of it is dropped and counted as not authentic, the session's state, version and binding
stay, and its traffic keeps nine tenths of the throughput that it has when as much goes to a sink beside it.
"""

import argparse
import sys
from typing import Final

from jvpn.protocol.constants import HEADER_SIZE, TAG_SIZE, PacketType
from vagrant.traffic.attacks.means import options
from vagrant.traffic.attacks.means.learned import flood_on_the_wire
from vagrant.traffic.attacks.means.packets import packet
from vagrant.traffic.attacks.means.place import Place, variety
from vagrant.traffic.attacks.means.tap import Datagram
from vagrant.traffic.jvp import JVP, LAYERS, SIZES
from vagrant.traffic.script import Run, main

VARIETY: Final = 128
#: Counters are at most so much ahead of what the client has sent, so that none is too old.
AHEAD: Final = 4_096


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser, rate=None)
    options.add_sink(parser)
    kinds = (PacketType.DATA, PacketType.CONTROL, PacketType.PATH, PacketType.FRAGMENT, PacketType.RESENT)
    parser.add_argument("--types", **options.one_of(*kinds))
    parser.add_argument(
        "--size", type=options.count, metavar="BYTES", help="of each datagram (default: any up to 1400)"
    )


def work(run: Run) -> None:
    with Place(run) as place:

        def garbage(shown: Datagram) -> list[bytes]:
            made = (sealed_by_nobody(place, shown) for _ in range(variety(run, VARIETY)))
            return [packet(shown.source, place.goal, bytes(each)) for each in made]

        run.in_force()
        flood_on_the_wire(place, garbage)


def sealed_by_nobody(place: Place, shown: Datagram) -> JVP:
    """A datagram that looks like the session's next, but for its seal."""
    dice, told = place.dice, place.run.options
    kind = dice.choice(told.types)
    header = JVP(shown.data[:HEADER_SIZE])
    whole = min(max(told.size or dice.randrange(64, 1_400), SIZES[kind][0]), SIZES[kind][-1])
    return JVP(
        type=kind,
        phase=header.phase,
        steering_id=header.steering_id,
        counter=header.counter + dice.randrange(AHEAD),
    ) / LAYERS[kind][0](sealed=dice.randbytes(whole - HEADER_SIZE - TAG_SIZE), tag=dice.randbytes(TAG_SIZE))


if __name__ == "__main__":
    sys.exit(main("attack", "garbage_flood", __doc__, arguments, work, options.check))
