"""A bulk transfer of a scenario: iperf3 between two machines, second by tenth of a second."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from typing import Any, Final

from jvpn.lab.answers import answer_of
from jvpn.lab.backends.machine import Machine
from jvpn.lab.scenario.expressions import Value
from jvpn.lab.scenario.model import Traffic

INTERVAL_S: Final = 0.1
PORTS_FROM: Final = 5201
_END_S: Final = 20.0


class Bulk:
    """Running from the constructor's return until ``stop``. LabError when iperf3 does not start.

    The client's side says when it began, by the server's report; its sums come from whoever receives.
    """

    def __init__(
        self, traffic: Traffic, client: Machine, server: Machine, address: str, turn: int, seconds: int
    ) -> None:
        self._traffic = traffic
        port = str(PORTS_FROM + turn)
        limit = str(seconds + 60)
        self._server = server.popen(
            ["timeout", limit, "iperf3", "-s", "-1", "-B", address, "-p", port, "--forceflush"]
        )
        for _ in range(2):  # a line of dashes, then "Server listening"
            answer_of(self._server, f"iperf3 on {server.name}")
        command = ["timeout", limit, "iperf3", "-c", address, "-p", port, "-t", str(seconds)]
        command += ["-i", f"{INTERVAL_S:g}", "--json"]
        command += ["--reverse"] if traffic.reverse else []
        command += ["-u", "-b", f"{traffic.mbit}M", "-l", "1200"] if traffic.mbit else []
        self.command = f"{client.name}# {' '.join(command)}"
        self._client = client.popen(command)
        self.started_ns = time.monotonic_ns()

    def wait(self) -> Transferred:
        """Its end, which is its own: it has been told how many seconds to send."""
        try:
            out, err = self._client.communicate(timeout=_END_S)
        except subprocess.TimeoutExpired:
            # What hangs in a dead connection has its timeout; here nobody waits for it.
            self._client.kill()
            out, err = self._client.communicate()
        self.close()
        return Transferred(self.started_ns, _parsed(out), err.decode(errors="replace").strip())

    def close(self) -> None:
        for process in (self._client, self._server):
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()


def _parsed(out: bytes) -> dict[str, Any]:
    try:
        found = json.loads(out)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class Transferred:
    """A transfer's record, as iperf3's JSON has it; intervals begin at *started_ns*."""

    def __init__(self, started_ns: int, report: dict[str, Any], error: str) -> None:
        self.error = str(report.get("error", "")) or error
        self._sums = report.get("end", {})
        self.intervals = [
            (
                started_ns + round(one["sum"]["start"] * 1e9),
                started_ns + round(one["sum"]["end"] * 1e9),
                one["sum"]["bits_per_second"] / 1e6,
            )
            for one in report.get("intervals", ())
        ]

    def measure(self, name: str, start_ns: int, end_ns: int) -> Value:
        """One of `measures.streams.OF_TRANSFER`."""
        if name == "ok":
            return not self.error
        if name == "retransmits":
            found = self._sums.get("sum_sent", {}).get("retransmits")
            return int(found) if found is not None else None
        within = [one for one in self.intervals if one[0] < end_ns and one[1] > start_ns]
        if not within:
            return None
        if name == "mbit_s":
            seconds = sum(end - start for start, end, _ in within)
            return float(round(sum((end - start) * rate for start, end, rate in within) / seconds, 2))
        return round(_longest_ns(within) / 1e6, 1)


def _longest_ns(intervals: list[tuple[int, int, float]]) -> int:
    """The longest run of intervals in which nothing went."""
    longest = silent = 0
    for start_ns, end_ns, rate in intervals:
        silent = silent + end_ns - start_ns if rate == 0 else 0
        longest = max(longest, silent)
    return longest
