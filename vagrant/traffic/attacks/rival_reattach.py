"""Two clients' worth of reattach at once: when the client asks for its session, somebody who holds its keys does the
same under the same attempt, with a valid challenge for the router's address. Needs a key log.

The rival comes after the client, or before it by --late (nft holds the client's own back in the router). It asks the
same node on an index of its own. With --owner it asks --gateway, which is another node of the fleet than the client
asks: there it needs a ticket, so it takes the one of the client's REQUEST, with its index.

Must hold while it runs: one of them is bound, and all who asked are told which index that is, or which node has the
session; there is one binding at a time, one owner, and in the end it is the client's again, of the same session.
"""

import argparse
import sys
import time
from dataclasses import replace
from typing import Final

from jvpn.protocol.constants import PacketType
from jvpn.protocol.reattach import NO_CHALLENGE, Result
from vagrant.traffic import jvp
from vagrant.traffic.attacks.means import options
from vagrant.traffic.attacks.means.holding import Holding
from vagrant.traffic.attacks.means.insider import AGAIN_S, Insider, Wish, joining, opening
from vagrant.traffic.attacks.means.place import LOOK_S, Place
from vagrant.traffic.plaintexts import JVPAck, JVPRequest
from vagrant.traffic.script import Failed, Run, main

ASKING: Final = [PacketType.REATTACH_REQUEST]


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser, rate=None)
    options.add_keylog(parser, required=True)
    options.add_owner(parser)
    parser.add_argument(
        "--late",
        type=options.late,
        default=0.0,
        metavar="SECONDS",
        help="how much sooner than the client, up to 60 (default 0)",
    )


def work(run: Run) -> None:
    jvp.use_keylog(options.keylog(run.options))
    # What it was not told at all is told of, too.
    run.counters.update(won=0, lost=0, bound=0, NOT_OWNER=0)
    with Place(run) as place:
        run.in_force()
        rival, challenge = None, NO_CHALLENGE
        if run.options.owner is None:
            rival = joining(place, PacketType.PATH, PacketType.DATA)
            if rival is None:
                return
            pending = rival.asks(Wish(attempt=1))
            if pending is None:
                return
            if not isinstance(pending, JVPAck):
                raise Failed(
                    "the gateway refuses an attempt that nobody has made: begin before the session has moved"
                )
            challenge = bytes(pending.challenge)
        with Holding(place, ASKING, run.options.late) as holding:
            race(place, holding, rival, challenge)


def race(place: Place, holding: Holding, rival: Insider | None, challenge: bytes) -> None:
    """Ask under the client's attempt when it does, until there is an answer that stays; then watch until the end.

    Without a rival it becomes one who is like the client in all but the address.
    """
    wish, told, last_s = None, False, 0.0
    while place.run.wait(LOOK_S):
        for seen in holding.passing():
            if wish is None:
                header, layer = opening(place, seen.data)
                request = header[JVPRequest]
                rival = rival or Insider(place, layer.sealing, request.path_index, bytes(layer.ticket))
                wish = Wish(request.attempt, request.state_version, challenge)
        if rival is not None and wish is not None and not told:
            if time.monotonic() - last_s > AGAIN_S:
                rival.say(wish)
                last_s = time.monotonic()
            answer = rival.answer(wish.attempt)
            if isinstance(answer, JVPAck) and answer.result == Result.PENDING:
                wish, last_s = replace(wish, challenge=bytes(answer.challenge)), 0.0
            elif isinstance(answer, JVPAck):
                told = True
                place.run.counters["won" if answer.bound_index == rival.index else "lost"] += 1
            elif answer is not None:
                told = not answer.retry_after_ms
        holding.send_on()


if __name__ == "__main__":
    sys.exit(main("attack", "rival_reattach", __doc__, arguments, work, options.check))
