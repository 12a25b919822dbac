"""What `jvpn policy explain` says of a policy: every parameter shows, and costs are what the client really spends."""

from dataclasses import replace
from typing import Any

import pytest
from core_pair import CorePair, every_pair_is_sound, fast_policy, silent

from jvpn.agent.explaining import explained
from jvpn.policy.decisions import Action, Candidate, Decision, choose
from jvpn.policy.explain import in_words as decision_in_words
from jvpn.policy.explain import places
from jvpn.policy.forecast import USES, budget, dead_after_ms, interval_ns
from jvpn.policy.model import Policy
from jvpn.policy.parameters import PARAMETERS, Kind, Parameter, Value
from jvpn.policy.probe_budget import OUTER, PROBE_SIZE
from jvpn.policy.words import in_words, size, span
from jvpn.protocol.constants import PacketType

__all__ = ["every_pair_is_sound"]

DEFAULT = Policy.default()


def another(parameter: Parameter) -> Value:
    """A value that the parameter allows and that is not its default."""
    if parameter.kind in (Kind.INTEGER, Kind.RATIO):
        return parameter.high if parameter.default != parameter.high else parameter.low
    if parameter.kind is Kind.CHOICE:
        return next(word for word in parameter.choices if word != parameter.default)
    if parameter.kind is Kind.LABELS:
        return ("wlan*", "home")
    return parameter.choices[:1] if parameter.default != parameter.choices[:1] else parameter.choices[1:]


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.name)
def test_no_parameter_is_kept_from_the_reader(parameter: Parameter) -> None:
    changed = replace(DEFAULT, **{parameter.name: another(parameter)})
    assert in_words(changed) != in_words(DEFAULT)


def test_the_words_have_the_units_that_people_use() -> None:
    said = " ".join(line for _heading, lines in in_words(DEFAULT) for line in lines)
    for words in ("8 h", "10 min", "1.5 s", "250 ms", "20 %", "4 MiB", "8 times a minute", "ML-KEM-768"):
        assert words in said
    assert (span(604_800_000), span(86_400_000), span(90_000), span(1_234)) == (
        "7 days",
        "1 day",
        "1.5 min",
        "1234 ms",
    )
    assert (size(8_388_608), size(1_500)) == ("8 MiB", "1500 bytes")


def test_a_probe_has_the_size_that_goes_over_the_wire() -> None:
    pair = CorePair(fast_policy()).attach()
    pair.advance(5_000)
    probes = [f for f in pair.sent if f.kind is PacketType.PATH]
    assert min(len(flight.data) for flight in probes) == PROBE_SIZE
    assert (OUTER[4], OUTER[6]) == (28, 48)


@pytest.mark.parametrize("use", ["idle", "candidate"])
def test_the_budget_is_what_the_client_sends(use: str) -> None:
    policy = fast_policy(idle_probe_interval_ms=2_000, max_candidates=1)
    pair = CorePair(policy).attach()
    pair.advance(10_000)
    pair.sent.clear()
    pair.advance(60_000)
    uplink = 0 if use == "idle" else 1
    seen = [
        f
        for f in pair.sent
        if f.kind is PacketType.PATH and f.uplink == uplink and f.up and len(f.data) == PROBE_SIZE
    ]
    expected = 60_000 / (interval_ns(policy, "idle" if use == "idle" else "candidate") / 1e6)
    assert abs(len(seen) - expected) <= 2
    assert budget(policy, "idle").probes == 43_200


def test_an_answer_costs_as_much_as_the_question_and_silence_nothing() -> None:
    answered, lost = budget(DEFAULT, "candidate"), budget(DEFAULT, "lost")
    assert answered.ipv4_bytes == answered.probes * 2 * (PROBE_SIZE + 28)
    assert lost.ipv6_bytes == lost.probes * (PROBE_SIZE + 48)
    assert {use: budget(DEFAULT, use).mtu_bytes > 0 for use in USES} == {
        "idle": True,
        "busy": True,
        "watched": True,
        "candidate": False,
        "lost": False,
    }


@pytest.mark.parametrize(("loss", "expected"), [(0.0, 160), (0.1, 179)])
def test_a_dead_path_is_foretold(loss: float, expected: int) -> None:
    assert dead_after_ms(DEFAULT, loss, 20) == expected


def test_no_death_takes_longer_than_was_foretold() -> None:
    policy = fast_policy()
    pair = CorePair(policy).attach()
    for _ in range(50):
        pair.data_up(b"x" * 60)
        pair.advance(10)
    session = pair.client.session
    assert session is not None
    active = session.paths.active_path
    assert active is not None
    assert active.health.srtt_ns is not None
    foretold_ms = dead_after_ms(policy, 0.0, active.health.srtt_ns / 1e6, active.health.rttvar_ns / 1e6)
    pair.rules.append(silent(0))
    died_ms = pair.now_ms
    while session.paths.active == 0:
        pair.data_up(b"x" * 60)
        pair.advance(1)
    # One tick of the agent more: the grain of "DATA was sent".
    assert pair.now_ms - died_ms <= foretold_ms + 20


# Why candidates stand where they stand


def candidate(name: str, **more: Any) -> Candidate:
    known: dict[str, Any] = {"answering": True, "latency_ms": 20.0, "steady_since_ms": 0}
    return Candidate(name, "udp", **(known | more))


@pytest.mark.parametrize(
    ("first", "second", "because"),
    [
        ({}, {"answering": False}, "it answers, b does not"),
        ({"preference": 200}, {}, "preference 200, that of b 100"),
        ({}, {"cost": 100}, "cost 0, that of b 100"),
        ({}, {"loss": 0.125}, "loss 0.0%, that of b 12.5%"),
        ({}, {"latency_ms": 40.0}, "round trip 20.0 ms, that of b 40.0 ms"),
        ({}, {"steady_since_ms": 9}, "steady since 0 ms, that of b 9 ms"),
        ({}, {}, "all is equal, and so the name decides: a, that of b b"),
    ],
)
def test_each_place_has_the_reason_that_decided_it(
    first: dict[str, Any], second: dict[str, Any], because: str
) -> None:
    seen = places(DEFAULT, [candidate("b", **second), candidate("a", **first)])
    assert [(place.place, place.id, place.because) for place in seen] == [(1, "a", because), (2, "b", "last")]


def test_what_is_left_out_says_why() -> None:
    known = [candidate("a"), candidate("b", up=False), replace(candidate("c"), transport="quic")]
    seen = places(replace(DEFAULT, allowed_transports=("udp",)), known)
    assert [(place.place, place.id) for place in seen] == [(1, "a"), (0, "b"), (0, "c")]
    assert seen[0].because == "the only one"
    assert "no link" in seen[1].because
    assert "allowed_transports" in seen[2].because


def test_the_explanation_is_what_the_engine_decides_and_leaves_everything_as_it_is() -> None:
    pair = CorePair(fast_policy()).attach()
    pair.client.uplinks[1].preference = 200
    session = pair.client.session
    assert session is not None
    pair.advance(500)
    before = (pair.now_ns, session.paths.active, len(pair.sent))
    seen: Any = explained(session, pair.now_ms)
    decision = choose(
        session.policy, session.deciding.candidates(pair.now_ms), session.deciding.history(), pair.now_ms
    )
    assert seen["decision"]["action"] == decision.action.value
    assert [place["id"] for place in seen["places"]] == ["upB/1", "upA/0"]
    assert {path["id"]: path["active"] for path in seen["paths"]} == {"upA/0": True, "upB/1": False}
    assert all(path["dead_after_ms"] >= 160 for path in seen["paths"])
    assert (pair.now_ns, session.paths.active, len(pair.sent)) == before
    pair.wait_for(lambda: session.paths.active == 1)
    pair.advance(200)
    used: Any = explained(session, pair.now_ms)
    assert used["limits"]["switches_in_minute"] == 1
    assert 0 < used["limits"]["retry_after_ms"] <= session.policy.switch_cooldown_ms


def test_a_choice_of_the_operators_is_said_to_hold() -> None:
    pair = CorePair(fast_policy()).attach()
    pair.client.uplinks[0].preference = 200
    assert pair.client.switch("upB", pair.now_ns)
    pair.wait_for(lambda: pair.attached and pair.version > 1)
    session = pair.client.session
    assert session is not None
    seen: Any = explained(session, pair.now_ms)
    assert "somebody wanted the session here" in seen["decision"]["words"]


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        (Decision(Action.STAY), "stay"),
        (
            Decision(Action.SWITCH, "QUALITY_SWITCH", "b", {"badness": 0.5}),
            "switch to b (QUALITY_SWITCH: badness 0.5)",
        ),
        (Decision(Action.DENY, "QUALITY_SWITCH", "b", {}, 800), "stay for another 800 ms"),
        (Decision(Action.REATTACH, "TRANSPORT_DEAD", None), "wait for a path (TRANSPORT_DEAD)"),
        (Decision(Action.DEGRADE, "NO_CANDIDATE"), "go on DEGRADED (NO_CANDIDATE)"),
        (Decision(Action.TERMINATE, "RECOVERY_WINDOW_EXCEEDED"), "end the session"),
    ],
)
def test_decisions_in_words(decision: Decision, said: str) -> None:
    assert decision_in_words(decision).startswith(said)
