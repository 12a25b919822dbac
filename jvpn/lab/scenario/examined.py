"""Whether scripts of `vagrant/traffic` take what scenarios tell them, asked before there is any machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from jvpn.config.keys import KEY_BYTES, format_key
from jvpn.lab.places import ROOT, SCRIPTS
from jvpn.lab.scenario import scripts
from jvpn.lab.scenario.given import PUBLIC_KEY, located
from jvpn.lab.scenario.model import ATTACK, FAULT, Scenario, ScenarioError, Step

_TIMEOUT_S: Final = 60.0
_OPTION: Final = re.compile(r"(?:argument )?--([a-z][a-z-]*)")


def examine(scenarios: Iterable[Scenario]) -> None:
    """Raises ScenarioError for the first step whose script does not take its fields, or when none can be asked."""
    steps = [(one, step) for one in scenarios for step in one.timeline if step.kind in (FAULT, ATTACK)]
    for (scenario, step), wrong in zip(steps, _answers([_asked(step) for _, step in steps]), strict=True):
        if wrong:
            problem = _OPTION.sub(lambda found: found[1].replace("-", "_"), wrong)
            remedy = (
                f"`python -m vagrant.traffic.{step.kind}s.{scripts.module_name(step)} --help` has its options"
            )
            raise ScenarioError(scenario.file, step.line, f"{step.kind} {step.name}", problem, remedy)


def _asked(step: Step) -> list[Any]:
    """With some device and key in place of those that a run has."""
    keys = {PUBLIC_KEY: format_key(bytes(KEY_BYTES))} if PUBLIC_KEY in step.parameters else {}
    filled = located(replace(step, parameters={**step.parameters, **keys}))
    return [step.kind, scripts.module_name(step), ["--device", "any", *scripts.options(filled)]]


def _answers(asked: list[Any]) -> list[str]:
    """Each question is asked once: an interpreter with Scapy takes a second."""
    different = {json.dumps(one): one for one in asked}
    if not different:
        return []
    done = subprocess.run(
        [sys.executable, "-m", "vagrant.traffic.examine"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, input=json.dumps(list(different.values())),
        capture_output=True, text=True, check=False, timeout=_TIMEOUT_S,
    )  # fmt: skip
    if done.returncode != 0:
        problem = f"the scripts cannot be asked for their options: {done.stderr.strip()[-300:]}"
        raise ScenarioError(str(SCRIPTS), 0, "", problem, "run script/setup, which installs what they need")
    answers = dict(zip(different, json.loads(done.stdout), strict=True))
    return [str(answers[json.dumps(one)]) for one in asked]
