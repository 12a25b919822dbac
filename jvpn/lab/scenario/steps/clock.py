"""The step that moves wall clocks: those that gateways or the client read, in their processes alone."""

from __future__ import annotations

import time
from typing import Final

from jvpn.lab.backends.topology import CLIENT
from jvpn.lab.scenario.model import Step
from jvpn.lab.scenario.run import Run
from jvpn.lab.scenario.steps.registry import Within, step

DAY_S: Final = 86_400
EVERYBODY: Final = "everybody"


def _whose(run: Run, at: Step) -> list[str]:
    everybody, who = [CLIENT, *run.scenario.topology.gateway_names], at.parameters["who"]
    return everybody if who == EVERYBODY else [who]


def _prepare(run: Run, at: Step) -> None:
    """Their processes are started with a clock that can be shifted, and is not yet."""
    for who in _whose(run, at):
        run.nodes.clocks[who] = run.machine(who).folder / "clock"
        run.nodes.shifts[who] = [(0, 0)]
        _set(run, who, 0)


def _set(run: Run, who: str, seconds: int) -> None:
    """At once: who reads meanwhile finds the old shift or the new one."""
    machine, file = run.machine(who), run.nodes.clocks[who]
    fresh = file.with_suffix(".new")
    machine.write(fresh, str(seconds).encode())
    machine.run(["mv", str(fresh), str(file)])


@step("wall-clock", prepare=_prepare, who=EVERYBODY, days=Within(-36_500, 36_500))
def wall_clock(run: Run, at: Step) -> None:
    """Wall clocks jump to so many days after the real time, or before it."""
    seconds = at.parameters["days"] * DAY_S
    for who in _whose(run, at):
        run.nodes.shifts[who].append((time.monotonic_ns(), seconds))
        _set(run, who, seconds)
