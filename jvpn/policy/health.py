"""The health of one path: when to probe it, when it is dead, how good it is.

Theory. Only an answer to a probe (or to a REQUEST) proves a path. An active path has something to prove while DATA was
sent after the last answered probe, while a steady incoming stream has stopped, or while probes are missing; then one
goes every `probe_interval_ms` without back-off, more often in doubt. Otherwise it is probed at
`idle_probe_interval_ms`. Candidates are probed as often as their budget allows (`probe_budget.py`, `pace`), each second
at most. A candidate that does not answer, and an active path that is dead already, is probed after a second, doubling
to ten, and at once after a link event.

When enough probes in a row are unanswered the path is dead (`dead_path.py`): one that loses nothing within four and a
half intervals and one round trip, also when only one direction died.

After a bind that ended a gap both ends send what they kept, at up to twice its pace. Probes queue behind that wherever
it is slow, longest for as long as the gap was: so much longer the probes of that time may wait (`expect_backlog`).
Else a path that is only full would be left, everything be sent yet again, and the next one be full of more.

Sans-I/O: times are integer nanoseconds of one monotonic clock. Feed everything that was received before asking `dead`.
"""

from dataclasses import dataclass
from typing import Final

from jvpn.policy.dead_path import HASTY_VARIATIONS, Bar, DeadPathRule
from jvpn.policy.estimators import (
    MIN_PROBES,
    MS,
    SECOND,
    CounterLoss,
    Probes,
    RoundTrip,
    Share,
    StreamSpacing,
    one_way_loss,
    percentile,
)
from jvpn.policy.model import Policy
from jvpn.policy.quality import Signals

CANDIDATE_INTERVAL_NS: Final = SECOND
CANDIDATE_INTERVAL_MAX_NS: Final = 10 * SECOND
#: While quality is watched an idle path is probed every so many probe intervals: enough samples in a loss window.
WATCH_INTERVALS: Final = 4
#: How many loss windows the longer memory of loss spans; a calm moment must not make a lossy path look clean.
LOSS_MEMORY_WINDOWS: Final = 5
LATEST_PROBES: Final = 10
GATEWAY_SILENCE_INTERVALS: Final = 3


@dataclass(frozen=True, slots=True)
class PathSnapshot:
    """One path at one instant, in milliseconds and shares of 1; the health part of a decision's input.

    `silent_ms`: how long the oldest of its unanswered probes has waited; 0 while the path answers.
    """

    answering: bool
    dead: bool
    loss: float
    latency_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    jitter_ms: float | None
    steady_since_ms: int | None
    last_answer_ms: int | None
    silent_ms: float
    unanswered: int
    unanswered_needed: int


class PathHealth:
    """Health of one path, active or candidate. `now_ns` of each call must not be below that of the call before."""

    def __init__(self, policy: Policy, now_ns: int, *, active: bool) -> None:
        self._rule = DeadPathRule(policy)
        self._idle_ns = policy.idle_probe_interval_ms * MS
        self._window_ns = policy.loss_window_ms * MS
        self._round_trip = RoundTrip(self._window_ns)
        self._probes = Probes(LOSS_MEMORY_WINDOWS * self._window_ns)
        self._outward = CounterLoss(self._window_ns)
        self._inward = CounterLoss(self._window_ns)
        self._stream = StreamSpacing()
        self._now_ns = now_ns
        self._active = active
        self._watched = False
        self._since_ns = 0
        self._wanted_ns: int | None = now_ns
        self._data_sent_ns: int | None = None
        #: The first DATA sent since an answer proved all that went before it.
        self._unproven_ns: int | None = None
        self._bar = Bar()
        self._tries = 0
        self._first_try_ns = CANDIDATE_INTERVAL_NS
        self._pace_ns = CANDIDATE_INTERVAL_NS
        self._steady_since_ns: int | None = None
        self._steady_from_ns = 0
        self._backlog_ns = self._backlog_until_ns = 0

    def follow(self, policy: Policy) -> None:
        """Another policy from now on; what was measured stays."""
        self._rule = DeadPathRule(policy)
        self._idle_ns = policy.idle_probe_interval_ms * MS
        self._window_ns = policy.loss_window_ms * MS
        self._probes.over(LOSS_MEMORY_WINDOWS * self._window_ns)
        for estimator in (self._round_trip, self._outward, self._inward):
            estimator.over(self._window_ns)

    # --- what happened --------------------------------------------------------------------------------

    def on_probe_sent(self, probe_id: int, now_ns: int) -> None:
        """`probe_id` must be new for this path."""
        self._now_ns = now_ns
        self._wanted_ns = None
        self._tries += 1
        self._probes.sent(probe_id, now_ns)

    def on_probe_acked(self, probe_id: int, now_ns: int) -> bool:
        """False, and no effect, for a probe that is not outstanding."""
        self._now_ns = now_ns
        was_answering = self.answering(now_ns)
        rtt_ns = self._probes.acked(probe_id, now_ns)
        if rtt_ns is None:
            return False
        overtaken = now_ns - rtt_ns < (self._probes.last_answered_sent_ns or 0)
        self._answered(rtt_ns, now_ns, was_answering, overtaken=overtaken)
        return True

    def on_round_trip(self, rtt_ns: int, now_ns: int) -> None:
        """A round trip measured otherwise (REQUEST to ACK, handshake): the path answers, and how fast."""
        self._now_ns = now_ns
        was_answering = self.answering(now_ns)
        self._probes.proved(now_ns - rtt_ns, now_ns)
        self._answered(rtt_ns, now_ns, was_answering)

    def on_data_sent(self, now_ns: int) -> None:
        self._now_ns = now_ns
        before_ns, proven_ns = self._data_sent_ns, self._probes.last_answered_sent_ns
        if before_ns is None or (proven_ns is not None and before_ns <= proven_ns):
            self._unproven_ns = now_ns
        self._data_sent_ns = now_ns

    def on_data_received(self, now_ns: int) -> None:
        """Authenticated DATA came in on this path."""
        self._now_ns = now_ns
        self._stream.arrived(now_ns)

    def on_counters(self, *, outward: bool, highest: int, received: int, now_ns: int) -> None:
        """Cumulative counters of one direction: the highest counter sent on it, and how many datagrams arrived."""
        self._now_ns = now_ns
        (self._outward if outward else self._inward).counted(highest, received, now_ns)

    def on_unanswered(self, now_ns: int) -> None:
        """Something else than a probe has no answer in time: a doubt like a missing probe, unless one is under way."""
        if not self._probes.run:
            self._wanted_ns = now_ns

    def on_link_event(self, now_ns: int) -> None:
        """A link, address or route changed: probe at once, and soon again if that is not answered."""
        self._now_ns = now_ns
        self._wanted_ns = now_ns
        self._tries = 0
        self._first_try_ns = self._rule.interval_ns

    def set_active(self, active: bool, now_ns: int) -> None:
        """The path was bound, or left. What was DATA before proves and asks nothing any more.

        A bind proves the path: probes that went unanswered before it (a gateway that was down, an uplink without a
        link) say nothing against it.
        """
        self._now_ns = now_ns
        if active and not self._active:
            self._probes.proved(now_ns, now_ns)
            self._begin_window(now_ns)
        self._active = active
        self._data_sent_ns = None
        self._stream = StreamSpacing()
        self._tries = 0

    def expect_backlog(self, gap_ns: int, now_ns: int) -> None:
        """The path was bound after a gap of `gap_ns` in which packets were kept: they go now, at twice their pace.

        A way that is no faster than they first went has the last of them behind it one gap after they have all been
        sent, two after the bind.
        """
        self._backlog_ns, self._backlog_until_ns = gap_ns, now_ns + 2 * gap_ns

    def _begin_window(self, now_ns: int) -> None:
        """A binding is judged by what happens on it: not by what waited for a link or a neighbour before it."""
        self._since_ns = now_ns
        self._round_trip.begin(now_ns)
        self._outward = CounterLoss(self._window_ns)
        self._inward = CounterLoss(self._window_ns)

    def woke(self, now_ns: int) -> None:
        """The machine has slept: what had no answer by then shows nothing, and everything may have changed."""
        self._probes.unsay()
        self._stream = StreamSpacing()
        self.on_link_event(now_ns)

    def not_steady_before(self, at_ns: int) -> None:
        """Whatever it answers, it does not count as steady before then."""
        self._steady_from_ns = at_ns

    def pace(self, interval_ns: int) -> None:
        """As a candidate that answers it is probed this often."""
        self._pace_ns = interval_ns

    def watch(self, watched: bool, now_ns: int) -> None:
        """While the session is VOLATILE or DEGRADED, probe also an idle path or candidate often enough to judge it."""
        self._now_ns = now_ns
        if watched and not self._watched:
            self._tries = 0
        self._watched = watched

    def _answered(self, rtt_ns: int, now_ns: int, was_answering: bool, *, overtaken: bool = False) -> None:
        self._round_trip.sample(rtt_ns, now_ns, overtaken=overtaken)
        self._tries = 0
        self._first_try_ns = CANDIDATE_INTERVAL_NS
        if not was_answering or self._steady_since_ns is None:
            self._steady_since_ns = max(now_ns, self._steady_from_ns)
        self._bar = self._rule.bar(self.round_trip_loss(now_ns))

    # --- when to probe --------------------------------------------------------------------------------

    def next_probe_at(self, now_ns: int) -> int:
        """When the next probe should go; in the past or now: send one."""
        if self._wanted_ns is not None:
            return self._wanted_ns
        last_ns = self._probes.last_sent_ns
        assert last_ns is not None, "a path that was never probed wants to be"
        if not self._active or self.dead(now_ns):
            return last_ns + self._backed_off_ns()
        earliest_ns = last_ns + self._rule.interval_ns
        reasons = [at_ns for at_ns in self._reasons_ns() if at_ns is not None]
        next_ns = min((max(earliest_ns, at_ns) for at_ns in reasons), default=last_ns + self._idle_ns)
        if self._watched:
            next_ns = min(next_ns, last_ns + WATCH_INTERVALS * self._rule.interval_ns)
        again_ns = self._asks_again_ns()
        if again_ns is not None:
            next_ns = min(next_ns, again_ns)
        return min(next_ns, last_ns + self._idle_ns)

    def _reasons_ns(self) -> tuple[int | None, int | None, int | None]:
        """From when on the active path has something to prove: DATA sent, a stopped stream, a doubt."""
        proven_ns = self._probes.last_answered_sent_ns
        data_ns, stream_ns = self._data_sent_ns, self._stream.last_ns
        sent = data_ns if data_ns is not None and (proven_ns is None or data_ns > proven_ns) else None
        silent = stream_ns is not None and (proven_ns is None or stream_ns > proven_ns)
        missed = self._stream.missed_at_ns() if silent else None
        return sent, missed, self._doubt_at_ns()

    def _doubt_at_ns(self) -> int | None:
        """From when on more answers are missing than the loss that is known explains."""
        run, bar = self._probes.run, self._bar
        return self._rule.doubt_at_ns(run, bar, self._hasty_ns(run[0])) if run else None

    def _hasty_ns(self, sent_ns: int) -> int:
        return self._round_trip.patience_ns(self._rule.hasty_ns, HASTY_VARIATIONS) + self._queued_ns(sent_ns)

    def _asks_again_ns(self) -> int | None:
        run, bar = self._probes.run, self._bar
        return self._rule.asks_again_ns(run, bar, self._hasty_ns(run[0])) if run else None

    def undelivered_since_ns(self, now_ns: int) -> int | None:
        """From when on the active path owes something: the first DATA after what the last answer proves, or the last
        of a steady incoming stream that has stopped; never before that answer. None: idle."""
        sent, missed, _doubt = self._reasons_ns()
        since = [] if sent is None or self._unproven_ns is None else [self._unproven_ns]
        if missed is not None and missed <= now_ns and self._stream.last_ns is not None:
            since.append(self._stream.last_ns)
        return max(min(since), self._probes.last_answer_ns or 0) if since else None

    def _backed_off_ns(self) -> int:
        first_ns = self._first_try_ns if self._tries else self._pace_ns
        if self._watched:
            first_ns = min(first_ns, WATCH_INTERVALS * self._rule.interval_ns)
        # An active path that is dead has been asked often enough already; its back-off starts at the verdict.
        dead_ns = self._dead_at_ns() if self._active else None
        doublings = self._tries - 1
        if dead_ns is not None:
            doublings = sum(1 for sent_ns in self._probes.run if sent_ns >= dead_ns)
        return min(first_ns << min(max(doublings, 0), 16), max(CANDIDATE_INTERVAL_MAX_NS, self._pace_ns))

    def get_timer(self) -> int:
        """When to look again if nothing happens: the next probe or the verdict, whichever comes first."""
        probe_ns = self.next_probe_at(self._now_ns)
        verdict_ns = self._dead_at_ns()
        if verdict_ns is not None and verdict_ns > self._now_ns:
            return min(probe_ns, verdict_ns)
        return probe_ns

    # --- verdicts and measures ------------------------------------------------------------------------

    def dead(self, now_ns: int) -> bool:
        """The dead-path rule. True until a probe is answered."""
        at_ns = self._dead_at_ns()
        return at_ns is not None and now_ns >= at_ns

    def _dead_at_ns(self) -> int | None:
        verdict_ns = self._verdict_ns(stopped=False)
        stopped_ns = self._stream.stopped_at_ns(self._rule.least_wait_ns)
        hurried_ns = None if stopped_ns is None else self._verdict_ns(stopped=True)
        if verdict_ns is None or stopped_ns is None or hurried_ns is None:
            return verdict_ns
        # What still arrives is a sign of life, in one direction: only when it has stopped as well fewer probes will do.
        return max(hurried_ns, min(verdict_ns, stopped_ns))

    def _verdict_ns(self, *, stopped: bool) -> int | None:
        run, patience_ns = self._probes.run, self._patience_ns()
        return self._rule.verdict_ns(run, self._bar, patience_ns, queued=self._queued_ns, stopped=stopped)

    def _needed(self) -> int:
        run = self._probes.run
        return self._rule.counted(run, self._bar) if run else self._bar.needed

    def _queued_ns(self, sent_ns: int) -> int:
        """How long what was sent then may have queued behind a backlog."""
        return self._backlog_ns if sent_ns < self._backlog_until_ns else 0

    def answering(self, now_ns: int) -> bool:
        """It has answered, and at most one probe since is overdue, those of one interval taken together."""
        patience_ns = self._patience_ns() + self._queued_ns(now_ns)
        if self._steady_since_ns is None or self._probes.overdue(patience_ns, now_ns) < 2:
            return self._steady_since_ns is not None
        return now_ns - self._probes.run[0] < patience_ns + self._rule.interval_ns

    def _patience_ns(self) -> int:
        return self._round_trip.patience_ns(self._rule.granularity_ns)

    @property
    def srtt_ns(self) -> int | None:
        return self._round_trip.srtt_ns

    @property
    def rttvar_ns(self) -> int:
        return self._round_trip.rttvar_ns

    def round_trip_loss(self, now_ns: int) -> float:
        """p of the rule: the worst of what the last few probes, two windows of them and the counters show.

        Probes since the last answered one do not count: a path that dies must not raise its own bar. The last few do
        so that a path that begins to lose is not taken for a dead one while the windows still remember it clean.
        """
        settled_ns = min(now_ns - self._patience_ns(), self._probes.last_answered_sent_ns or 0)
        latest = self._probes.lost(self._probes.latest_ns(LATEST_PROBES), settled_ns)
        beginnings_ns = (now_ns - self._window_ns, now_ns - LOSS_MEMORY_WINDOWS * self._window_ns)
        probed = max(self._probes.lost(since_ns, settled_ns).ratio for since_ns in beginnings_ns)
        # Of so few, one lost more or less is chance: where loss has begun it may well be more.
        probed = max(probed, (latest.lost + 1) / (latest.total + 1) if latest.lost else 0.0)
        delivered = 1.0
        for counted in (self._outward, self._inward):
            delivered *= 1 - max(_ratio(counted.share(now_ns)), _ratio(counted.latest()))
        return max(1 - delivered, probed)

    def signals(self, now_ns: int) -> Signals:
        """What the floors are held against, over `loss_window_ms`."""
        since_ns = max(now_ns - self._window_ns, self._since_ns)
        probes = self._probes.lost(since_ns, now_ns - self._patience_ns(), self._rule.interval_ns)
        share = one_way_loss(self._outward.share(now_ns), self._inward.share(now_ns), probes)
        loss, loss_samples = (round(share.ratio, 4), share.total) if share else (None, 0)
        samples = self._round_trip.window(now_ns)
        if len(samples) < MIN_PROBES:
            return Signals(loss, loss_samples)
        p50_ns, p95_ns = percentile(samples, 0.5), percentile(samples, 0.95)
        return Signals(loss, loss_samples, _ms(p95_ns), _ms(p95_ns - p50_ns))

    def snapshot(self, now_ns: int) -> PathSnapshot:
        """What decisions see; loss over the longer memory, since candidates are probed seldom."""
        memory_ns = LOSS_MEMORY_WINDOWS * self._window_ns
        overdue_ns = now_ns - self._patience_ns()
        loss = self._probes.lost(now_ns - memory_ns, overdue_ns, self._rule.interval_ns)
        samples = self._round_trip.window(now_ns)
        p50 = _ms(percentile(samples, 0.5)) if samples else None
        p95 = _ms(percentile(samples, 0.95)) if samples else None
        srtt_ns, steady_ns = self._round_trip.srtt_ns, self._steady_since_ns
        answering, answer_ns = self.answering(now_ns), self._probes.last_answer_ns
        return PathSnapshot(
            answering=answering,
            dead=self.dead(now_ns),
            loss=round(loss.ratio, 4),
            latency_ms=None if srtt_ns is None else _ms(srtt_ns),
            p50_ms=p50,
            p95_ms=p95,
            jitter_ms=round(p95 - p50, 3) if p50 is not None and p95 is not None else None,
            steady_since_ms=steady_ns // MS if answering and steady_ns is not None else None,
            last_answer_ms=None if answer_ns is None else answer_ns // MS,
            silent_ms=0.0 if answering or not self._probes.run else _ms(now_ns - self._probes.run[0]),
            unanswered=self._probes.overdue(self._patience_ns(), now_ns),
            unanswered_needed=self._needed(),
        )


def _ratio(share: Share | None) -> float:
    return share.ratio if share else 0.0


def _ms(ns: int) -> float:
    return round(ns / MS, 3)


def silent_at_gateway_ms(policy: Policy, last_heard_ms: int) -> int:
    """When the gateway takes a path for dead, its only inference of that: nothing authenticated came for three idle
    probe intervals."""
    return last_heard_ms + GATEWAY_SILENCE_INTERVALS * policy.idle_probe_interval_ms
