"""The same scenario on slower machines: what is put off and what stays."""

from dataclasses import replace
from pathlib import Path

from jvpn.lab.places import SCENARIOS
from jvpn.lab.scenario.choosing import choose
from jvpn.lab.scenario.model import FAULT, Scenario
from jvpn.lab.scenario.stretched import stretched


def of(name: str) -> Scenario:
    return choose([str(Path(SCENARIOS) / f"{name}.yaml")])[0]


def test_nothing_changes_on_machines_that_are_as_fast() -> None:
    scenario = of("f2-blackhole")
    assert stretched(scenario, 1.0) is scenario


def test_moments_are_later_and_streams_send_less_often_and_nothing_else_is_another() -> None:
    scenario = of("f2-blackhole")
    slower = stretched(scenario, 4.0)
    assert [step.at_s for step in slower.timeline] == [4 * step.at_s for step in scenario.timeline]
    assert slower.ends_at_s == 4 * scenario.ends_at_s
    assert [traffic.hz for traffic in slower.traffic] == [traffic.hz / 4 for traffic in scenario.traffic]
    assert slower.pace == 4.0
    same = replace(
        slower,
        timeline=scenario.timeline,
        ends_at_s=scenario.ends_at_s,
        traffic=scenario.traffic,
        pace=scenario.pace,
    )
    assert same == scenario


def test_a_fault_lasts_as_much_longer_as_the_timeline() -> None:
    scenario = of("f2-blackhole")
    step = next(step for step in scenario.timeline if step.kind == FAULT)
    limited = replace(scenario, timeline=(replace(step, parameters={"for": 1.5, "loss": 0.25}),))
    [later] = stretched(limited, 4.0).timeline
    assert later.parameters == {"for": 6.0, "loss": 0.25}
