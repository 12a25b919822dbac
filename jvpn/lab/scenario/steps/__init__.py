"""The steps that a timeline can `do`, one file for each family; importing this package knows them all."""

from jvpn.lab.scenario.steps import clock, disk, files, fleet, interfaces, operator, paths, processes
from jvpn.lab.scenario.steps.registry import STEPS, StepKind, step

__all__ = [
    "STEPS", "StepKind", "clock", "disk", "files", "fleet", "interfaces", "operator", "paths", "processes", "step",
]  # fmt: skip
