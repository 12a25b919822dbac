"""A client that claims a version which its session never had: authentic REATTACH_REQUESTs, from the router's address,
with a valid challenge for it and a state_version that is ahead in the same epoch, or in a later one. Needs a key log.

Must hold while it runs: each is refused, VERSION_CONFLICT in the same epoch (with a SECURITY_EVENT), NOT_OWNER in a
later one; the binding, the version and the client's traffic stay as they are, and the client still moves afterwards.
"""

import argparse
import sys

from jvpn.protocol.constants import PacketType
from vagrant.traffic import jvp
from vagrant.traffic.attacks.means import options
from vagrant.traffic.attacks.means.insider import Wish, joining
from vagrant.traffic.attacks.means.place import Place
from vagrant.traffic.plaintexts import JVPAck
from vagrant.traffic.script import Run, main

#: What is added to the version, which has the epoch in its upper bits.
AHEAD = {"count": 1, "epoch": 1 << 40}


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser, rate=None)
    options.add_keylog(parser, required=True)
    parser.add_argument("--ahead", choices=sorted(AHEAD), default="count", help="of what (default count)")
    parser.add_argument(
        "--attempt", type=options.count, default=1, metavar="N", help="the session's next attempt (default 1)"
    )


def work(run: Run) -> None:
    jvp.use_keylog(options.keylog(run.options))
    with Place(run) as place:
        run.in_force()
        insider = joining(place, PacketType.DATA, PacketType.PATH)
        if insider is None:
            return
        attempt = run.options.attempt
        pending = insider.asks(Wish(attempt))
        if isinstance(pending, JVPAck):
            claimed = pending.state_version + AHEAD[run.options.ahead]
            insider.asks(Wish(attempt, claimed, bytes(pending.challenge)))


if __name__ == "__main__":
    sys.exit(main("attack", "version_claim", __doc__, arguments, work, options.check))
