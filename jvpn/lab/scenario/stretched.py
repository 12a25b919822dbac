"""A scenario for machines that are slower than this one: the same, on a slower clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from jvpn.lab.scenario.model import DO, Scenario, Step, Traffic

#: Parameters of scripts that are seconds of the timeline.
_SECONDS: Final = ("for", "every_s")


def stretched(scenario: Scenario, factor: float) -> Scenario:
    """Everything happens *factor* times later and streams send so much more rarely, so machines have as much time for
    each packet and each step as those of *factor* 1. Round trips, policies and what is asserted stay."""
    if factor == 1.0:
        return scenario
    return replace(
        scenario,
        traffic=tuple(_slower(traffic, factor) for traffic in scenario.traffic),
        timeline=tuple(_later(step, factor) for step in scenario.timeline),
        ends_at_s=scenario.ends_at_s * factor,
        pace=factor,
    )


def _slower(traffic: Traffic, factor: float) -> Traffic:
    return replace(traffic, hz=traffic.hz / factor, mbit=traffic.mbit / factor)


def _later(step: Step, factor: float) -> Step:
    given: dict[str, Any] = dict(step.parameters)
    if step.kind != DO:
        for name in _SECONDS:
            if isinstance(given.get(name), int | float):
                given[name] = round(given[name] * factor, 3)
    return replace(step, at_s=step.at_s * factor, parameters=given)
