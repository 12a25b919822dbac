"""The steps that a timeline can `do`, one file for each family; importing this package knows them all."""

from jvpn.lab.scenario.steps import files, operator, paths, processes
from jvpn.lab.scenario.steps.registry import STEPS, StepKind, step

__all__ = ["STEPS", "StepKind", "files", "operator", "paths", "processes", "step"]
