"""One scenario, from machines to result: set up, traffic, timeline in real time, everything gathered, judged."""

from __future__ import annotations

import datetime
import re
import subprocess
import time
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from jvpn.lab.backends.machine import About, Backend
from jvpn.lab.backends.topology import CLIENT
from jvpn.lab.namespaces import LabError
from jvpn.lab.scenario import captures, judge, telling
from jvpn.lab.scenario import result as results
from jvpn.lab.scenario.captures import Captures
from jvpn.lab.scenario.model import Scenario
from jvpn.lab.scenario.nodes import Nodes
from jvpn.lab.scenario.record import Record
from jvpn.lab.scenario.run import Run
from jvpn.lab.scenario.stretched import stretched
from jvpn.lab.scenario.teller import Teller
from jvpn.lab.scenario.timeline import Timeline
from jvpn.lab.scenario.traffic import TrafficOf
from jvpn.observability.admin import AdminError

#: What may go wrong with a run without being a mistake of this program.
TROUBLE: Final = (LabError, AdminError, OSError, subprocess.SubprocessError)
LOGS: Final = ("gateway.log", "client.log", "etcd.log")
_UNFIT = re.compile(r"[^A-Za-z0-9.=_-]+")


def folder_name(scenario: Scenario) -> str:
    """For files of its run: the scenario's name with what shells take for something else left out."""
    return _UNFIT.sub("-", scenario.name).strip("-")


def conduct(
    scenario: Scenario,
    backend: Backend,
    folder: Path,
    teller: Teller,
    *,
    pcap: bool = False,
    time_factor: float = 1.0,
) -> results.Result:
    """Run it and leave result.json, events, logs and captures in *folder*, which is made. Nothing is left running.

    *time_factor* is how much slower the machine is than one that runs nothing else, besides what its backend knows.

    A run that could not come to its end has `error` in its result and has not passed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    one = _Conduct(scenario, backend, folder, teller, pcap, time_factor)
    result = one.run()
    (folder / "result.json").write_bytes(results.encode(result))
    return result


class _Conduct:
    def __init__(
        self,
        scenario: Scenario,
        backend: Backend,
        folder: Path,
        teller: Teller,
        pcap: bool,
        time_factor: float,
    ) -> None:
        self._scenario = scenario
        self._backend = backend
        self._folder = folder
        self._teller = teller
        self._pcap = pcap
        self._about = About(backend.name, "", time_factor)
        self._nodes: Nodes | None = None
        self._run: Run | None = None
        self._files: dict[str, list[str]] = {}
        self._record: Record | None = None
        self._first_device = ""

    def run(self) -> results.Result:
        started = datetime.datetime.now(datetime.UTC)
        begun_s = time.monotonic()
        error = ""
        try:
            self._perform()
        except TROUBLE as trouble:
            error = str(trouble) or repr(trouble)
        except Exception:  # noqa: BLE001
            # A mistake of this program: who runs many still gets the others, and a report that says where it was.
            error = f"the lab itself failed: {traceback.format_exc()}"
        finally:
            error = self._leave(error)
        return self._result(started.isoformat(timespec="seconds"), time.monotonic() - begun_s, error)

    def _perform(self) -> None:
        scenario, backend = self._scenario, self._backend
        begun_s = time.monotonic()
        self._teller.now(f"{'':>8}    setting machines up")
        about = backend.about()
        self._scenario = scenario = stretched(scenario, about.time_factor)
        backend.up(scenario.topology)
        self._about = replace(about, time_factor=about.time_factor * self._about.time_factor)
        self._nodes = nodes = Nodes(backend, scenario, self._about.time_factor)
        self._run = run = Run(scenario, backend, nodes, self._folder, self._teller)
        timeline = Timeline(run)
        self._teller.now(f"{'':>8}    starting gateway and client")
        nodes.start(timeline.prepare)
        self._teller.line(
            f"{'':>8}    ready in {time.monotonic() - begun_s:.1f} s: session over {nodes.active()}"
        )
        taken = Captures(nodes, captures.wanted(scenario, self._pcap))
        traffic = TrafficOf(scenario, nodes)
        try:
            taken.start()
            timeline.warm()
            traffic.start()
            before = nodes.snapshot()
            self._first_device = str(before.status("client").get("active") or "")
            run.start_ns = time.monotonic_ns()
            timeline.play()
            end_ns = time.monotonic_ns()
            self._teller.now(f"{'':>8}    gathering what came of it")
            streams, transfers = traffic.stop()
            after = nodes.snapshot()
            timeline.finish()
            taken.stop()
        finally:
            timeline.abandon()
            traffic.close()
        lines = telling.read(nodes)
        named = {
            m.path[1] for a in scenario.assertions for m in a.expression.measures if m.path[0] == "captures"
        }
        self._record = Record(
            topology=scenario.topology,
            devices=nodes.devices,
            start_ns=run.start_ns,
            end_ns=end_ns,
            before=before,
            after=after,
            marks=run.marks,
            streams=streams,
            transfers=transfers,
            events=telling.told(nodes, lines),
            findings=telling.findings(lines),
            summaries=timeline.summaries,
            tallies=taken.tallies(named),
            logs={who: nodes.log(who) for who in (CLIENT, *scenario.topology.gateway_names)},
            pace=scenario.pace,
        )
        if taken.devices:
            self._files["pcap"] = taken.fetch(self._folder)

    def _leave(self, error: str) -> str:
        """Keep what is known, end everybody; the error, with what failed in this."""
        try:
            if self._nodes is not None:
                self._keep(self._nodes)
                self._nodes.stop()
        except TROUBLE as trouble:
            error = error or str(trouble)
        finally:
            error = self._clean(error)
            self._backend.down()
        return error

    def _clean(self, error: str) -> str:
        """Take back what was prepared; the error, with what failed in this."""
        for clean in reversed(self._run.cleanup if self._run is not None else []):
            try:
                clean()
            except TROUBLE as trouble:
                error = error or str(trouble)
        return error

    def _keep(self, nodes: Nodes) -> None:
        if nodes.attended:
            self._files["events"] = telling.keep(telling.read(nodes), self._folder)
        logs = []
        for name, machine in self._backend.machines.items():
            for log in LOGS:
                try:
                    content = machine.read(machine.folder / log)
                except LabError:
                    continue
                (self._folder / f"{name}-{log}").write_bytes(content)
                logs.append(f"{name}-{log}")
        self._files["logs"] = logs

    def _result(self, started: str, duration_s: float, error: str) -> results.Result:
        scenario, record = self._scenario, self._record
        judged = judge.assertions(scenario, record, self._about.time_factor) if record else []
        return results.Result(
            scenario=scenario.name,
            title=scenario.title,
            row=scenario.row,
            parameters=dict(scenario.parameters),
            backend=self._backend.name,
            about=self._about_everything(),
            started=started,
            duration_s=round(duration_s, 1),
            passed=bool(record) and not error and all(one.passed for one in judged),
            assertions=judged,
            marks=judge.marks(record) if record else [],
            series=judge.series(scenario, record) if record else {},
            states=judge.states(record) if record else [],
            transports=judge.transports(record, self._first_device) if record else [],
            measures=judge.measured(scenario, record) if record else {},
            files=self._files,
            commands=self._nodes.commands if self._nodes is not None else [],
            error=error,
        )

    def _about_everything(self) -> dict[str, object]:
        found: dict[str, object] = {**asdict(self._about)}
        if self._record is not None:
            gateways = {
                name: self._record.before.status(name) for name in self._scenario.topology.gateway_names
            }
            found["xdp"] = {name: status.get("xdp_mode", {}) for name, status in gateways.items()}
            found["offload"] = next(iter(gateways.values())).get("offload", "")
            found["version"] = next(iter(gateways.values())).get("version", "")
            found["findings"] = list(self._record.findings)
            found["summaries"] = dict(self._record.summaries)
        return found
