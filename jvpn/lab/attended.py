"""A machine with its attendant: what runs there is started, asked and ended from here."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jvpn.lab.answers import answer_of
from jvpn.lab.attendant import GRACE_S
from jvpn.lab.backends.machine import Machine
from jvpn.lab.namespaces import LabError
from jvpn.observability.admin import AdminError


class Attended:
    """Begins with the constructor; ``greet`` waits until it answers. Methods may be called from any thread.

    LabError when the attendant is gone, AdminError for what it refuses.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._lock = threading.Lock()
        self._process = machine.popen([*machine.python, "-m", "jvpn.lab.attendant"])
        #: The machine's wall clock minus this process's CLOCK_MONOTONIC, from ``greet`` on.
        self.wall_ns = 0

    def greet(self) -> None:
        """Wait for its first answer, and know its clock."""
        clock = self._request({"op": "clock"})
        self.wall_ns = clock["wall_ns"] - clock["monotonic_ns"] + self.machine.clock_offset_ns()

    def start(self, name: str, argv: Sequence[str], log: Path) -> int:
        """A process of that name; its pid there."""
        pid: int = self._request({"op": "start", "name": name, "argv": list(argv), "log": str(log)})
        return pid

    def running(self, name: str) -> bool:
        return bool(self._request({"op": "state", "name": name})["running"])

    def status(self, name: str) -> int | None:
        """Its exit status, None as long as it runs."""
        found: int | None = self._request({"op": "state", "name": name})["status"]
        return found

    def signal(self, signal_name: str, *, name: str = "", pid: int = 0) -> None:
        """To a process by its name, or any of the machine by its pid."""
        self._request({"op": "signal", "signal_name": signal_name, "name": name, "pid": pid})

    def crash(self, name: str) -> None:
        """It and all that came of it die at once."""
        self._request({"op": "crash", "name": name})

    def memory_kb(self) -> int:
        """Resident memory of everything that was started there."""
        found: int = self._request({"op": "memory"})
        return found

    def ask(self, run_dir: Path, command: str, **more: object) -> Any:
        """What the process with that run directory answers. AdminError when it does not, or refuses."""
        return self._request({"op": "ask", "run_dir": str(run_dir), "request": {"command": command, **more}})

    def _request(self, request: Mapping[str, Any]) -> Any:
        with self._lock:
            assert self._process.stdin is not None
            with contextlib.suppress(
                OSError
            ):  # a dead attendant is reported by answer_of, with its last words
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
            answer = json.loads(answer_of(self._process, f"the attendant of {self.machine.name}"))
        if "error" in answer:
            raise AdminError(answer["error"])
        return answer["ok"]

    def close(self) -> None:
        """End everything that was started there. LabError when something does not end."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(6 * GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise LabError(f"what runs on {self.machine.name} does not end") from None
        finally:
            for stream in (self._process.stdout, self._process.stderr):
                if stream is not None:
                    stream.close()
