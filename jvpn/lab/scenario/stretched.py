"""A scenario for machines that are slower than this one: the same, on a slower clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from jvpn.lab.scenario.configs import PACE
from jvpn.lab.scenario.model import DO, Scenario, Step, Traffic
from jvpn.policy.parameters import BY_NAME

#: Options of scripts that are seconds, and that are so many a second.
_SECONDS: Final = ("for", "every", "late")
_PER_SECOND: Final = ("rate",)


def stretched(scenario: Scenario, factor: float) -> Scenario:
    """Everything happens *factor* times later, streams and scripts send so much more rarely, and uplinks of a limited
    rate carry so much less: machines have as much time for each packet and each step as those of *factor* 1. A policy's
    times for judging paths go with it. Round trips and what is asserted stay."""
    if factor == 1.0:
        return scenario
    return replace(
        scenario,
        topology=replace(
            scenario.topology,
            uplinks={
                name: replace(uplink, rate_mbit=uplink.rate_mbit / factor, queue_ms=uplink.queue_ms * factor)
                for name, uplink in scenario.topology.uplinks.items()
            },
        ),
        policy=_patient(scenario.policy, factor),
        traffic=tuple(_slower(traffic, factor) for traffic in scenario.traffic),
        timeline=tuple(_later(step, factor) for step in scenario.timeline),
        ends_at_s=scenario.ends_at_s * factor,
        pace=factor,
    )


def _patient(policy: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """With those of its times for judging paths that it gives itself; others the lab's own policy has."""
    return {
        name: min(round(value * factor), int(BY_NAME[name].high)) if name in PACE else value
        for name, value in policy.items()
    }


def _slower(traffic: Traffic, factor: float) -> Traffic:
    return replace(traffic, hz=traffic.hz / factor, mbit=traffic.mbit / factor)


def _later(step: Step, factor: float) -> Step:
    given: dict[str, Any] = dict(step.parameters)
    if step.kind != DO:
        for names, by in ((_SECONDS, factor), (_PER_SECOND, 1 / factor)):
            for name in names:
                if isinstance(given.get(name), int | float):
                    given[name] = round(given[name] * by, 3)
    return replace(step, at_s=step.at_s * factor, parameters=given)
