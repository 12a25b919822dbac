"""Decisions: total order of candidates, limits on moving by choice, recovery that nothing holds back, replay."""

import itertools
import random
from dataclasses import replace

import pytest

from jvpn.policy.decisions import (
    Action,
    Candidate,
    Decision,
    History,
    Phase,
    badness,
    choose,
    ranked,
    voluntary_limit,
    warm,
)
from jvpn.policy.model import Policy
from jvpn.policy.replay import again, decide, from_json, to_json

POLICY = Policy.default()
NOW = 1_000_000
STABLE = POLICY.stability_window_ms
A = Candidate("a/udp", "udp", answering=True, latency_ms=30.0, jitter_ms=1.0, steady_since_ms=NOW - 60_000)
B = replace(A, id="b/udp")
ATTACHED = History(Phase.ATTACHED, NOW - 50_000, "a/udp", NOW - 50_000, binds_ms=(NOW - 50_000,))
VOLATILE = replace(ATTACHED, phase=Phase.VOLATILE, phase_since_ms=NOW - 100)
RECOVERING = History(Phase.RECOVERING, NOW - 100, None, 0, NOW - 100)
BAD_A = replace(A, broken=True, loss=0.4)


def decided(
    candidates: list[Candidate], history: History, now_ms: int = NOW, policy: Policy = POLICY
) -> Decision:
    """The decision, whatever the order the candidates come in."""
    decisions = {repr(choose(policy, order, history, now_ms)) for order in itertools.permutations(candidates)}
    assert len(decisions) == 1
    return choose(policy, candidates, history, now_ms)


# --- order --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "worse",
    [
        replace(A, id="0", answering=False, preference=900),
        replace(A, id="0", preference=99, loss=0.0, latency_ms=1.0),
        replace(A, id="0", cost=1, latency_ms=1.0),
        replace(A, id="0", transport="tcp", latency_ms=1.0),
        replace(A, id="0", loss=0.01, latency_ms=1.0),
        replace(A, id="0", latency_ms=31.0, steady_since_ms=0),
        replace(A, id="0", latency_ms=None),
        replace(A, id="0", steady_since_ms=NOW),
        replace(A, id="0", steady_since_ms=None),
        replace(A, id="b"),
    ],
)
def test_each_criterion_decides_where_those_before_it_are_equal(worse: Candidate):
    assert [c.id for c in ranked(POLICY, [worse, A])] == [A.id, worse.id]


def test_the_filter_drops_what_the_policy_or_the_link_forbids():
    policy = replace(POLICY, allowed_transports=("tcp",))
    down, tcp = replace(A, id="down", transport="tcp", up=False), replace(A, id="tcp", transport="tcp")
    assert ranked(policy, [A, down, tcp]) == [tcp]


def test_the_order_is_total_and_does_not_depend_on_the_input():
    draw = random.Random(1)
    paths = [
        replace(
            A,
            id=str(n),
            preference=draw.choice([1, 2]),
            loss=draw.choice([0.0, 0.1]),
            cost=draw.choice([0, 1]),
        )
        for n in range(40)
    ]
    expected = ranked(POLICY, paths)
    for _ in range(20):
        draw.shuffle(paths)
        assert ranked(POLICY, paths) == expected


def test_only_max_candidates_are_kept_warm_and_the_active_is_not_one():
    paths = [replace(A, id=str(n)) for n in range(6)]
    assert [c.id for c in warm(POLICY, paths, "1")] == ["0", "2", "3"]


# --- recovery -----------------------------------------------------------------------------------------


def test_a_dead_path_is_left_at_once_whatever_the_limits():
    spent = replace(ATTACHED, binds_ms=tuple(range(NOW - 30, NOW)))
    decision = decided([replace(A, dead=True), B], spent)
    assert (decision.action, decision.reason, decision.candidate) == (
        Action.REATTACH,
        "TRANSPORT_DEAD",
        "b/udp",
    )
    assert voluntary_limit(POLICY, spent, NOW) is not None


def test_a_path_whose_link_is_gone_is_left_at_once():
    decision = decided([replace(A, up=False), B], ATTACHED)
    assert (decision.action, decision.reason, decision.candidate) == (
        Action.REATTACH,
        "TRANSPORT_DEAD",
        "b/udp",
    )


def test_recovery_prefers_a_path_that_answers_over_a_wanted_one_that_does_not():
    silent = replace(A, id="c/udp", preference=900, answering=False)
    assert decided([replace(A, dead=True), B, silent], ATTACHED).candidate == "b/udp"
    assert decided([B, silent], RECOVERING).candidate == "b/udp"


def test_a_dead_path_alone_is_tried_again():
    dead = replace(A, dead=True, answering=False)
    assert decided([dead], ATTACHED).candidate == "a/udp"
    assert decided([dead], RECOVERING).candidate == "a/udp"


def test_without_any_path_there_is_nothing_to_try():
    assert decided([], ATTACHED).candidate is None
    decision = decided([], RECOVERING)
    assert (decision.action, decision.reason) == (Action.DEGRADE, "NO_CANDIDATE")
    unbound = replace(RECOVERING, phase=Phase.DEGRADED, recovering_since_ms=None)
    assert decided([], unbound).action is Action.STAY
    found = decided([A], unbound)
    assert (found.action, found.reason, found.candidate) == (Action.REATTACH, "REATTACH_REQUESTED", "a/udp")


@pytest.mark.parametrize(
    ("policy_says", "action"), [("degrade", Action.DEGRADE), ("terminate", Action.TERMINATE)]
)
def test_recovery_never_outlasts_its_window(policy_says: str, action: Action):
    policy = replace(POLICY, on_recovery_window_exceeded=policy_says)
    end = RECOVERING.phase_since_ms + policy.recovery_window_ms
    assert decided([A], RECOVERING, end - 1, policy).action is Action.REATTACH
    decision = decided([A], RECOVERING, end, policy)
    assert (decision.action, decision.reason) == (action, "RECOVERY_WINDOW_EXCEEDED")
    assert decision.because == {
        "elapsed_ms": policy.recovery_window_ms,
        "recovery_window_ms": policy.recovery_window_ms,
    }


# --- quality ------------------------------------------------------------------------------------------


def test_a_broken_floor_is_left_for_a_better_path():
    decision = decided([BAD_A, B], VOLATILE)
    assert (decision.action, decision.reason, decision.candidate) == (
        Action.SWITCH,
        "QUALITY_SWITCH",
        "b/udp",
    )
    assert decision.because["active_badness"] == pytest.approx(badness(POLICY, BAD_A), abs=1e-3)


def test_a_better_path_must_be_better_by_the_factor():
    just = replace(B, loss=0.0, latency_ms=None, jitter_ms=0.0)
    policy = replace(POLICY, switch_improvement_factor=badness(POLICY, BAD_A) / badness(POLICY, just) + 0.01)
    assert decided([BAD_A, just], VOLATILE, policy=policy).action is Action.STAY
    policy = replace(policy, switch_improvement_factor=policy.switch_improvement_factor - 0.02)
    assert decided([BAD_A, just], VOLATILE, policy=policy).action is Action.SWITCH


@pytest.mark.parametrize(
    "other",
    [
        replace(B, broken=True),
        replace(B, answering=False),
        replace(B, dead=True),
        replace(B, loss=0.4),
        replace(B, up=False),
    ],
)
def test_a_path_that_is_no_better_is_no_relief(other: Candidate):
    assert decided([BAD_A, other], VOLATILE).action is Action.STAY


def test_without_relief_volatile_becomes_degraded():
    lasting = replace(VOLATILE, phase_since_ms=NOW - POLICY.volatile_to_degraded_ms)
    decision = decided([BAD_A, replace(B, broken=True)], lasting)
    assert (decision.action, decision.reason) == (Action.DEGRADE, "VOLATILITY_PERSISTED")
    assert decided([BAD_A, replace(B, broken=True)], lasting, NOW - 1).action is Action.STAY
    limited = replace(lasting, binds_ms=(NOW - 10,))
    decision = decided([BAD_A, B], limited)
    assert (decision.action, decision.reason) == (Action.DEGRADE, "SWITCH_RATE_LIMITED")


def test_an_equal_path_is_no_reason_to_move():
    faster = replace(B, latency_ms=1.0)
    assert decided([A, faster], ATTACHED) == Decision(Action.STAY)


# --- preference ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted", [replace(B, preference=200), replace(B, cost=-1), replace(B, id="z", transport="udp")]
)
def test_a_wanted_path_is_taken_after_its_own_stability_window(wanted: Candidate):
    active = replace(A, transport="tcp") if wanted.id == "z" else A
    returned = replace(wanted, steady_since_ms=NOW - STABLE)
    decision = decided([active, returned], ATTACHED)
    assert (decision.action, decision.reason) == (Action.SWITCH, "TRANSPORT_RETURNED")
    assert decided([active, returned], ATTACHED, NOW - 1).action is Action.STAY
    all_along = replace(wanted, steady_since_ms=ATTACHED.attached_since_ms)
    assert decided([active, all_along], ATTACHED).reason == "PREFERENCE_SWITCH"


@pytest.mark.parametrize(
    "wanted",
    [
        replace(B, preference=200, broken=True),
        replace(B, preference=200, loss=0.19),  # inside the floor, not inside floor × hysteresis
        replace(B, preference=200, latency_ms=280.0),
        replace(B, preference=200, jitter_ms=79.0),
        replace(B, preference=200, answering=False, steady_since_ms=None),
    ],
)
def test_a_wanted_path_that_would_be_left_again_is_not_taken(wanted: Candidate):
    assert decided([A, wanted], ATTACHED).action is Action.STAY


# --- limits -------------------------------------------------------------------------------------------

WANTED = replace(B, preference=200)


def test_the_cooldown_denies_and_says_for_how_long():
    history = replace(ATTACHED, binds_ms=(NOW - 1_000,))
    decision = decided([A, WANTED], history)
    assert (decision.action, decision.candidate) == (Action.DENY, "b/udp")
    assert decision.retry_after_ms == POLICY.switch_cooldown_ms - 1_000
    assert decision.because == {"since_bind_ms": 1_000, "switch_cooldown_ms": POLICY.switch_cooldown_ms}
    assert decided([A, WANTED], history, NOW + decision.retry_after_ms).action is Action.SWITCH
    assert decided([A, WANTED], history, NOW + decision.retry_after_ms - 1).action is Action.DENY


def test_the_rate_denies_until_enough_binds_are_a_minute_old():
    history = replace(ATTACHED, binds_ms=tuple(range(NOW - 50_000, NOW - 10_000, 4_000)))
    assert len(history.binds_ms) > POLICY.max_switches_per_minute
    decision = decided([A, WANTED], history)
    assert decision.action is Action.DENY
    assert decided([A, WANTED], history, NOW + decision.retry_after_ms - 1).action is Action.DENY
    assert decided([A, WANTED], history, NOW + decision.retry_after_ms).action is Action.SWITCH


def test_zero_switches_a_minute_means_never():
    policy = replace(POLICY, max_switches_per_minute=0)
    for history in (ATTACHED, replace(ATTACHED, binds_ms=())):
        assert decided([A, WANTED], history, policy=policy).action is Action.DENY


def test_a_flapping_world_keeps_to_the_limit():
    """Every 100 ms both paths swap their preference: as many switches as the policy allows, no more."""
    active, binds = "a/udp", [0]
    for now_ms in range(0, 600_000, 100):
        wanted = "b/udp" if now_ms // 100 % 2 else "a/udp"
        paths = [
            replace(c, steady_since_ms=-10_000, preference=200 if c.id == wanted else 100) for c in (A, B)
        ]
        history = History(Phase.ATTACHED, 0, active, binds[-1], binds_ms=tuple(binds))
        decision = choose(POLICY, paths, history, now_ms)
        if decision.action is Action.SWITCH:
            assert decision.candidate is not None
            active = decision.candidate
            binds.append(now_ms)
    assert len(binds) > 60
    for first, last in zip(binds, binds[POLICY.max_switches_per_minute :], strict=False):
        assert last - first >= 60_000
    assert all(later - earlier >= POLICY.switch_cooldown_ms for earlier, later in itertools.pairwise(binds))


# --- replay -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", [ATTACHED, VOLATILE, RECOVERING, replace(ATTACHED, binds_ms=(NOW - 10,))])
def test_a_recorded_decision_is_taken_again_alike(history: History):
    decision, record = decide(POLICY, (BAD_A, B, WANTED), history, NOW)
    read = from_json(to_json(record))
    assert read == record
    assert again(POLICY, read) == decision


def test_a_forged_record_and_another_policy_are_noticed():
    _, record = decide(POLICY, (A, WANTED), ATTACHED, NOW)
    forged = replace(record, candidates=(A, replace(WANTED, steady_since_ms=NOW)))
    assert again(POLICY, forged) != forged.decision
    with pytest.raises(ValueError, match="policy version"):
        again(replace(POLICY, max_candidates=1), record)
    with pytest.raises(ValueError):  # noqa: PT011 - the codec's own message
        from_json(b'{"now_ms": "soon"}')


def test_every_reason_is_one_the_session_machine_knows():
    table = pytest.importorskip("jvpn.session.table")
    said = {
        choose(POLICY, paths, history, NOW).reason
        for history in (ATTACHED, VOLATILE, RECOVERING, replace(VOLATILE, phase_since_ms=0))
        for paths in ([], [A], [A, WANTED], [BAD_A, B], [BAD_A], [replace(A, dead=True), B])
    } - {""}
    assert len(said) >= 5
    assert said <= {reason.value for reason in table.Reason}
