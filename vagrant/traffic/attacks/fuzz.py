"""Mutation fuzzing: what client or gateway said, of every type, with bits flipped, cut, longer or with a field changed.

With --keylog fields of what is sealed are changed too, and what comes of it is authentic: an insider's datagrams.

Must hold while it runs: no process dies or grows, and every datagram is dropped and counted. Without a key log nothing
else happens at all; with one the session may do what its owner asked for, and nobody else's does anything.
"""

import argparse
import sys
from typing import Final

from vagrant.traffic import jvp
from vagrant.traffic.attacks.means import captured, options
from vagrant.traffic.attacks.means.captured import Captured
from vagrant.traffic.attacks.means.mutation import KINDS, mutated
from vagrant.traffic.attacks.means.place import Pace, Place, named
from vagrant.traffic.attacks.means.tap import Datagram
from vagrant.traffic.script import Run, main

#: Of each type so many are kept to be spoilt again: the rare ones are as likely as the frequent ones.
KEPT: Final = 64


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser, rate=500)
    captured.add_arguments(parser)
    options.add_keylog(parser)
    parser.add_argument(
        "--kinds", type=_kinds, default=sorted(KINDS), metavar="KIND[,KIND…]",
        help=f"of {', '.join(sorted(KINDS))} (default: all)",
    )  # fmt: skip


def work(run: Run) -> None:
    jvp.use_keylog(options.keylog(run.options))
    with Place(run) as place:
        passing, pace = Captured(place), Pace(run)
        known: dict[int, list[Datagram]] = {}
        run.in_force()
        for new in passing:
            for seen in new:
                of_type = known.setdefault(seen.data[0], [])
                of_type.append(seen)
                del of_type[:-KEPT]
            while known and pace.go():
                one(place, known)
            if pace.over:
                break


def one(place: Place, known: dict[int, list[Datagram]]) -> None:
    """Spoil one of what is known and send it, as who sent it or from the router's address."""
    run, dice = place.run, place.dice
    seen = dice.choice(known[dice.choice(sorted(known))])
    how, data = mutated(dice, seen.data, dice.choice(run.options.kinds))
    place.send(data, dice.choice((seen.source, place.own)), seen.destination)
    run.counters[f"sent_{named(seen.data)}"] += 1
    run.counters[how] += 1


def _kinds(text: str) -> list[str]:
    words = text.split(",")
    unknown = [word for word in words if word not in KINDS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(sorted(KINDS))}")
    return words


if __name__ == "__main__":
    sys.exit(main("attack", "fuzz", __doc__, arguments, work, options.check))
