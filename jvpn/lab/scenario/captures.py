"""Captures on the router while a scenario runs: tcpdump to files, their tallies, and the files themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jvpn.lab.backends.topology import ROUTER
from jvpn.lab.namespaces import LabError
from jvpn.lab.scenario.model import Scenario
from jvpn.lab.scenario.nodes import Nodes

_TALLY_TIMEOUT_S: Final = 120.0


def wanted(scenario: Scenario, everything: bool) -> list[str]:
    """The router's devices that are captured: those that assertions name, or all that face a client or a gateway."""
    named = {
        measure.path[1]
        for assertion in scenario.assertions
        for measure in assertion.expression.measures
        if measure.path[0] == "captures"
    }
    if everything:
        named |= {f"r{name}" for name in scenario.topology.uplinks}
        named |= {f"w{number}" for number in range(1, scenario.topology.gateways + 1)}
    return sorted(named)


class Captures:
    """Of those devices, from ``start`` to ``stop``. LabError when tcpdump does not run."""

    def __init__(self, nodes: Nodes, devices: list[str]) -> None:
        self._nodes = nodes
        self.devices = devices
        self._router = nodes.machine(ROUTER)

    def start(self) -> None:
        for role in self.devices:
            command = [
                "tcpdump",
                "-Z",
                "root",
                "-U",
                "-i",
                self._router.device(role),
                "-w",
                str(self._pcap(role)),
            ]
            self._nodes.commands.append(f"{ROUTER}# {' '.join(command)}")
            self._nodes.attended[ROUTER].start(f"tcpdump-{role}", command, self._log(role))
        for role in self.devices:
            self._nodes.wait_for(f"tcpdump on {role}", lambda role=role: self._listening(role))  # type: ignore[misc]

    def _listening(self, role: str) -> bool:
        said = self._router.read(self._log(role)).decode(errors="replace")
        if "listening on" in said:
            return True
        if not self._nodes.attended[ROUTER].running(f"tcpdump-{role}"):
            raise LabError(f"tcpdump on the router's {role} has ended: {said.strip()}")
        return False

    def stop(self) -> None:
        attended = self._nodes.attended[ROUTER]
        for role in self.devices:
            attended.signal("SIGINT", name=f"tcpdump-{role}")
        for role in self.devices:
            self._nodes.wait_for(
                f"the end of tcpdump on {role}",
                lambda role=role: not attended.running(f"tcpdump-{role}"),  # type: ignore[misc]
            )

    def tallies(self, roles: set[str]) -> Mapping[str, Mapping[str, Any]]:
        """What is in them, as `vagrant.traffic.tally` counts it on the router."""
        return {role: self._tally(role) for role in self.devices if role in roles}

    def _tally(self, role: str) -> dict[str, Any]:
        command = [*self._router.python, "-m", "vagrant.traffic.tally", "--json", str(self._pcap(role))]
        done = self._router.run(command, timeout_s=_TALLY_TIMEOUT_S)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def fetch(self, folder: Path) -> list[str]:
        """Copies of them in *folder*; their names."""
        for role in self.devices:
            (folder / f"{role}.pcap").write_bytes(self._router.read(self._pcap(role)))
        return [f"{role}.pcap" for role in self.devices]

    def _pcap(self, role: str) -> Path:
        return self._router.folder / f"{role}.pcap"

    def _log(self, role: str) -> Path:
        return self._router.folder / f"tcpdump-{role}.log"
