"""What every traffic script is made of: its arguments, whose network it may touch, its lines, and when it ends.

A script is two functions and a call::

    def arguments(parser): parser.add_argument("--size", type=int, default=100)

    def work(run):
        run.in_force()
        for number in run.turns(count=run.options.count, per_second=run.options.rate):
            ...
            run.counters["sent"] += 1

    if __name__ == "__main__":
        sys.exit(main("attack", "flood", __doc__, arguments, work))

On stdout two JSON lines, when it is in force and when it has ended; on stderr progress, a line a second. It ends with
``work``, after --for, at SIGTERM, SIGINT or SIGHUP, and with --until-eof when its stdin closes: ``wait`` and ``turns``
say so, and ``work`` takes back what it did before it returns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from vagrant.traffic.ours import Refused, address

NS: Final = 1_000_000_000
PROGRESS_NS: Final = NS
#: How often a sender that is behind its pace looks whether it shall end.
LOOK_NS: Final = 5_000_000
FAILED, BAD_ARGUMENTS, NOT_ROOT = 1, 2, 77
#: Of any option in seconds, or so many a second.
LEAST: Final = 1e-9
MOST: Final = 1e9

_ABOUT_THE_RUN: Final = frozenset({"for_s", "seed", "until_eof", "start_on_line", "quiet", "i_own"})
_ENDS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Failed(Exception):
    """What a script could not do: a sentence with what, why and what to do. Exit status 1."""


class Run:
    """One run: its options, its end, what it counts.

    ``counters`` are in the summary and in the progress lines; *refresh*, when set, brings them up to date before each.
    ``seeded``: whether ``options.seed`` decides what happens; who learns that nothing follows it says False.
    """

    def __init__(self, kind: str, name: str, options: argparse.Namespace) -> None:
        self.options = options
        self.counters: Counter[str] = Counter()
        self.refresh: Callable[[], None] | None = None
        self.seeded = True
        self.parameters = {
            key: value
            for key, value in vars(options).items()
            if key not in _ABOUT_THE_RUN and value is not None
        }
        self._kind, self._name = kind, name
        self._over = False
        self._watched: list[int] = []
        self._started_ns = self._shown_ns = time.monotonic_ns()
        self._deadline_ns = self._limit()

    def in_force(self) -> None:
        """Say on stdout that it has begun; --for counts from here."""
        self._started_ns = self._shown_ns = time.monotonic_ns()
        self._deadline_ns = self._limit()
        self._say(
            {
                "in_force": True,
                self._kind: self._name,
                "at_ns": self._started_ns,
                "parameters": self.parameters,
            }
        )

    def wait(self, seconds: float | None = None) -> bool:
        """Let *seconds* go by (None: until the end). False as soon as the script shall end."""
        until_ns = None if seconds is None else time.monotonic_ns() + round(seconds * NS)
        while True:
            now_ns = time.monotonic_ns()
            self._progress(now_ns)
            if self._over or (self._deadline_ns is not None and now_ns >= self._deadline_ns):
                self._over = True
                return False
            ends_ns = [
                at for at in (until_ns, self._deadline_ns, self._shown_ns + PROGRESS_NS) if at is not None
            ]
            self._listen(max(0, min(ends_ns) - now_ns) / NS)
            if until_ns is not None and not self._over and time.monotonic_ns() >= until_ns:
                return True

    def turns(self, *, count: int | None = None, per_second: float | None = None) -> Iterator[int]:
        """0, 1, 2 … at the pace given (None: as fast as it goes), *count* of them or until the script shall end."""
        begun_ns = looked_ns = time.monotonic_ns()
        turn = 0
        while count is None or turn < count:
            now_ns = time.monotonic_ns()
            due_ns = begun_ns + round(turn * NS / per_second) if per_second else now_ns
            if due_ns > now_ns or now_ns - looked_ns >= LOOK_NS or turn == 0:
                if not self.wait(max(0, due_ns - now_ns) / NS):
                    return
                looked_ns = time.monotonic_ns()
            yield turn
            turn += 1

    def show(self, counters: Mapping[str, int]) -> None:
        """Have *counters* as they are now, for who keeps count elsewhere."""
        for key, value in counters.items():
            self.counters[key] = value

    def summary(self) -> None:
        """Say on stdout how it was."""
        self._say(
            {
                self._kind: self._name,
                "parameters": self.parameters,
                "seed": self.options.seed,
                "seeded": self.seeded,
                "started_ns": self._started_ns,
                "ended_ns": time.monotonic_ns(),
                "counters": dict(self.counters),
            }
        )

    @contextlib.contextmanager
    def until_told(self) -> Iterator[None]:
        """Signals and stdin end the run and nothing else: what is taken back is taken back whole."""
        here, there = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        before = {number: signal.signal(number, self._end) for number in _ENDS}
        woken = signal.set_wakeup_fd(there, warn_on_full_buffer=False)
        self._watched = [here, *((sys.stdin.fileno(),) if self.options.until_eof else ())]
        try:
            yield
        finally:
            signal.set_wakeup_fd(woken)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(here)
            os.close(there)

    def _limit(self) -> int | None:
        limit_s = self.options.for_s
        return None if limit_s is None else self._started_ns + round(limit_s * NS)

    def _end(self, *_: object) -> None:
        self._over = True

    def _listen(self, seconds: float) -> None:
        for fd in select.select(self._watched, (), (), seconds)[0]:
            if not os.read(fd, 4_096):
                self._over = True

    def _progress(self, now_ns: int) -> None:
        if now_ns - self._shown_ns < PROGRESS_NS:
            return
        self._shown_ns = now_ns
        if not self.options.quiet:
            if self.refresh:
                self.refresh()
            counts = "".join(f", {key} {value}" for key, value in self.counters.items())
            shown = f"{self._name}: {(now_ns - self._started_ns) / NS:.1f} s{counts}"
            with contextlib.suppress(OSError):  # who started it may have stopped reading
                print(shown, file=sys.stderr, flush=True)

    def _say(self, line: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            print(json.dumps(line, default=str), flush=True)


def main(
    kind: str,
    name: str,
    about: str | None,
    arguments: Callable[[argparse.ArgumentParser], None],
    work: Callable[[Run], None],
    check: Callable[[argparse.Namespace], None] | None = None,
    argv: list[str] | None = None,
) -> int:
    """Run *work* and return the exit status: 0; 1 ``Failed``; 2 bad arguments or ``Refused``; 77 not root.

    *kind* is "fault" or "attack"; *arguments* adds the script's own; *check* may raise
    ``Refused`` before anything is done.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m vagrant.traffic.{kind}s.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments(parser)
    add_common(parser)
    options = parser.parse_args(argv)
    try:
        if check:
            check(options)
        if os.geteuid() != 0:
            print(f"{name}: needs root, for raw sockets and the kernel's queues: try sudo", file=sys.stderr)
            return NOT_ROOT
        if options.start_on_line and not _told_to_begin():
            return 0
        run = Run(kind, name, options)
        with run.until_told():
            work(run)
    except Refused as error:
        print(f"{name}: {error}", file=sys.stderr)
        return BAD_ARGUMENTS
    except Failed as error:
        print(f"{name}: {error}", file=sys.stderr)
        return FAILED
    run.summary()
    return 0


def _told_to_begin() -> bool:
    """False when stdin closes instead. Reads no further than the line's end: what follows is of the run."""
    print(json.dumps({"ready": True}), flush=True)
    while byte := os.read(sys.stdin.fileno(), 1):
        if byte == b"\n":
            return True
    return False


def number(text: str) -> float:
    """Any number, for argparse; not a number (nan) is none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def whole(text: str, digits: int) -> int:
    """Up to so many digits of ASCII as a number; 0 for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= digits else 0


def positive(text: str) -> float:
    """A number above 0, within what nanoseconds and their reciprocals can be counted in, for argparse."""
    value = number(text)
    if not LEAST <= value <= MOST:
        raise argparse.ArgumentTypeError(f"must be above 0, from {LEAST:g} to {MOST:g}, not {text}")
    return value


def add_common(parser: argparse.ArgumentParser) -> None:
    """What every script is told besides its own."""
    group = parser.add_argument_group("the run")
    group.add_argument("--for", dest="for_s", type=positive, metavar="SECONDS", help="end after so long")
    group.add_argument("--seed", type=int, default=1, metavar="N", help="what chance follows (default 1)")
    group.add_argument("--until-eof", action="store_true", help="end when stdin closes")
    group.add_argument(
        "--start-on-line",
        action="store_true",
        help='say {"ready": true} and do nothing before a line on stdin',
    )
    group.add_argument("--quiet", action="store_true", help="no progress on stderr")
    group.add_argument(
        "--i-own", action="append", default=[], type=address, metavar="ADDRESS",
        help="this address is not the lab's and mine to break all the same (again for each)",
    )  # fmt: skip
