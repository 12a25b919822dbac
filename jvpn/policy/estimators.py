"""What is measured of a path, each estimator alone: round trip, loss by probes, loss by counters, spacing of a stream.

Sans-I/O: all times are integer nanoseconds of one monotonic clock, given by the caller and never going back.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MS: Final = 1_000_000
SECOND: Final = 1_000 * MS

#: RFC 6298 section 2.1: before the first sample a round trip may take a second.
UNMEASURED_ROUND_TRIP_NS: Final = SECOND
#: Fewer samples than these are no measure of loss in a window: nothing is decided by a packet or two.
MIN_PROBES: Final = 8
MIN_COUNTED: Final = 50
#: Enough to say that loss has begun, and must not be taken for a death.
MIN_LATEST: Final = 10

_GENERATION_SHIFT: Final = 48
_MAX_SAMPLES: Final = 1_024


def patience_ns(srtt_ns: int, rttvar_ns: int, granularity_ns: int, variations: int = 4) -> int:
    """How long an answer may take: srtt + max(granularity, 4·rttvar), RFC 6298 section 2.3."""
    return srtt_ns + max(granularity_ns, variations * rttvar_ns)


class SmoothedRoundTrip:
    """RFC 6298 section 2, with gains 1/8 and 1/4. `srtt_ns` None: nothing has been measured."""

    __slots__ = ("rttvar_ns", "srtt_ns")

    def __init__(self) -> None:
        self.srtt_ns: int | None = None
        self.rttvar_ns = 0

    def smooth(self, rtt_ns: int) -> None:
        """One more is measured."""
        if self.srtt_ns is None:
            self.srtt_ns = rtt_ns
            self.rttvar_ns = rtt_ns // 2
        else:
            self.rttvar_ns += (abs(self.srtt_ns - rtt_ns) - self.rttvar_ns) // 4
            self.srtt_ns += (rtt_ns - self.srtt_ns) // 8

    def patience_ns(self, granularity_ns: int, variations: int = 4) -> int:
        """How long an answer may take, measured or not yet."""
        if self.srtt_ns is None:
            return UNMEASURED_ROUND_TRIP_NS
        return patience_ns(self.srtt_ns, self.rttvar_ns, granularity_ns, variations)


class RoundTrip(SmoothedRoundTrip):
    """Smoothed round trip, and the samples of a sliding window."""

    __slots__ = ("_samples", "_since_ns", "_window_ns")

    def __init__(self, window_ns: int) -> None:
        super().__init__()
        self._window_ns = window_ns
        self._samples: deque[tuple[int, int]] = deque(maxlen=_MAX_SAMPLES)
        self._since_ns = 0

    def begin(self, now_ns: int) -> None:
        """What was asked before now says nothing of the window any more; the smoothed values stay."""
        self._samples.clear()
        self._since_ns = now_ns

    def over(self, window_ns: int) -> None:
        """Another window, from now on."""
        self._window_ns = window_ns

    def sample(self, rtt_ns: int, now_ns: int, *, overtaken: bool = False) -> None:
        """`overtaken`: something sent later was answered before. Then only the window takes it, as RFC 7323 section 4.1
        smooths nothing but what newly acknowledges: one answer held back for seconds would have every verdict wait."""
        if self.srtt_ns is None or not overtaken:
            self.smooth(rtt_ns)
        if now_ns - rtt_ns >= self._since_ns:
            self._samples.append((now_ns, rtt_ns))

    def window(self, now_ns: int) -> list[int]:
        """Samples no older than the window, sorted."""
        while self._samples and self._samples[0][0] < now_ns - self._window_ns:
            self._samples.popleft()
        return sorted(rtt for _, rtt in self._samples)


def percentile(ordered: Sequence[int], share: float) -> int:
    """Nearest rank, but never the single worst of several: one late packet is no percentile.

    `ordered` is sorted and not empty, 0 < share ≤ 1.
    """
    rank = math.ceil(share * len(ordered))
    return ordered[min(rank, max(len(ordered) - 1, 1)) - 1]


@dataclass(slots=True)
class _Probe:
    sent_ns: int
    answered: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """`lost` of `total`."""

    lost: int
    total: int

    @property
    def ratio(self) -> float:
        return self.lost / self.total if self.total else 0.0


class Probes:
    """Probes in the order they went out, what became of them, and the run since the last answered one."""

    def __init__(self, memory_ns: int) -> None:
        self._memory_ns = memory_ns
        self._all: deque[_Probe] = deque(maxlen=_MAX_SAMPLES)
        self._outstanding: dict[int, _Probe] = {}
        self.run: deque[int] = deque(maxlen=_MAX_SAMPLES)
        self.last_sent_ns: int | None = None
        self.last_answered_sent_ns: int | None = None
        self.last_answer_ns: int | None = None

    def over(self, memory_ns: int) -> None:
        """Another memory, from now on."""
        self._memory_ns = memory_ns

    def sent(self, probe_id: int, now_ns: int) -> None:
        probe = _Probe(now_ns)
        self._all.append(probe)
        self._outstanding[probe_id] = probe
        self.run.append(now_ns)
        self.last_sent_ns = now_ns
        self._forget(now_ns)

    def acked(self, probe_id: int, now_ns: int) -> int | None:
        """The round trip in nanoseconds; None for a probe that is not outstanding (unknown, answered, too old)."""
        probe = self._outstanding.pop(probe_id, None)
        if probe is None:
            return None
        probe.answered = True
        self.proved(probe.sent_ns, now_ns)
        self._forget(now_ns)
        return now_ns - probe.sent_ns

    def proved(self, sent_ns: int, now_ns: int) -> None:
        """Something sent at `sent_ns` was answered: the run starts after it."""
        self.last_answer_ns = now_ns
        self.last_answered_sent_ns = max(sent_ns, self.last_answered_sent_ns or sent_ns)
        while self.run and self.run[0] <= self.last_answered_sent_ns:
            self.run.popleft()

    def unsay(self) -> None:
        """No answer is expected any more, and none that is missing means anything."""
        self._all = deque((probe for probe in self._all if probe.answered), maxlen=_MAX_SAMPLES)
        self._outstanding.clear()
        self.run.clear()

    @property
    def outstanding(self) -> int:
        return len(self._outstanding)

    def overdue(self, patience_ns: int, now_ns: int) -> int:
        """How many of the run have waited longer than an answer may take."""
        return sum(1 for sent_ns in self.run if now_ns - sent_ns >= patience_ns)

    def latest_ns(self, count: int) -> int:
        """When the `count`-th newest probe was sent; 0 if there are fewer."""
        return self._all[-count].sent_ns if len(self._all) >= count else 0

    def lost(self, since_ns: int, overdue_before_ns: int, apart_ns: int = 0) -> Share:
        """Of the probes sent at or after `since_ns`: unanswered ones sent before `overdue_before_ns` are lost.

        `apart_ns`: of those that went closer together only one counts, or the doubt that made them go weighs more.
        """
        lost = total = next_ns = 0
        for probe in self._all:
            if probe.sent_ns < max(since_ns, next_ns):
                continue
            next_ns = probe.sent_ns + apart_ns
            if probe.answered or probe.sent_ns < overdue_before_ns:
                total += 1
                lost += not probe.answered
        return Share(lost, total)

    def _forget(self, now_ns: int) -> None:
        while self._all and self._all[0].sent_ns < now_ns - self._memory_ns:
            self._all.popleft()
        while self._outstanding:
            probe_id, oldest = next(iter(self._outstanding.items()))
            if oldest.sent_ns >= now_ns - self._memory_ns and len(self._outstanding) <= _MAX_SAMPLES:
                return
            del self._outstanding[probe_id]


class CounterLoss:
    """Loss in one direction from cumulative counters: the highest counter sent and how many arrived, over a window.

    A counter is generation (16 bit) ‖ sequence (48); a new generation starts anew, since the gap is no loss.
    """

    def __init__(self, window_ns: int) -> None:
        self._window_ns = window_ns
        self._points: deque[tuple[int, int, int]] = deque(maxlen=_MAX_SAMPLES)

    def over(self, window_ns: int) -> None:
        """Another window, from now on."""
        self._window_ns = window_ns

    def counted(self, highest: int, received: int, now_ns: int) -> None:
        if self._points:
            _, last_highest, last_received = self._points[-1]
            restarted = highest >> _GENERATION_SHIFT != last_highest >> _GENERATION_SHIFT
            if restarted or highest < last_highest or received < last_received:
                self._points.clear()
        self._points.append((now_ns, highest, received))

    def latest(self) -> Share | None:
        """Lost of the last datagrams sent, as few as tell anything: what has begun just now is not in the mean yet."""
        if not self._points:
            return None
        _, last_highest, last_received = self._points[-1]
        for _, highest, received in reversed(self._points):
            sent = last_highest - highest
            if sent >= MIN_LATEST:
                return Share(max(0, sent - (last_received - received)), sent)
        return None

    def share(self, now_ns: int) -> Share | None:
        """Lost of sent between the window's first and last point; None with too few to judge."""
        while len(self._points) > 1 and self._points[0][0] < now_ns - self._window_ns:
            self._points.popleft()
        if not self._points:
            return None
        (_, first_highest, first_received), (_, last_highest, last_received) = (
            self._points[0],
            self._points[-1],
        )
        sent = last_highest - first_highest
        if sent < MIN_COUNTED:
            return None
        return Share(max(0, sent - (last_received - first_received)), sent)


def one_way_loss(outward: Share | None, inward: Share | None, probes: Share) -> Share | None:
    """Loss in the worse direction; None with too few samples.

    Counters tell it directly. Where one or both are missing, the probes' loss fills in, which crosses both directions.
    """
    if outward and inward:
        return max(outward, inward, key=lambda share: share.ratio)
    known = outward or inward
    if probes.total < MIN_PROBES:
        return known
    through = 1 - probes.ratio
    if known is None:
        # Half the blame for each direction: the least that the worse one can have lost.
        return _estimated(1 - math.sqrt(through), probes.total)
    if known.ratio >= 1:
        return known
    # A difference of two measures is less sure than each: it counts as half as many samples.
    other = _estimated(1 - through / (1 - known.ratio), probes.total // 2)
    return max(known, other, key=lambda share: share.ratio)


def _estimated(ratio: float, total: int) -> Share:
    return Share(round(max(0.0, ratio) * total), total)


class StreamSpacing:
    """Is an incoming stream steady, and when does its silence become a reason to probe?"""

    MAX_SPACING_NS: Final = SECOND
    MIN_ARRIVALS: Final = 4
    LONGEST_WAIT_NS: Final = 50 * MS
    #: Arrivals come in batches; a spacing below this is the batch's, not the stream's.
    LEAST_SPACING_NS: Final = MS
    #: So many in a row are not lost by chance where less than half is.
    SURELY_MISSED: Final = 8

    def __init__(self) -> None:
        self.last_ns: int | None = None
        self._spacing_ns = 0
        self._arrivals = 0

    def arrived(self, now_ns: int) -> None:
        gap_ns = None if self.last_ns is None else now_ns - self.last_ns
        self.last_ns = now_ns
        if gap_ns is None or gap_ns > self.MAX_SPACING_NS:
            self._arrivals = 1
            return
        self._arrivals += 1
        self._spacing_ns = (
            gap_ns if self._arrivals == 2 else self._spacing_ns + (gap_ns - self._spacing_ns) // 8
        )

    def stopped_at_ns(self, least_ns: int) -> int | None:
        """When a steady stream has stopped beyond doubt, whatever of it is lost; `least_ns` after its last at least."""
        if self.last_ns is None or self._arrivals < self.MIN_ARRIVALS:
            return None
        return self.last_ns + max(least_ns, self.SURELY_MISSED * self._spacing_ns)

    def missed_at_ns(self) -> int | None:
        """When the stream counts as stopped unless more arrives: after twice its spacing, at most 50 ms."""
        if self.last_ns is None or self._arrivals < self.MIN_ARRIVALS:
            return None
        wait_ns = 2 * max(self._spacing_ns, self.LEAST_SPACING_NS)
        return self.last_ns + min(wait_ns, self.LONGEST_WAIT_NS)
