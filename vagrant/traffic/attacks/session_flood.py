"""Unknown sessions: well-formed datagrams on steering ids that no session has, from forged sources.

Must hold while it runs: they are dropped before they cost memory or a Diffie-Hellman, answers come to fewer bytes
than were sent, and running sessions keep nine tenths of the throughput that they have when as much goes to a sink.
"""

import argparse
import sys
from typing import Any, Final

from jvpn.protocol.constants import HEADER_SIZE, TAG_SIZE, TICKET_SIZE, PacketType
from vagrant.traffic.attacks.means import options
from vagrant.traffic.attacks.means.place import Place, paced, variety
from vagrant.traffic.attacks.means.sources import forged_sources
from vagrant.traffic.jvp import JVP, LAYERS, SIZES, JVPReattachRequest
from vagrant.traffic.script import Run, main

VARIETY: Final = 128


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser, rate=None)
    options.add_sink(parser)
    options.add_sources(parser)
    kinds = (
        PacketType.DATA,
        PacketType.CONTROL,
        PacketType.PATH,
        PacketType.FRAGMENT,
        PacketType.RESENT,
        PacketType.REATTACH_REQUEST,
    )
    parser.add_argument("--types", **options.one_of(*kinds))


def work(run: Run) -> None:
    network = forged_sources(run.options)
    with Place(run, forged=network) as place:
        pool = place.from_everywhere([bytes(unknown(place)) for _ in range(variety(run, VARIETY))], network)
        run.in_force()
        for size in paced(run):
            place.flood(pool, size)


def unknown(place: Place) -> Any:
    """A datagram of no session."""
    dice = place.dice
    kind = dice.choice(place.run.options.types)
    header = JVP(type=kind, steering_id=dice.randbytes(8), counter=dice.getrandbits(30))
    size = min(dice.randrange(SIZES[kind][0], 1_000), SIZES[kind][-1]) - HEADER_SIZE - TAG_SIZE
    tag = dice.randbytes(TAG_SIZE)
    if kind is PacketType.REATTACH_REQUEST:
        sealed = dice.randbytes(size - TICKET_SIZE)
        return header / JVPReattachRequest(ticket=dice.randbytes(TICKET_SIZE), sealed=sealed, tag=tag)
    return header / LAYERS[kind][0](sealed=dice.randbytes(size), tag=tag)


if __name__ == "__main__":
    sys.exit(main("attack", "session_flood", __doc__, arguments, work, options.check))
