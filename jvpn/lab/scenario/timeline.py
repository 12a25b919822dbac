"""The timeline of a running scenario: each step at its time, what it began undone when a `stop` says so."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jvpn.lab.backends.topology import CLIENT
from jvpn.lab.namespaces import LabError
from jvpn.lab.scenario import given, scripts
from jvpn.lab.scenario.model import ATTACK, DO, FAULT, STOP, Step
from jvpn.lab.scenario.record import Mark
from jvpn.lab.scenario.run import Run
from jvpn.lab.scenario.scripts import Script
from jvpn.lab.scenario.steps import STEPS
from jvpn.observability.admin import AdminError
from jvpn.session.version import split_version

#: A step that begins so long after its time is said to: the machine is too busy for this scenario.
LATE_S = 0.25
#: How often a terminal shows the state of the session.
LIVE_S = 0.5


class Timeline:
    """``prepare`` comes first, ``play`` goes through the steps, ``finish`` ends what still runs.

    LabError where a step fails, with its line.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.summaries: dict[str, Mapping[str, Any]] = {}
        #: By the number of their step in the timeline: scripts that wait, and the step as it was then.
        self._held: dict[int, tuple[Step, Script]] = {}

    def prepare(self) -> None:
        """Machines and files as the steps need them, before anybody runs."""
        for step in self._run.scenario.timeline:
            prepare = STEPS[step.name].prepare if step.kind == DO else None
            if prepare is not None:
                prepare(self._run, step)

    def play(self) -> None:
        """Returns at the scenario's end."""
        for number, step in enumerate(self._run.scenario.timeline):
            self._until(step.at_s)
            try:
                self._take(number, step)
            except (LabError, AdminError) as trouble:
                raise LabError(f"line {step.line}, at {step.at_s:g} s, {step.text}: {trouble}") from trouble
        self._until(self._run.scenario.ends_at_s)

    def _until(self, at_s: float) -> None:
        late_s = self._run.at_s() - at_s
        if late_s > LATE_S:
            self._run.say(f"{'':>8}    {late_s:.1f} s behind the timeline")
        while (left_s := at_s - self._run.at_s()) > 0:
            if self._run.teller.live and left_s > LIVE_S:
                self._run.teller.now(f"{self._run.at_s():8.2f} s  {self._state()}")
            time.sleep(max(0.0, min(at_s - self._run.at_s(), LIVE_S)))

    def _state(self) -> str:
        """The client's, for who watches."""
        try:
            status = self._run.nodes.ask(CLIENT, "status")
        except AdminError:
            return "the client does not answer"
        over = next(
            (role[2:] for role, name in self._run.nodes.devices.items() if name == status["active"]), ""
        )
        return f"{status['state']}{f' over {over}' if over else ''}, version {split_version(status['state_version'])}"

    def _take(self, number: int, step: Step) -> None:
        run = self._run
        if step.kind == STOP:
            self._stop(step)
            return
        on = run.uplink(step.on) if step.on else ""
        placed = replace(step, on=on)
        if step.kind == DO:
            start_ns = time.monotonic_ns()
            STEPS[step.name].function(run, placed)
        else:
            start_ns = self._begin(number, placed)
        self._mark(placed, start_ns)

    def warm(self) -> None:
        """Start every script and hold it, where its uplink is by now; returns when all are ready."""
        for number, step in enumerate(self._run.scenario.timeline):
            if step.kind in (FAULT, ATTACK):
                self._held[number] = self._hold(number, replace(step, on=self._run.uplink(step.on)))
        for _, script in self._held.values():
            script.ready()

    def _hold(self, number: int, step: Step) -> tuple[Step, Script]:
        run = self._run
        step = given.filled_in(run, step)
        machine = run.machine(scripts.where(step))
        argv = scripts.command(step, step.on, run.backend, machine)
        script = Script(step.name, machine, argv, run.nodes.time_factor)
        run.scripts[step.label or f"{step.name}-{number}"] = script
        return step, script

    def _begin(self, number: int, step: Step) -> int:
        """The script that is held for it, or a fresh one where its uplink is another now; when it was in force."""
        held, script = self._held.pop(number)
        if held.on != step.on:
            script.kill()
            _, script = self._hold(number, step)
            script.ready()
        self._run.nodes.commands.append(script.shown)
        return script.begin()

    def _mark(self, step: Step, start_ns: int) -> None:
        run = self._run
        if step.label:
            run.done[step.label] = step
        run.marks.append(Mark(step.label, step.kind, step.text, start_ns))
        run.say(f"{run.at_s(start_ns):8.2f} s  {step.text}")

    def _stop(self, step: Step) -> None:
        run = self._run
        begun = run.done[step.name]
        if begun.kind in (FAULT, ATTACK):
            summary = run.scripts[step.name].stop()
            end_ns = int(summary.get("ended_ns", time.monotonic_ns()))
            self.summaries[step.name] = summary
        else:
            end_ns = time.monotonic_ns()
            undo = STEPS[begun.name].undo
            if undo is not None:
                undo(run, begun)
        next(mark for mark in run.marks if mark.label == step.name).end_ns = end_ns
        run.marks.append(Mark(step.name, STOP, f"{begun.name} ends", end_ns))
        run.say(f"{run.at_s(end_ns):8.2f} s  {begun.name} ends")

    def finish(self) -> None:
        """What nobody stopped has ended by itself, or is stopped now; its summary is kept too."""
        for name, script in self._run.scripts.items():
            if name not in self.summaries:
                self.summaries[name] = script.stop()
                self._ended(name)

    def _ended(self, name: str) -> None:
        end_ns = int(self.summaries[name].get("ended_ns", 0))
        for mark in list(self._run.marks):
            if mark.label == name and mark.end_ns is None and end_ns:
                mark.end_ns = end_ns
                self._run.marks.append(Mark(name, STOP, f"{self._run.done[name].name} ends", end_ns))

    def abandon(self) -> None:
        """Whatever has happened: no script stays behind."""
        for script in self._run.scripts.values():
            script.kill()
