"""A scenario's traffic, between the client and what is behind its gateways."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from jvpn.lab.backends.machine import Machine
from jvpn.lab.backends.topology import CLIENT, GATEWAY_INNER, HOST_BEHIND, ROUTER
from jvpn.lab.gauge import Gauge, GaugeEnd, GaugeResult
from jvpn.lab.namespaces import LabError
from jvpn.lab.scenario.model import Scenario, Traffic
from jvpn.lab.scenario.nodes import Nodes
from jvpn.lab.scenario.transfers import Bulk, Transferred

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

    def start(self) -> None:
        for turn, traffic in enumerate(self._scenario.traffic):
            if traffic.kind == "iperf":
                self._start_bulk(traffic, turn)
            else:
                self._start_gauge(traffic)

    def _ends(self, traffic: Traffic) -> tuple[Machine, Machine, str]:
        """Client, server and the server's address."""
        machine, address = (
            (ROUTER, HOST_BEHIND) if self._scenario.topology.gateways > 1 else ("gw1", GATEWAY_INNER)
        )
        return self._nodes.machine(CLIENT), self._nodes.machine(machine), traffic.to or address

    def _start_gauge(self, traffic: Traffic) -> None:
        client, server, address = self._ends(traffic)
        pace = ["--hz", f"{traffic.hz:g}", "--bytes", str(traffic.bytes)]
        pace += ["--tcp"] if traffic.kind == "tcp" else []
        theirs = self._gauge_end(traffic.name, server, ["--bind", address, *pace])
        try:
            anywhere = "::" if ":" in address else "0.0.0.0"
            peer = ["--bind", anywhere, "--peer", f"{address}:{theirs.port}"]
            ours = self._gauge_end(traffic.name, client, [*peer, *pace])
        except LabError:
            theirs.end()
            raise
        gauge = Gauge(ours, theirs)
        self._gauges[traffic.name] = gauge
        gauge.start(10.0 * self._nodes.time_factor)

    def _gauge_end(self, name: str, machine: Machine, options: list[str]) -> GaugeEnd:
        argv = [*machine.python, "-m", "jvpn.lab.gauge_end", *options]
        self._nodes.commands.append(f"{machine.name}# {' '.join(argv)}")
        return GaugeEnd(machine.popen(argv), f'"{name}" on {machine.name}', machine.clock_offset_ns())

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
        for gauge in self._gauges.values():
            gauge.close()
        for bulk in self._bulks.values():
            bulk.close()
        self._gauges, self._bulks = {}, {}
