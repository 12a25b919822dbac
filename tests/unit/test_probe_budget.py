"""The candidates' probe budget: the arithmetic of it, and that both cores keep to it on the wire."""

from dataclasses import replace

import pytest
from core_pair import NS, CorePair, every_pair_is_sound, fast_policy, silent

from jvpn.policy.forecast import budget as forecast
from jvpn.policy.model import Policy
from jvpn.policy.probe_budget import (
    DAY_MS,
    DAY_NS,
    ProbeBudget,
    burst_bytes,
    candidate_interval_ms,
    probe_bytes,
)
from jvpn.protocol.constants import PacketType

__all__ = ["every_pair_is_sound"]

POLICY = Policy.default()
THRIFTY = fast_policy(candidate_probe_bytes_per_day=1_000_000)
MINUTE_MS = 60_000


def probes(pair: CorePair, uplink: int) -> int:
    """What went over the uplink both ways, as IP packets."""
    flights = [f for f in pair.sent if f.kind is PacketType.PATH and f.uplink == uplink]
    return sum(len(flight.data) + 28 for flight in flights)


def test_the_size_of_a_probe_is_that_of_the_real_datagram():
    pair = CorePair().attach()
    pair.advance(20)
    flight = next(f for f in pair.of_kind(PacketType.PATH, up=True) if len(f.data) < 100)
    assert 2 * (len(flight.data) + 20 + 8) == probe_bytes()
    assert probe_bytes(ipv6=True) == probe_bytes() + 2 * 20


@pytest.mark.parametrize("candidates", [1, 2, 3, 8])
@pytest.mark.parametrize("budget", [100_000, 1_000_000, 20_000_000, 1_000_000_000])
def test_the_interval_spends_no_more_than_the_budget_and_no_less_than_it_could(budget: int, candidates: int):
    policy = replace(POLICY, candidate_probe_bytes_per_day=budget)
    interval_ms = candidate_interval_ms(policy, candidates)
    each_candidate = probe_bytes() * DAY_MS // interval_ms
    assert candidates * each_candidate <= budget
    assert interval_ms == 1_000 or candidates * each_candidate > 0.99 * budget
    assert forecast(policy, "busy").ipv4_bytes > forecast(policy, "idle").ipv4_bytes


def test_a_budget_lets_an_hours_worth_go_at_once_and_then_its_rate():
    budget, now_ns, paid = ProbeBudget(THRIFTY, 0), 0, 0
    while now_ns < DAY_NS:
        if not budget.take(now_ns):
            now_ns = budget.ready_ns()
            continue
        paid += probe_bytes()
    assert 1_000_000 < paid <= THRIFTY.candidate_probe_bytes_per_day + burst_bytes(THRIFTY)


def test_what_was_refused_is_paid_for_at_the_named_time_and_not_before():
    budget = ProbeBudget(THRIFTY, 0)
    while budget.take(0):
        pass
    assert not budget.take(budget.ready_ns() - 1)
    assert budget.take(budget.ready_ns())


def test_candidates_are_probed_as_the_budget_allows_and_stay_validated():
    pair = CorePair(THRIFTY, uplinks=3).attach()
    pair.advance(1_000)
    pair.sent.clear()
    pair.advance(10 * MINUTE_MS)
    allowed = 10 * MINUTE_MS / candidate_interval_ms(THRIFTY, 2)
    for uplink in (1, 2):
        assert probes(pair, uplink) <= (allowed + 1) * probe_bytes()
        assert probes(pair, uplink) >= (allowed - 2) * probe_bytes()
    session = pair.client.session
    assert session is not None
    assert all(path.validated(pair.now_ms) for path in session.paths.paths.values())


def test_links_that_come_and_go_all_the_time_do_not_spend_more():
    pair = CorePair(THRIFTY).attach()
    pair.rules.append(silent(1))
    pair.sent.clear()
    began_ms = pair.now_ms
    while pair.now_ms < began_ms + 5 * MINUTE_MS:
        pair.link(1, False)
        pair.advance(100)
        pair.link(1, True)
        pair.advance(400)
    burst = burst_bytes(THRIFTY)
    share = THRIFTY.candidate_probe_bytes_per_day * 5 * MINUTE_MS * NS // DAY_NS
    assert 2 * probes(pair, 1) <= burst + share + probe_bytes()


def test_an_empty_budget_holds_no_recovery_back():
    pair = CorePair(THRIFTY).attach()
    session = pair.client.session
    assert session is not None
    while session.upkeep._budget.take(pair.now_ns):
        pass
    pair.link(0, False)
    began_ms = pair.now_ms
    pair.wait_for(lambda: pair.attached, 100)
    assert pair.now_ms - began_ms <= 25
