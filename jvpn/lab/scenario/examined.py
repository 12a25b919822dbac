"""Whether scripts of `vagrant/traffic`, and the configurations of gateway and client, take what scenarios tell them:
asked before there is any machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from jvpn.config.client import parse_client
from jvpn.config.errors import ConfigError
from jvpn.config.gateway import parse_gateway
from jvpn.config.keys import KEY_BYTES, format_key
from jvpn.lab.places import ROOT, SCRIPTS
from jvpn.lab.scenario import scripts
from jvpn.lab.scenario.configs import Secrets, client_config, gateway_config, key_file, policy
from jvpn.lab.scenario.given import PUBLIC_KEY, located
from jvpn.lab.scenario.model import ATTACK, FAULT, Scenario, ScenarioError, Step
from jvpn.policy.source import join

_TIMEOUT_S: Final = 60.0
_OPTION: Final = re.compile(r"(?:argument )?--([a-z][a-z-]*)")


def examine(scenarios: Sequence[Scenario]) -> None:
    """Raises ScenarioError for the first field that is not taken, or when scripts cannot be asked."""
    _configurations([one for one in scenarios if one.gateway or one.client])
    steps = [(one, step) for one in scenarios for step in one.timeline if step.kind in (FAULT, ATTACK)]
    for (scenario, step), wrong in zip(steps, _answers([_asked(step) for _, step in steps]), strict=True):
        if wrong:
            problem = _OPTION.sub(lambda found: found[1].replace("-", "_"), wrong)
            remedy = (
                f"`python -m vagrant.traffic.{step.kind}s.{scripts.module_name(step)} --help` has its options"
            )
            raise ScenarioError(scenario.file, step.line, f"{step.kind} {step.name}", problem, remedy)


def _configurations(scenarios: Sequence[Scenario]) -> None:
    """As nodes will read theirs, with keys of nobody."""
    secrets = Secrets()
    with TemporaryDirectory(prefix="jvpn-lab-examined-") as name:
        folder = Path(name)
        for file, key in (("gateway", secrets.gateway), ("client", secrets.client)):
            _private(folder / f"{file}.key", key_file(key))
        _private(folder / "fleet.key", secrets.fleet)
        (folder / "policies").mkdir()
        for scenario in scenarios:
            (folder / "policies" / "default.yaml").write_bytes(policy(scenario))
            devices = {f"up{name}": f"up{name}" for name in scenario.topology.uplinks}
            try:
                for gateway in scenario.topology.gateway_names:
                    what = "gateway"
                    text = gateway_config(scenario, gateway, gateway, folder, secrets)
                    parse_gateway(text.decode(), scenario.file, folder)
                what = "client"
                parse_client(
                    client_config(scenario, folder, devices, secrets).decode(), scenario.file, folder
                )
            except ConfigError as wrong:
                field = join(what, wrong.field)
                raise ScenarioError(scenario.file, 0, field, wrong.problem, wrong.remedy) from wrong


def _private(path: Path, content: bytes) -> None:
    path.touch(0o600)
    path.write_bytes(content)


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
