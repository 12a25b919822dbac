"""Steps that change files of a gateway or the client: configuration, policies, and disks that are full."""

from __future__ import annotations

from pathlib import PurePosixPath

import yaml

from jvpn.lab.namespaces import LabError
from jvpn.lab.scenario.model import Step
from jvpn.lab.scenario.run import Run
from jvpn.lab.scenario.steps.registry import step


@step("set-policy", gateway="gw1", policy=dict)
def set_policy(run: Run, at: Step) -> None:
    """Another default policy in the gateway's files: the scenario's own with these fields; a `reload` makes it read."""
    machine = run.machine(at.parameters["gateway"])
    found = yaml.safe_load(run.nodes.policy())
    text = yaml.safe_dump({**found, **at.parameters["policy"]}, sort_keys=False)
    machine.write(machine.folder / "policies" / "default.yaml", text.encode())


@step("write-file", machine="gw1", path=str, text=str)
def write_file(run: Run, at: Step) -> None:
    """A file of that content in the machine's folder: `policies/default.yaml`, `gateway.yaml`, `client.yaml`."""
    machine = run.machine(at.parameters["machine"])
    path = PurePosixPath(at.parameters["path"])
    if path.is_absolute() or ".." in path.parts:
        raise LabError(f"{path} is not in the folder of a lab's machine: name it from there")
    machine.write(machine.folder / path, at.parameters["text"].encode())
