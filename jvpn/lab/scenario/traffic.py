"""A scenario's traffic, between the client and what is behind its gateways."""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Mapping
from typing import TypeAlias

from jvpn.lab.backends.machine import Machine
from jvpn.lab.backends.topology import CLIENT, GATEWAY_INNER, HOST_BEHIND, ROUTER
from jvpn.lab.gauge import Gauge, GaugeEnd, GaugeResult, end
from jvpn.lab.scenario.model import Scenario, Traffic
from jvpn.lab.scenario.nodes import Nodes
from jvpn.lab.scenario.transfers import Bulk, Transferred

Started: TypeAlias = "tuple[Machine, subprocess.Popen[bytes]]"
#: What is under way when a stream stops has so long, besides a round trip, to arrive.
DRAIN_S = 0.5


class TrafficOf:
    """Every stream of a scenario. ``start`` returns when gauges have received at both ends and transfers run.

    LabError when a stream does not start, or an end of it has died.
    """

    def __init__(self, scenario: Scenario, nodes: Nodes) -> None:
        self._scenario = scenario
        self._nodes = nodes
        self._gauges: dict[str, Gauge] = {}
        self._bulks: dict[str, Bulk] = {}
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        gauged = [traffic for traffic in self._scenario.traffic if traffic.kind != "iperf"]
        # All of a kind at once: an interpreter takes a while to come up.
        servers = {traffic.name: self._serve(traffic) for traffic in gauged}
        theirs = {name: self._gauge_end(name, *one) for name, one in servers.items()}
        clients = {traffic.name: self._call(traffic, theirs[traffic.name].port) for traffic in gauged}
        for name, one in clients.items():
            self._gauges[name] = Gauge(self._gauge_end(name, *one), theirs[name])
        for gauge in self._gauges.values():
            gauge.start(10.0 * self._nodes.time_factor)
        for turn, traffic in enumerate(self._scenario.traffic):
            if traffic.kind == "iperf":
                self._start_bulk(traffic, turn)

    def _ends(self, traffic: Traffic) -> tuple[Machine, Machine, str]:
        """Client, server and the server's address."""
        machine, address = (
            (ROUTER, HOST_BEHIND) if self._scenario.topology.gateways > 1 else ("gw1", GATEWAY_INNER)
        )
        return self._nodes.machine(CLIENT), self._nodes.machine(machine), traffic.to or address

    def _serve(self, traffic: Traffic) -> Started:
        _, server, address = self._ends(traffic)
        return self._popen(server, ["--bind", address, *_pace(traffic)])

    def _call(self, traffic: Traffic, port: int) -> Started:
        client, _, address = self._ends(traffic)
        anywhere = "::" if ":" in address else "0.0.0.0"
        return self._popen(client, ["--bind", anywhere, "--peer", f"{address}:{port}", *_pace(traffic)])

    def _popen(self, machine: Machine, options: list[str]) -> Started:
        argv = [*machine.python, "-m", "jvpn.lab.gauge_end", *options]
        self._nodes.commands.append(f"{machine.name}# {' '.join(argv)}")
        process = machine.popen(argv)
        self._started.append(process)
        return machine, process

    @staticmethod
    def _gauge_end(name: str, machine: Machine, process: subprocess.Popen[bytes]) -> GaugeEnd:
        return GaugeEnd(process, f'"{name}" on {machine.name}', machine.clock_offset_ns())

    def _start_bulk(self, traffic: Traffic, turn: int) -> None:
        client, server, address = self._ends(traffic)
        seconds = max(1, math.ceil(self._scenario.ends_at_s))
        bulk = Bulk(traffic, client, server, address, turn, seconds)
        self._nodes.commands.append(bulk.command)
        self._bulks[traffic.name] = bulk

    def stop(self) -> tuple[Mapping[str, GaugeResult], Mapping[str, Transferred]]:
        """Stop sending, wait for what is under way, and return what came of it."""
        slowest_ms = max(shape.rtt_ms for shape in self._scenario.topology.uplinks.values())
        drain_s = (DRAIN_S + slowest_ms / 1e3) * self._nodes.time_factor
        for gauge in self._gauges.values():
            gauge.hush()
        until = time.monotonic() + drain_s
        streams = {
            name: gauge.stop(max(0.0, until - time.monotonic())) for name, gauge in self._gauges.items()
        }
        return streams, {name: bulk.wait() for name, bulk in self._bulks.items()}

    def close(self) -> None:
        """End every process of it."""
        for bulk in self._bulks.values():
            bulk.close()
        for process in self._started:
            end(process)
        self._gauges, self._bulks, self._started = {}, {}, []


def _pace(traffic: Traffic) -> list[str]:
    pace = ["--hz", f"{traffic.hz:g}", "--bytes", str(traffic.bytes)]
    return [*pace, "--tcp"] if traffic.kind == "tcp" else pace
