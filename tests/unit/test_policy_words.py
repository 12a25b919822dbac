"""What `jvpn policy explain` says of a policy: every parameter shows, and costs are what the client really spends."""

from dataclasses import replace

import pytest
from core_pair import CorePair, every_pair_is_sound, fast_policy, silent

from jvpn.policy.forecast import OUTER, PROBE_SIZE, USES, budget, dead_after_ms, interval_ns
from jvpn.policy.model import Policy
from jvpn.policy.parameters import PARAMETERS, Kind, Parameter, Value
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


@pytest.mark.parametrize(("loss", "expected"), [(0.0, 160), (0.1, 320)])
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
