"""A lab machine's attendant: starts processes there, signals them, asks their admin sockets, ends them all with itself.

``python -m jvpn.lab.attendant`` speaks JSON lines, one request on stdin, one answer on stdout, in order. It says
{"ok": …} or {"error": text}. It ends when stdin closes or at SIGTERM; so does everything that it has started and all
that these have started, also what detached itself: orphans come to it (PR_SET_CHILD_SUBREAPER, prctl(2)).

    start   name, argv, log      a process of that name, its output appended to the file; answers its pid
    state   name                 {"running": bool, "status": exit status or None}
    signal  name or pid, signal_name  as "SIGKILL"
    crash   name                 SIGKILL to it, all its descendants and everybody's orphans, as when a host dies
    ask     run_dir, request     what the process with that run directory answers
    memory                       resident memory of all that it has started and what came of that, in KiB
    clock                        {"monotonic_ns", "wall_ns"}
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jvpn.observability.admin import AdminError, ask

PR_SET_CHILD_SUBREAPER = 36
#: How long who is told to end may take: a client says goodbye, a gateway takes its programs off the interfaces.
GRACE_S = 8.0


class Attendant:
    """Answers requests; ``close`` ends everybody."""

    def __init__(self) -> None:
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._operations: dict[str, Callable[..., Any]] = {
            "start": self.start,
            "state": self.state,
            "signal": self.send,
            "crash": self.crash,
            "ask": self.ask,
            "memory": self.memory,
            "clock": self.clock,
        }

    def answer(self, line: bytes) -> dict[str, Any]:
        """To one request."""
        try:
            request = json.loads(line)
            operation = self._operations[request.pop("op")]
            return {"ok": operation(**request)}
        except (KeyError, TypeError, ValueError, OSError, AdminError) as error:
            return {"error": f"{error}" if isinstance(error, AdminError | OSError) else repr(error)}

    def start(self, name: str, argv: list[str], log: str) -> int:
        if self._running(name):
            raise ValueError(f"{name} runs already")
        with Path(log).open("ab") as out:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        self._started[name] = process
        return process.pid

    def state(self, name: str) -> dict[str, Any]:
        running = self._running(name)
        return {"running": running, "status": None if running else self._started[name].returncode}

    def _running(self, name: str) -> bool:
        return name in self._started and self._started[name].poll() is None

    def send(self, signal_name: str, name: str = "", pid: int = 0) -> None:
        if name and not self._running(name):
            raise ValueError(f"{name} does not run")
        os.kill(self._started[name].pid if name else pid, signal.Signals[signal_name])

    def crash(self, name: str) -> list[int]:
        children = _children()
        others = {
            pid
            for other, process in self._started.items()
            if other != name
            for pid in (process.pid, *_below(process.pid, children))
        }
        doomed = [pid for pid in _below(os.getpid(), children) if pid not in others]
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if name in self._started:
            self._started[name].wait()
        return doomed

    def ask(self, run_dir: str, request: dict[str, Any]) -> Any:
        return ask(Path(run_dir), request)

    def memory(self) -> int:
        return sum(_resident_kb(pid) for pid in _below(os.getpid(), _children()))

    def clock(self) -> dict[str, int]:
        return {"monotonic_ns": time.monotonic_ns(), "wall_ns": time.time_ns()}

    def close(self) -> None:
        """The newest first, then whoever is left."""
        for process in reversed(self._started.values()):
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_S)
        until = time.monotonic() + GRACE_S
        while left := list(_below(os.getpid(), _children())):
            if time.monotonic() > until:
                raise TimeoutError(f"processes {left} do not end")
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _reap()
            time.sleep(0.01)


def _children() -> dict[int, list[int]]:
    """Every process's children, by pid (proc_pid_stat(5): the fourth field is the parent)."""
    found: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path("/proc", entry, "stat").read_text()
                found.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    return found


def _below(pid: int, children: dict[int, list[int]]) -> Iterator[int]:
    for child in children.get(pid, ()):
        yield child
        yield from _below(child, children)


def _resident_kb(pid: int) -> int:
    """VmRSS (proc_pid_status(5)); 0 of one that has just ended."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc", str(pid), "status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])
    return 0


def _reap() -> None:
    """Of orphans nobody else asks how they ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        sys.exit(f"attendant: cannot take orphans in: {os.strerror(ctypes.get_errno())}")
    attendant = Attendant()

    def end(*_: object) -> None:
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    try:
        for line in sys.stdin.buffer:
            sys.stdout.buffer.write(json.dumps(attendant.answer(line)).encode() + b"\n")
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        pass
    finally:
        attendant.close()


if __name__ == "__main__":
    main()
