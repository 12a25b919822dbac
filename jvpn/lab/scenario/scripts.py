"""Faults and attacks of a timeline: scripts of `vagrant/traffic`, as processes on the router (or another machine).

A script is started ahead of its time, since an interpreter takes a while to come up, and held. It says on stdout, as
JSON lines, that it is ready, when it is in force and how it was; it ends by itself, or when its stdin closes.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from jvpn.lab.backends.machine import Backend, Machine
from jvpn.lab.backends.topology import PORT, ROUTER, outer
from jvpn.lab.namespaces import LabError
from jvpn.lab.scenario.model import ATTACK, FAULT, Step

#: How long a script may take to say that it is in force, and to take back what it did.
FORCE_TIMEOUT_S: Final = 30.0
_LAST_WORDS: Final = 2000
#: Parameters of a step that say where its script runs, and not to the script.
MACHINE: Final = "machine"
DEVICE: Final = "device"


def command(step: Step, on: str, backend: Backend, machine: Machine) -> list[str]:
    """The command line of a step's script; *on*: its uplink by name."""
    if step.kind == FAULT and DEVICE not in step.parameters:
        place = backend.wire(on)
    else:
        place = ["--device", machine.device(str(step.parameters.get(DEVICE, f"r{on}")))]
    module = f"vagrant.traffic.{step.kind}s.{module_name(step)}"
    return [*machine.python, "-m", module, *place, *options(step), "--until-eof", "--start-on-line"]


def module_name(step: Step) -> str:
    """What a step's script is called where the others of its kind are."""
    return step.name.replace("-", "_")


def options(step: Step) -> list[str]:
    """What a step tells its script, but for the place."""
    given = {name: value for name, value in step.parameters.items() if name not in (MACHINE, DEVICE)}
    if step.kind == ATTACK:
        given = {"gateway": f"{outer('gw1')}:{PORT}", **given}
    return [word for name, value in given.items() for word in _option(name, value)]


def _option(name: str, value: object) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [option] if value else []
    if isinstance(value, list):
        return [word for one in value for word in (option, str(one))]
    return [option, str(value)]


def where(step: Step) -> str:
    """The machine that a step's script runs on."""
    return str(step.parameters.get(MACHINE, ROUTER))


class Script:
    """One that runs. LabError, with its last words, when it does not begin or end as it should.

    *patience*: how much slower the machine is. ``started_ns`` and ``ended_ns`` are on ours.
    """

    def __init__(self, name: str, machine: Machine, argv: Sequence[str], patience: float) -> None:
        self.name = name
        self._machine = machine
        self._argv = argv
        self._offset_ns = machine.clock_offset_ns()
        self._patience = patience
        self._lines: list[Mapping[str, Any]] = []
        self._changed = threading.Condition()
        self._over = False
        self._said = bytearray()
        self._process: subprocess.Popen[bytes] = machine.popen(argv)
        self._readers = [
            threading.Thread(target=reader, name=f"{name}-{reader.__name__}", daemon=True)
            for reader in (self._read_lines, self._read_words)
        ]
        for reader in self._readers:
            reader.start()

    def ready(self) -> None:
        """Wait until it is: nothing has happened yet."""
        self._line(0, FORCE_TIMEOUT_S * self._patience, "get ready")

    def begin(self) -> int:
        """Let it begin, and wait until it is in force; when that was."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # one that has ended is reported with its last words
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        line = self._line(1, FORCE_TIMEOUT_S * self._patience, "be in force")
        return int(line["at_ns"]) - self._offset_ns

    def stop(self) -> Mapping[str, Any]:
        """Close its stdin and wait for its summary, times on our clock."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        return self.summary(FORCE_TIMEOUT_S * self._patience)

    def summary(self, timeout_s: float) -> Mapping[str, Any]:
        """Wait until it has ended by itself."""
        found = dict(self._line(2, timeout_s, "end with a summary"))
        for moment in ("started_ns", "ended_ns"):
            if moment in found:
                found[moment] = int(found[moment]) - self._offset_ns
        status = self._process.wait(FORCE_TIMEOUT_S * self._patience)
        if status != 0:
            raise self._failed(f"ended with status {status}")
        return found

    def kill(self) -> None:
        """In case that it still runs: let it go, without a word."""
        with contextlib.suppress(LabError, subprocess.TimeoutExpired):
            if self._process.poll() is None:
                self.stop()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(FORCE_TIMEOUT_S)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    @property
    def shown(self) -> str:
        """Its command line, with where it runs."""
        return f"{self._machine.name}# {' '.join(self._argv)}"

    @property
    def said(self) -> str:
        """Its stderr so far."""
        return self._said.decode(errors="replace")

    def _line(self, number: int, timeout_s: float, what: str) -> Mapping[str, Any]:
        until = time.monotonic() + timeout_s
        with self._changed:
            while len(self._lines) <= number:
                left = until - time.monotonic()
                if self._over or left <= 0:
                    break
                self._changed.wait(left)
            if len(self._lines) > number:
                return self._lines[number]
        if not self._over:
            raise self._failed(f"did not {what} in {timeout_s:g} s")
        status = self._process.wait(FORCE_TIMEOUT_S * self._patience)
        raise self._failed(f"ended with status {status} and did not {what}")

    def _failed(self, what: str) -> LabError:
        for reader in self._readers:
            reader.join(0.2)
        words = self.said.strip()[-_LAST_WORDS:] or "it said nothing"
        return LabError(
            f"{self.name} on {self._machine.name} {what}: {words}\nit was: {' '.join(self._argv)}"
        )

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                try:
                    self._lines.append(json.loads(line))
                except ValueError:
                    self._said += line
                self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _read_words(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said += line
