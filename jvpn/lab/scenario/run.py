"""A scenario while it runs: what steps of the timeline work on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from jvpn.lab.backends.machine import Backend, Machine
from jvpn.lab.scenario.model import Scenario, Step
from jvpn.lab.scenario.nodes import Nodes
from jvpn.lab.scenario.record import Mark
from jvpn.lab.scenario.scripts import Script
from jvpn.lab.scenario.teller import Teller


@dataclass
class Run:
    """*folder*: here, for what the run leaves."""

    scenario: Scenario
    backend: Backend
    nodes: Nodes
    folder: Path
    teller: Teller
    start_ns: int = 0
    marks: list[Mark] = field(default_factory=list)
    scripts: dict[str, Script] = field(default_factory=dict)
    #: What a step keeps for its undoing, by anything that is its own.
    kept: dict[str, object] = field(default_factory=dict)
    #: What takes back what was prepared; done when everybody has ended, the last first.
    cleanup: list[Callable[[], None]] = field(default_factory=list)
    #: Steps that a later line stops, and the uplink that each was on.
    done: dict[str, Step] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """A line for who watches."""
        self.teller.line(text)

    def machine(self, name: str) -> Machine:
        """LabError for one that this scenario does not have."""
        return self.nodes.machine(name)

    def uplink(self, on: str) -> str:
        """ "A" or "B" for what a step is on. LabError when it is to be the active one and there is none."""
        if on not in ("active", "other"):
            return on
        active = self.nodes.active()
        if on == "active":
            return active
        return next((name for name in self.scenario.topology.uplinks if name != active), active)

    def at_s(self, at_ns: int | None = None) -> float:
        """Seconds of the scenario, now or at a moment of CLOCK_MONOTONIC."""
        return ((time.monotonic_ns() if at_ns is None else at_ns) - self.start_ns) / 1e9
