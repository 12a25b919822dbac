"""Health of one path: when it is probed, what an answer counts, what the signals say."""

from dataclasses import replace
from itertools import pairwise

import pytest

from jvpn.policy.dead_path import CERTAIN, DeadPathRule
from jvpn.policy.estimators import MS, SECOND, CounterLoss, RoundTrip, percentile
from jvpn.policy.health import PathHealth, silent_at_gateway_ms
from jvpn.policy.model import Policy
from jvpn.policy.quality import Quality, Signals, judge

POLICY = Policy.default()
IDLE = POLICY.idle_probe_interval_ms * MS
INTERVAL = POLICY.probe_interval_ms * MS


def proven(active: bool = True, rtt_ms: int = 10) -> tuple[PathHealth, int]:
    """A path with one answered probe, sent at 0; the time of the answer."""
    health = PathHealth(POLICY, 0, active=active)
    health.on_probe_sent(1, 0)
    assert health.on_probe_acked(1, rtt_ms * MS)
    return health, rtt_ms * MS


# --- when to probe ------------------------------------------------------------------------------------


def test_a_new_path_wants_a_probe_at_once():
    assert PathHealth(POLICY, 5, active=True).next_probe_at(5) == 5
    assert PathHealth(POLICY, 5, active=False).get_timer() == 5


def test_an_idle_path_is_probed_at_the_idle_interval():
    health, now = proven()
    assert health.next_probe_at(now) == IDLE
    assert health.get_timer() == IDLE


def test_data_asks_for_proof_until_a_probe_sent_after_it_is_answered():
    health, now = proven()
    health.on_data_sent(now)
    assert health.next_probe_at(now) == INTERVAL
    health.on_probe_sent(2, INTERVAL)
    assert INTERVAL < health.next_probe_at(INTERVAL) <= 2 * INTERVAL
    assert health.on_probe_acked(2, INTERVAL + 10 * MS)
    assert health.next_probe_at(INTERVAL + 10 * MS) == INTERVAL + IDLE


def test_data_sent_before_the_last_answered_probe_asks_for_nothing():
    health, now = proven()
    health.on_data_sent(now)
    health.on_probe_sent(2, now + INTERVAL)
    health.on_probe_acked(2, now + 2 * INTERVAL)
    assert health.next_probe_at(now + 2 * INTERVAL) == now + INTERVAL + IDLE


def test_data_after_a_long_silence_is_probed_at_once():
    health, _ = proven()
    health.on_data_sent(SECOND)
    assert health.next_probe_at(SECOND) <= SECOND


@pytest.mark.parametrize(("spacing_ms", "wait_ms"), [(5, 10), (20, 40), (25, 50), (40, 50), (200, 50)])
def test_a_steady_stream_that_stops_is_a_reason_to_probe(spacing_ms: int, wait_ms: int):
    health, now = proven()
    for _ in range(20):
        now += spacing_ms * MS
        health.on_data_received(now)
    assert health.next_probe_at(now) == now + wait_ms * MS
    health.on_probe_sent(2, now + wait_ms * MS)
    assert health.on_probe_acked(2, now + (wait_ms + 10) * MS)
    assert health.next_probe_at(now + SECOND) == now + wait_ms * MS + IDLE, (
        "it just ended; the path is proven"
    )


def test_a_few_packets_are_no_steady_stream():
    health, now = proven()
    for _ in range(3):
        now += 20 * MS
        health.on_data_received(now)
    assert health.next_probe_at(now) == IDLE
    for _ in range(5):
        now += 3 * SECOND
        health.on_data_received(now)
    assert health.next_probe_at(now) == IDLE


def test_an_overdue_idle_probe_is_followed_up_without_waiting_for_the_next_idle_interval():
    health, _ = proven()
    health.on_probe_sent(2, IDLE)
    at = health.next_probe_at(IDLE)
    assert IDLE + 10 * MS < at < IDLE + 2 * INTERVAL


def test_candidates_are_probed_each_second_and_back_off_to_ten_while_unanswered():
    health, now = proven(active=False)
    gaps = []
    for probe_id in range(2, 9):
        at = health.next_probe_at(now)
        gaps.append((at - (0 if not gaps else now)) // SECOND)
        now = at
        health.on_probe_sent(probe_id, now)
    assert gaps == [1, 1, 2, 4, 8, 10, 10]
    assert health.on_probe_acked(8, now + 10 * MS)
    assert health.next_probe_at(now + 10 * MS) == now + SECOND


def test_data_does_not_hurry_a_candidate():
    health, now = proven(active=False)
    health.on_data_sent(now)
    assert health.next_probe_at(now) == SECOND


@pytest.mark.parametrize("active", [True, False])
def test_a_link_event_asks_for_a_probe_at_once(active: bool):
    health, now = proven(active)
    health.on_link_event(now + MS)
    assert health.next_probe_at(now + MS) == now + MS
    health.on_probe_sent(2, now + MS)
    assert health.next_probe_at(now + MS) > now + MS


def test_after_a_link_event_an_unanswered_candidate_is_tried_again_soon():
    health, now = proven(active=False)
    health.on_link_event(now)
    health.on_probe_sent(2, now)
    assert health.next_probe_at(now) == now + INTERVAL
    health.on_probe_sent(3, now + INTERVAL)
    assert health.next_probe_at(now + INTERVAL) == now + 3 * INTERVAL


def test_a_watched_idle_path_is_probed_often_enough_to_be_judged():
    for active in (True, False):
        health, now = proven(active)
        health.watch(True, now)
        probe_id = 1
        while now < 3 * SECOND:
            now = max(now, health.next_probe_at(now))
            probe_id += 1
            health.on_probe_sent(probe_id, now)
            health.on_probe_acked(probe_id, now + MS)
            now += MS
        assert health.signals(now).latency_ms is not None
        health.watch(False, now)
        assert health.next_probe_at(now) >= now + SECOND - MS


def test_the_gateway_infers_death_only_after_three_idle_intervals():
    assert silent_at_gateway_ms(POLICY, 7) == 7 + 3 * POLICY.idle_probe_interval_ms


# --- answers and the verdict --------------------------------------------------------------------------


def test_an_answer_counts_once_and_only_for_an_outstanding_probe():
    health, now = proven()
    before = health.snapshot(now), health.srtt_ns
    assert not health.on_probe_acked(1, now)
    assert not health.on_probe_acked(99, now)
    assert (health.snapshot(now), health.srtt_ns) == before


def die(health: PathHealth, now: int, first_id: int = 100) -> int:
    """DATA and unanswered probes until the verdict; its time."""
    health.on_data_sent(now)
    for probe_id in range(first_id, first_id + 200):
        while not health.dead(now) and health.next_probe_at(now) > now:
            now = health.get_timer()
        if health.dead(now):
            return now
        health.on_probe_sent(probe_id, now)
    raise AssertionError("never found dead")


def test_three_unanswered_probes_and_three_intervals_are_death_on_a_clean_path():
    health, _ = proven()
    assert die(health, SECOND) == SECOND + 3 * INTERVAL
    assert health.snapshot(SECOND + 3 * INTERVAL).dead


def test_answers_may_queue_behind_a_backlog_as_long_as_the_gap_was():
    gap = 150 * MS
    health, _ = proven()
    health.expect_backlog(gap, SECOND)
    found = die(health, SECOND)
    assert SECOND + 3 * INTERVAL + gap <= found <= SECOND + 4 * INTERVAL + gap
    health, _ = proven()
    health.expect_backlog(gap, SECOND)
    drained = SECOND + 2 * gap
    assert die(health, drained) == drained + 3 * INTERVAL


def test_a_path_answers_while_its_probes_queue_behind_a_backlog():
    for gap, answering in ((0, False), (150 * MS, True)):
        health, _ = proven()
        health.expect_backlog(gap, SECOND)
        for probe_id in range(3):
            health.on_probe_sent(10 + probe_id, SECOND + probe_id * INTERVAL)
        assert health.answering(SECOND + 3 * INTERVAL) is answering


def test_a_late_answer_brings_a_dead_path_back():
    health, _ = proven()
    now = die(health, SECOND)
    assert health.dead(now + SECOND)
    assert health.on_probe_acked(102, now + SECOND)
    assert not health.dead(now + SECOND)


def test_an_answer_that_was_held_back_and_overtaken_delays_no_verdict():
    health, _ = proven()
    health.on_probe_sent(2, SECOND)
    health.on_probe_sent(3, 2 * SECOND)
    assert health.on_probe_acked(3, 2 * SECOND + 10 * MS)
    assert health.on_probe_acked(2, 9 * SECOND)
    assert die(health, 9 * SECOND) == 9 * SECOND + 3 * INTERVAL


def test_a_dead_path_is_probed_with_back_off():
    health, _ = proven()
    now = die(health, SECOND)
    last = now - INTERVAL
    assert health.next_probe_at(now) == last + SECOND
    health.on_probe_sent(500, last + SECOND)
    assert health.next_probe_at(last + SECOND) == last + 3 * SECOND


def test_received_data_answers_no_probe():
    health, _ = proven()
    health.on_data_sent(SECOND)
    for probe_id in range(3):
        health.on_probe_sent(10 + probe_id, SECOND + probe_id * INTERVAL)
        health.on_data_received(SECOND + probe_id * INTERVAL + MS)
    assert health.dead(SECOND + 3 * INTERVAL)


def test_measured_loss_asks_for_more_unanswered_probes_and_takes_longer():
    health = PathHealth(POLICY, 0, active=True)
    now = 0
    for probe_id in range(1, 101):
        now = probe_id * INTERVAL
        health.on_probe_sent(probe_id, now)
        if probe_id % 4:
            health.on_probe_acked(probe_id, now + MS)
    k = health.snapshot(now).unanswered_needed
    assert DeadPathRule.bar(0.2).needed <= k <= DeadPathRule.bar(0.35).needed
    clean, _ = proven(rtt_ms=1)
    assert die(clean, SECOND) - SECOND < die(health, now + INTERVAL, 1_000) - now < k * INTERVAL


def test_in_doubt_probes_go_denser_and_no_more_of_them_than_a_verdict_needs():
    health, _ = proven(rtt_ms=20)
    health.on_data_sent(SECOND)
    sent, now = [], SECOND
    while not health.dead(now):
        if health.next_probe_at(now) <= now:
            sent.append((now - SECOND) // MS)
            health.on_probe_sent(100 + len(sent), now)
        now += MS
    gaps = [after - before for before, after in pairwise(sent)]
    assert gaps[0] >= 20, "no doubt before an answer is overdue"
    assert sum(gap <= INTERVAL // MS // 4 for gap in gaps) >= 8
    assert len(sent) <= CERTAIN + 3
    assert now - SECOND <= 4 * INTERVAL


def test_what_still_arrives_is_a_sign_of_life_that_asks_for_more_probes():
    """On a long path, where there is no time for many."""
    missing = {}
    for alive in (False, True):
        health, now = proven(rtt_ms=150)
        for number in range(100):
            now += 5 * MS
            health.on_probe_sent(2 + number, now)
            health.on_probe_acked(2 + number, now)
            health.on_data_received(now)
        health, began = health, now
        health.on_round_trip(150 * MS, now)
        health.on_data_sent(now + MS)
        for probe_id in range(1_000, 1_200):
            while not health.dead(now) and health.next_probe_at(now) > now:
                now += MS
                if alive:
                    health.on_data_received(now)
            if health.dead(now):
                break
            health.on_probe_sent(probe_id, now)
        missing[alive] = now - began
    assert missing[False] < missing[True]


def test_counters_that_show_a_loss_just_begun_ask_for_more_probes():
    """Two seconds of clean counts, and 40 datagrams of which 12 are missing."""
    health, _ = proven()
    for count in range(51):
        health.on_counters(outward=False, highest=40 * count, received=40 * count, now_ns=count * INTERVAL)
    now = 51 * INTERVAL
    clean = health.snapshot(now).unanswered_needed
    health.on_counters(outward=False, highest=2_040, received=2_028, now_ns=now)
    health.on_probe_sent(2, now)
    health.on_probe_acked(2, now + 10 * MS)
    assert health.round_trip_loss(now + 10 * MS) == pytest.approx(0.3)
    assert health.snapshot(now + 10 * MS).unanswered_needed > clean


def test_probes_sent_in_doubt_do_not_weigh_more_in_what_quality_is_judged_by():
    health, now = proven()
    for number in range(30):
        now += 2 * INTERVAL
        health.on_probe_sent(10 * number + 10, now)
        if number % 10:
            health.on_probe_acked(10 * number + 10, now + 10 * MS)
        else:
            for extra in range(5):
                health.on_probe_sent(10 * number + 11 + extra, now + (20 + extra) * MS)
    assert health.snapshot(now + INTERVAL).loss == pytest.approx(0.1, abs=0.02)


def test_a_request_that_is_answered_proves_a_path_like_a_probe():
    health, _ = proven()
    now = die(health, SECOND)
    health.on_round_trip(30 * MS, now + SECOND)
    assert not health.dead(now + SECOND)
    assert health.answering(now + SECOND)


def test_steadiness_starts_anew_after_silence():
    health, now = proven(active=False)
    assert health.snapshot(now).steady_since_ms == now // MS
    health.on_probe_sent(2, SECOND)
    health.on_probe_sent(3, 2 * SECOND)
    assert health.snapshot(3 * SECOND).steady_since_ms is None
    assert not health.snapshot(3 * SECOND).answering
    health.on_probe_sent(4, 4 * SECOND)
    health.on_probe_acked(4, 4 * SECOND + MS)
    assert health.snapshot(5 * SECOND).steady_since_ms == 4_001


# --- estimators ---------------------------------------------------------------------------------------


def test_round_trip_follows_rfc_6298():
    trip = RoundTrip(SECOND)
    trip.sample(80, 0)
    assert (trip.srtt_ns, trip.rttvar_ns) == (80, 40)
    trip.sample(160, 1)
    assert (trip.srtt_ns, trip.rttvar_ns) == (90, 50)
    assert trip.patience_ns(0) == 90 + 200
    assert trip.patience_ns(1_000) == 1_090


def test_a_percentile_is_never_the_worst_sample_alone():
    assert percentile([7], 0.95) == 7
    assert percentile([1, 900], 0.95) == 1
    assert percentile([1, 2, 3, 900], 0.95) == 3
    assert percentile(list(range(1, 101)), 0.95) == 95
    assert percentile(list(range(1, 101)), 0.5) == 50


def test_counters_tell_loss_over_the_window_and_a_new_generation_is_none():
    loss = CounterLoss(2 * SECOND)
    loss.counted(1_000, 1_000, 0)
    assert loss.share(0) is None
    loss.counted(1_200, 1_150, SECOND)
    share = loss.share(SECOND)
    assert share is not None
    assert share.ratio == 0.25
    loss.counted(1 << 48, 1_150, SECOND)
    loss.counted((1 << 48) + 100, 1_250, SECOND)
    share = loss.share(SECOND)
    assert share is not None
    assert share.ratio == 0.0


def counted(health: PathHealth, outward: bool, lost_of_100: int, now: int) -> None:
    health.on_counters(outward=outward, highest=0, received=0, now_ns=now - SECOND)
    health.on_counters(outward=outward, highest=1_000, received=1_000 - 10 * lost_of_100, now_ns=now)


def test_the_worse_direction_is_the_loss():
    health, now = proven()
    counted(health, True, 5, now + SECOND)
    assert health.signals(now + SECOND).loss == 0.05
    counted(health, False, 30, now + 3 * SECOND)
    counted(health, True, 5, now + 3 * SECOND)
    assert health.signals(now + 3 * SECOND).loss == 0.3


def test_probes_show_the_direction_that_no_counter_tells_of():
    health = PathHealth(POLICY, 0, active=True)
    for probe_id in range(1, 51):
        health.on_probe_sent(probe_id, probe_id * INTERVAL)
        if probe_id % 2:
            health.on_probe_acked(probe_id, probe_id * INTERVAL + MS)
    now = 52 * INTERVAL
    both_unknown = health.signals(now).loss
    assert both_unknown == pytest.approx(1 - 0.5**0.5, abs=0.03)
    counted(health, True, 0, now)
    assert health.signals(now).loss == pytest.approx(0.5, abs=0.05)


def test_a_fresh_binding_is_not_judged_by_what_came_before_it():
    """Its probes were lost or late while there was no link, or no neighbour was known."""
    health = PathHealth(POLICY, 0, active=False)
    for probe_id in range(1, 31):
        health.on_probe_sent(probe_id, probe_id * INTERVAL)
    for probe_id in range(11, 21):
        health.on_probe_acked(probe_id, 31 * INTERVAL)
    health.on_counters(outward=True, highest=0, received=0, now_ns=31 * INTERVAL)
    health.on_counters(outward=True, highest=100, received=30, now_ns=31 * INTERVAL)
    now = 31 * INTERVAL
    assert health.signals(now).latency_ms is not None
    assert health.signals(now).loss is not None
    health.set_active(True, now)
    for probe_id in range(21, 31):
        health.on_probe_acked(probe_id, now + MS)
    assert health.signals(now + MS) == Signals()
    for probe_id in range(31, 51):
        now += INTERVAL
        health.on_probe_sent(probe_id, now)
        health.on_probe_acked(probe_id, now + MS)
    assert health.signals(now + MS) == Signals(0.0, 20, 1.0, 0.0)


# --- quality ------------------------------------------------------------------------------------------

GOOD = Signals(loss=0.0, loss_samples=50, latency_ms=20.0, jitter_ms=1.0)
BAD = replace(GOOD, loss=0.4)


def run(signals: list[tuple[int, Signals]], before: Quality) -> list[tuple[int, str]]:
    """Proposals with their times."""
    found = []
    for now_ms, now_signals in signals:
        before, proposal, _ = judge(POLICY, before, now_signals, now_ms)
        if proposal:
            found.append((now_ms, proposal))
    return found


def test_a_floor_must_stay_broken_for_the_hold_time():
    looks = [(t, BAD) for t in range(0, 2_000, 100)]
    assert run(looks, Quality()) == [(500, "QUALITY_FLOOR_VIOLATION")]
    flicker = [(t, BAD if t % 400 else GOOD) for t in range(0, 10_000, 100)]
    assert run(flicker, Quality()) == []


@pytest.mark.parametrize(
    "signals", [replace(GOOD, loss=0.4), replace(GOOD, latency_ms=301.0), replace(GOOD, jitter_ms=81.0)]
)
def test_each_signal_has_its_floor(signals: Signals):
    _, _, beyond = judge(POLICY, Quality(), signals, 0)
    assert len(beyond) == 1
    assert beyond[0].observed > beyond[0].threshold


def test_restored_means_well_inside_the_floors_for_the_stability_window():
    between = replace(GOOD, latency_ms=280.0)  # inside 300, not inside 300 × 0.8
    volatile = Quality(broken=True)
    assert run([(t, between) for t in range(0, 10_000, 100)], volatile) == []
    assert run([(t, GOOD) for t in range(0, 5_000, 100)], volatile) == [(2_000, "QUALITY_RESTORED")]
    interrupted = [(t, between if t == 1_900 else GOOD) for t in range(0, 4_100, 100)]
    assert run(interrupted, volatile) == [(4_000, "QUALITY_RESTORED")]


def test_what_is_not_measured_breaks_and_restores_nothing():
    for before in (Quality(), Quality(broken=True)):
        assert run([(t, Signals()) for t in range(0, 10_000, 100)], before) == []


def test_few_samples_must_show_more_than_the_floor():
    few = replace(GOOD, loss=0.25, loss_samples=10)
    many = replace(GOOD, loss=0.25, loss_samples=1_000)
    assert run([(t, few) for t in range(0, 2_000, 100)], Quality()) == []
    assert run([(t, many) for t in range(0, 2_000, 100)], Quality()) != []


def test_a_single_late_packet_changes_no_verdict():
    health = PathHealth(POLICY, 0, active=True)
    for probe_id in range(1, 51):
        now = probe_id * INTERVAL
        health.on_probe_sent(probe_id, now)
        health.on_probe_acked(probe_id, now + (2_000 if probe_id == 50 else 20) * MS)
    signals = health.signals(52 * INTERVAL)
    assert signals.latency_ms == 20.0
    assert signals.jitter_ms == 0.0
