"""The dead-path rule: what a run of unanswered probes means, and when the next of them goes.

A run is the times at which probes were sent after the last answered one, oldest first. All of it may be loss: a path
that loses 30 % each way leaves half of its probes unanswered. So the first one that is overdue is only a doubt, and in
doubt probes go many times as often: more of them can be missing within the same time. `Bar` says from which
missing one on there is a doubt, and how many have to be missing for a verdict:

- k, the smallest number with p^k < 10^-6 for the measured round-trip loss p, from 3 to 24; where p is so large that one
  missing is no doubt, at least 14, since what has been measured of a loss that begins is less than it is, and
- every probe that went within three intervals of the oldest, up to 14: nothing says that a path loses before something
  was answered. Only those within two intervals where a steady incoming stream has stopped too: that is hardly loss.

Each has to have waited longer than an answer may take, since on a path longer than the interval several are always
under way, and the oldest three intervals. So a path that loses nothing is found dead within four and a quarter
intervals and one round trip.

Pure: times are integer nanoseconds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from jvpn.policy.estimators import MS
from jvpn.policy.model import Policy

MIN_K: Final = 3
MAX_K: Final = 24
FALSE_VERDICT: Final = 1e-6
#: So many in doubt are as good as certain, whatever has not been measured of the loss.
CERTAIN: Final = 14
#: Missing probes of which the loss that is known explains no more than this share are a doubt.
DOUBTFUL: Final = 0.05
MAX_UNDOUBTED: Final = 6
#: Of the round trip, that an answer may be late before it is doubted; RFC 6298 has 4 for a verdict.
HASTY_VARIATIONS: Final = 2


@dataclass(frozen=True, slots=True)
class Bar:
    """`needed`: unanswered probes for a verdict; `doubted`: overdue ones for a doubt."""

    needed: int = MIN_K
    doubted: int = 1


class DeadPathRule:
    """The numbers of the rule, from a policy."""

    def __init__(self, policy: Policy) -> None:
        self.interval_ns: Final = policy.probe_interval_ms * MS
        #: Between probes in doubt, at most and at least.
        self.spacing_ns: Final = self.interval_ns // 8
        self.closest_ns: Final = self.interval_ns // 32
        self.least_wait_ns: Final = 3 * self.interval_ns
        self.stopped_wait_ns: Final = 2 * self.interval_ns
        #: RFC 6298's clock granularity G: jitter too small to show in rttvar.
        self.granularity_ns: Final = self.interval_ns // 4
        #: The same for a doubt, which costs nothing but probes.
        self.hasty_ns: Final = self.interval_ns // 8

    @staticmethod
    def unanswered_needed(loss: float) -> int:
        """k: the smallest with loss^k < 10^-6, from 3 to 24."""
        return _missing(loss, FALSE_VERDICT, MIN_K, MAX_K)

    @classmethod
    def bar(cls, loss: float) -> Bar:
        """Of a path that loses so much. Where it takes two to be a doubt, no few probes are certain: loss grows."""
        doubted = _missing(loss, DOUBTFUL, 1, MAX_UNDOUBTED)
        return Bar(max(cls.unanswered_needed(loss), CERTAIN if doubted > 1 else 0), doubted)

    def counted(self, run: Sequence[int], bar: Bar, *, stopped: bool = False) -> int:
        """How many of `run`, which is not empty, have to be missing; `stopped`: so has a steady stream."""
        until_ns = run[0] + (self.stopped_wait_ns if stopped else self.least_wait_ns)
        return max(bar.needed, sum(1 for sent_ns in islice(run, CERTAIN) if sent_ns <= until_ns))

    def verdict_ns(
        self,
        run: Sequence[int],
        bar: Bar,
        patience_ns: int,
        *,
        queued: Callable[[int], int] = lambda sent_ns: 0,
        stopped: bool = False,
    ) -> int | None:
        """When the path is dead if nothing of `run` is answered; None: not yet. `queued`: how much longer a probe
        sent then may wait."""
        if not run or len(run) < bar.needed:
            return None
        last_ns = run[self.counted(run, bar, stopped=stopped) - 1]
        least_ns = run[0] + self.least_wait_ns + queued(run[0])
        return max(least_ns, last_ns + patience_ns + queued(last_ns))

    def foretold(self, loss: float, patience_ns: int, hasty_ns: int) -> tuple[int, int]:
        """How many probes of a path that dies while traffic flows go unanswered, and for how long the first of them
        has then been."""
        bar, run = self.bar(loss), [0]
        while True:
            verdict_ns = self.verdict_ns(run, bar, patience_ns)
            regular_ns, again_ns = run[-1] + self.interval_ns, self.asks_again_ns(run, bar, hasty_ns)
            next_ns = regular_ns if again_ns is None else min(regular_ns, again_ns)
            if verdict_ns is not None and next_ns >= verdict_ns:
                return self.counted(run, bar), verdict_ns
            run.append(next_ns)

    def doubt_at_ns(self, run: Sequence[int], bar: Bar, hasty_ns: int) -> int | None:
        """From when on there is a doubt; `hasty_ns`: how long an answer takes, jitter aside. None without one."""
        return run[bar.doubted - 1] + hasty_ns if len(run) >= bar.doubted else None

    def asks_again_ns(self, run: Sequence[int], bar: Bar, hasty_ns: int) -> int | None:
        """When the next probe goes for the sake of a doubt: no more of them than a verdict needs. None: not at all."""
        doubt_ns = self.doubt_at_ns(run, bar, hasty_ns)
        if doubt_ns is None:
            return None
        room_ns = (run[0] + self.least_wait_ns - doubt_ns) // CERTAIN
        spacing_ns = min(self.spacing_ns, max(self.closest_ns, room_ns))
        next_ns = max(doubt_ns, run[-1] + spacing_ns)
        early = len(run) < CERTAIN and next_ns <= run[0] + self.least_wait_ns
        return next_ns if early or len(run) < bar.needed else None


def _missing(loss: float, below: float, least: int, most: int) -> int:
    """The smallest n with loss^n < `below`, from `least` to `most`."""
    if loss <= 0.0:
        return least
    if loss >= 1.0:
        return most
    # One more than the quotient's floor, because the power must be below, not equal.
    return min(most, max(least, math.floor(math.log(below) / math.log(loss) + 1e-9) + 1))
