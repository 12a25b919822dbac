"""The timeline of a running scenario: each step at its time, what it began undone when a `stop` says so."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jvpn.lab.namespaces import LabError
from jvpn.lab.scenario import scripts
from jvpn.lab.scenario.model import ATTACK, DO, FAULT, STOP, Step
from jvpn.lab.scenario.record import Mark
from jvpn.lab.scenario.run import Run
from jvpn.lab.scenario.steps import STEPS
from jvpn.observability.admin import AdminError

#: A step that begins so long after its time is said to: the machine is too busy for this scenario.
LATE_S = 0.25


class Timeline:
    """``prepare`` comes first, ``play`` goes through the steps, ``finish`` ends what still runs.

    LabError where a step fails, with its line.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.summaries: dict[str, Mapping[str, Any]] = {}
        self._unnamed = 0

    def prepare(self) -> None:
        """Machines and files as the steps need them, before anybody runs."""
        for step in self._run.scenario.timeline:
            prepare = STEPS[step.name].prepare if step.kind == DO else None
            if prepare is not None:
                prepare(self._run, step)

    def play(self) -> None:
        """Returns at the scenario's end."""
        for step in self._run.scenario.timeline:
            self._until(step.at_s)
            try:
                self._take(step)
            except (LabError, AdminError) as trouble:
                raise LabError(f"line {step.line}, at {step.at_s:g} s, {step.text}: {trouble}") from trouble
        self._until(self._run.scenario.ends_at_s)

    def _until(self, at_s: float) -> None:
        left_s = at_s - self._run.at_s()
        if left_s > 0:
            time.sleep(left_s)
        elif left_s < -LATE_S:
            self._run.say(f"{'':>8}    {-left_s:.1f} s behind the timeline")

    def _take(self, step: Step) -> None:
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
            start_ns = self._begin(placed)
        self._mark(placed, start_ns)

    def _begin(self, step: Step) -> int:
        """A script; when it was in force."""
        run = self._run
        machine = run.machine(scripts.where(step))
        argv = scripts.command(step, step.on, run.backend, machine)
        run.nodes.commands.append(f"{machine.name}# {' '.join(argv)}")
        self._unnamed += 1
        name = step.label or f"{step.name}-{self._unnamed}"
        script = scripts.Script(step.name, machine, argv, machine.clock_offset_ns())
        run.scripts[name] = script
        return script.in_force()

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
        for mark in self._run.marks:
            if mark.label == name and mark.end_ns is None and end_ns:
                mark.end_ns = end_ns

    def abandon(self) -> None:
        """Whatever has happened: no script stays behind."""
        for script in self._run.scripts.values():
            script.kill()
