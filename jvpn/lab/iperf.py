"""One bounded iperf3 run between two namespaces, with a live figure per interval as the receiver sees it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jvpn.lab.namespaces import LabError, Namespace

LISTEN_TIMEOUT_S = 10.0
# "[  5]   0.00-0.50   sec  3.1 MBytes  52000 Kbits/sec  …"; "[SUM]" when there are several streams.
_LINE = re.compile(r"^\[\s*(\d+|SUM)\]\s+([\d.]+)-([\d.]+)\s+sec\s+\S+ \w+\s+([\d.]+) Kbits/sec\s*(.*)$")


@dataclass(frozen=True)
class Interval:
    """``gbit_s`` of payload delivered from ``start_s`` to ``end_s`` of the run; seen at ``seen_ns`` (monotonic)."""

    seen_ns: int
    start_s: float
    end_s: float
    gbit_s: float


@dataclass(frozen=True)
class IperfResult:
    """``ok``: both sides ended well. ``gbit_s`` and ``intervals`` are the receiver's; ``error`` says what failed."""

    ok: bool
    gbit_s: float
    retransmits: int
    intervals: tuple[Interval, ...]
    error: str

    def alive(self, after_ns: int) -> bool:
        """Whether the run ended well and bytes still came in intervals that lie wholly after *after_ns*."""
        later = [i for i in self.intervals if i.seen_ns - (i.end_s - i.start_s) * 1e9 >= after_ns]
        return self.ok and sum(i.gbit_s for i in later) > 0.0


class Iperf:
    """A TCP run of *seconds* from *client* to *address* in *server*; *reverse*: the server sends.

    *on_interval* is called from a reader thread with each ``Interval``. *extra* goes to the client's command line
    (e.g. ``("-u", "-b", "200M", "-l", "1200")`` for UDP). The run is killed *margin_s* after its time.
    """

    def __init__(
        self, client: Namespace, server: Namespace, address: str, *, seconds: int = 5, reverse: bool = False,
        port: int = 5201, interval_s: float = 0.5, streams: int = 1, extra: Sequence[str] = (),
        on_interval: Callable[[Interval], None] | None = None, margin_s: float = 20.0,
    ) -> None:  # fmt: skip
        self._client_ns, self._server_ns = client, server
        self._reverse = reverse
        self._several = streams > 1
        self._on_interval = on_interval
        self._deadline_s = seconds + margin_s
        shared = ("-p", str(port), "-i", f"{interval_s:g}", "-f", "k", "--forceflush")
        self._server_argv = ["iperf3", "-s", "-1", *shared]
        direction = ("-R",) if reverse else ()
        self._client_argv = [
            "iperf3", "-c", address, "-t", str(seconds), "-P", str(streams), *shared, *direction, *extra,
        ]  # fmt: skip
        self.intervals: list[Interval] = []
        self._totals: dict[str, tuple[float, str]] = {}
        self._said: dict[str, list[str]] = {"client": [], "server": []}
        self._readers: list[threading.Thread] = []

    def start(self) -> Iperf:
        """Start both sides; returns when the client has been started against a listening server."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "bufsize": 1}
        self._server = self._server_ns.popen(self._server_argv, **pipes)
        listening = threading.Event()
        self._read("server", self._server, listening)
        if not listening.wait(LISTEN_TIMEOUT_S) or self._server.poll() is not None:
            self.kill()
            raise LabError(f"the iperf3 server did not start: {' '.join(self._said['server']) or 'no words'}")
        self._client = self._client_ns.popen(self._client_argv, **pipes)
        self._read("client", self._client, threading.Event())
        self._started_s = time.monotonic()
        return self

    def wait(self) -> IperfResult:
        """The result, when both sides have ended or the time is over."""
        deadline_s = self._started_s + self._deadline_s
        errors = []
        for name, process in (("client", self._client), ("server", self._server)):
            try:
                process.wait(max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                errors.append(f"{name} did not end in {self._deadline_s:g} s")
            if name == "client" and process.returncode != 0:
                break  # the server would wait for a client that never comes
        self.kill()
        for reader in self._readers:
            reader.join()
        errors += [line for side in self._said.values() for line in side if "error" in line.lower()]
        if self._client.returncode != 0 and not errors:
            errors.append(f"the client ended with status {self._client.returncode}")
        gbit_s = self._totals.get("receiver", (0.0, ""))[0]
        retransmits = self._totals.get("sender", (0.0, ""))[1].split()
        return IperfResult(
            ok=not errors,
            gbit_s=gbit_s,
            retransmits=int(retransmits[0]) if retransmits and retransmits[0].isdigit() else 0,
            intervals=tuple(self.intervals),
            error="; ".join(errors),
        )

    def run(self) -> IperfResult:
        """``start`` and ``wait``."""
        return self.start().wait()

    def kill(self) -> None:
        """End both sides now. ``wait`` then reports what was measured, with an error."""
        for process in (getattr(self, "_client", None), self._server):
            if process is not None and process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _read(self, side: str, process: subprocess.Popen[str], listening: threading.Event) -> None:
        def follow() -> None:
            assert process.stdout is not None
            with process.stdout as lines:
                for line in lines:
                    self._said[side].append(line.strip())
                    if "listening" in line:
                        listening.set()
                    self._take(side, line)
            listening.set()

        reader = threading.Thread(target=follow, name=f"iperf3-{side}", daemon=True)
        reader.start()
        self._readers.append(reader)

    def _take(self, side: str, line: str) -> None:
        match = _LINE.match(line)
        if match is None or (self._several and match[1] != "SUM"):
            return
        gbit_s, rest = float(match[4]) / 1e6, match[5]
        for role in ("sender", "receiver"):
            if rest.endswith(role):
                if side == "client":  # it prints both sides' totals
                    self._totals[role] = (gbit_s, rest)
                return
        if (side == "client") == self._reverse:
            interval = Interval(time.monotonic_ns(), float(match[2]), float(match[3]), gbit_s)
            self.intervals.append(interval)
            if self._on_interval is not None:
                self._on_interval(interval)
