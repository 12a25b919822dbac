"""A steady UDP stream in both directions between two namespaces, to see silence, loss and lateness from outside.

All times are CLOCK_MONOTONIC nanoseconds, which namespaces of one host share with the calling process: note
``time.monotonic_ns()`` at a fault and ask ``longest_silence_ms`` around it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from jvpn.lab.answers import answer_of
from jvpn.lab.namespaces import LabError, Namespace

Times = npt.NDArray[np.int64]
#: Who is told to end and does not is killed.
END_TIMEOUT_S = 20.0
#: What an end reads from its own clock; when a datagram departed it has from the other end.
_OWN_CLOCK = ("sent_ns", "arrival_ns", "skipped_at_ns")


@dataclass(frozen=True)
class Stream:
    """One direction: what one end sent and what the other saw of it.

    ``sent_ns[i]`` is the departure of sequence number i. The arrival arrays run in order of arrival: ``seq``,
    ``departure_ns``, ``arrival_ns``. ``skipped_ticks[k]`` datagrams were not sent at ``skipped_at_ns[k]`` because the
    sender itself was stalled; ``refused`` is how many the sender's kernel would not take (they count as sent).
    """

    sent_ns: Times
    seq: Times
    departure_ns: Times
    arrival_ns: Times
    skipped_at_ns: Times
    skipped_ticks: Times
    refused: int

    @property
    def sent(self) -> int:
        return len(self.sent_ns)

    @property
    def received(self) -> int:
        """Distinct datagrams that arrived."""
        return len(np.unique(self.seq))

    @property
    def lost(self) -> int:
        """Sent and not arrived (yet: in a snapshot those under way count too)."""
        return self.sent - self.received

    @property
    def duplicated(self) -> int:
        return len(self.seq) - self.received

    @property
    def reordered(self) -> int:
        """Arrivals that a datagram with a higher number had overtaken."""
        if len(self.seq) == 0:
            return 0
        return int(np.count_nonzero(self.seq < np.maximum.accumulate(self.seq)))

    @property
    def delay_ms(self) -> npt.NDArray[np.float64]:
        """One-way time of each arrival."""
        return (self.arrival_ns - self.departure_ns) / 1e6

    def late(self, limit_ms: float) -> int:
        """Arrivals that took longer than *limit_ms*."""
        return int(np.count_nonzero(self.delay_ms > limit_ms))

    def lost_between(self, t0_ns: int, t1_ns: int) -> int:
        """Datagrams sent in [t0, t1) that never arrived."""
        first, last = np.searchsorted(self.sent_ns, (t0_ns, t1_ns))
        arrived = np.unique(self.seq)
        return int(last - first - np.count_nonzero((arrived >= first) & (arrived < last)))

    def skipped_between(self, t0_ns: int, t1_ns: int) -> int:
        """Datagrams that the stalled sender left out in [t0, t1)."""
        inside = (self.skipped_at_ns >= t0_ns) & (self.skipped_at_ns < t1_ns)
        return int(self.skipped_ticks[inside].sum())

    def longest_silence_ms(self, t0_ns: int, t1_ns: int) -> float:
        """Longest time without an arrival in [t0, t1], nothing subtracted.

        A gap that is under way at t0 counts from the last arrival before it; one that goes on at t1 counts up to t1.
        """
        if t1_ns <= t0_ns:
            raise ValueError("the window must end after it begins")
        arrivals = np.sort(self.arrival_ns)
        first, last = np.searchsorted(arrivals, t0_ns, "right"), np.searchsorted(arrivals, t1_ns, "right")
        before = arrivals[first - 1] if first > 0 else t0_ns
        edges = np.concatenate(([before], arrivals[first:last], [t1_ns]))
        return float(np.diff(edges).max() / 1e6)


@dataclass(frozen=True)
class GaugeResult:
    """``up`` goes from the client's namespace to the server's, ``down`` back."""

    up: Stream
    down: Stream

    def longest_silence_ms(self, t0_ns: int, t1_ns: int) -> dict[str, float]:
        """By direction; see ``Stream.longest_silence_ms``."""
        return {
            "up": self.up.longest_silence_ms(t0_ns, t1_ns),
            "down": self.down.longest_silence_ms(t0_ns, t1_ns),
        }


class GaugeEnd:
    """A `jvpn.lab.gauge_end` that runs somewhere, over its pipes; *name* says in errors which. *offset_ns*: the clock
    there minus the one here.

    LabError when it has died, with its last words.
    """

    def __init__(self, process: subprocess.Popen[bytes], name: str, offset_ns: int = 0) -> None:
        self._name = name
        self._process = process
        self.offset_ns = offset_ns
        self.port: int = self._header()["port"]

    def _header(self) -> dict[str, Any]:
        header: dict[str, Any] = json.loads(answer_of(self._process, f"the stream gauge {self._name}"))
        return header

    def ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # a dead end is reported by _header, with its last words
            self._process.stdin.write(command.encode() + b"\n")
            self._process.stdin.flush()
        return self._header()

    def dump(self) -> dict[str, Any]:
        header = self.ask("dump")
        assert self._process.stdout is not None
        for name, length in header.pop("arrays"):
            values = np.frombuffer(self._process.stdout.read(length * 8), dtype=np.int64)
            header[name] = values - self.offset_ns if name in _OWN_CLOCK else values
        return header

    def end(self) -> None:
        end(self._process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Close the stdin of a `jvpn.lab.gauge_end`, and wait until it has ended."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _ended_in(namespace: Namespace, *args: str) -> GaugeEnd:
    process: subprocess.Popen[bytes] = namespace.popen_module(
        "jvpn.lab.gauge_end", *args,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    return GaugeEnd(process, f"in {namespace.label}")


class Gauge:
    """Two ends of one stream, wherever they run. Usable as a context manager.

    The server's end sends to wherever the newest datagram came from.
    """

    def __init__(self, client: GaugeEnd, server: GaugeEnd) -> None:
        self._client = client
        self._server = server

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, timeout_s: float = 10.0) -> None:
        """Begin to send; returns when both ends have received. LabError when nothing arrives in *timeout_s*."""
        self._server.ask("start")
        self._client.ask("start")
        deadline = time.monotonic() + timeout_s
        while not (self._server.ask("count")["received"] and self._client.ask("count")["received"]):
            if time.monotonic() > deadline:
                raise LabError(f"the stream gauge saw nothing arrive within {timeout_s:g} s")
            time.sleep(0.005)

    def hush_client(self) -> None:
        """From now on only the server sends."""
        self._client.ask("stop")

    def hush(self) -> None:
        """From now on nobody sends."""
        self._server.ask("stop")
        self._client.ask("stop")

    def counts(self) -> tuple[int, int]:
        """Distinct datagrams received so far: at the server, at the client."""
        return int(self._server.ask("count")["received"]), int(self._client.ask("count")["received"])

    def snapshot(self) -> GaugeResult:
        """What is known by now; the streams go on."""
        ours, theirs = self._client.dump(), self._server.dump()
        return GaugeResult(
            up=_stream(ours, theirs, self._client.offset_ns),
            down=_stream(theirs, ours, self._server.offset_ns),
        )

    def stop(self, drain_s: float = 1.0) -> GaugeResult:
        """Stop sending, wait until all has arrived or *drain_s* is over, and return the whole record."""
        self.hush()
        deadline = time.monotonic() + drain_s
        while time.monotonic() < deadline:
            ours, theirs = self._client.ask("count"), self._server.ask("count")
            if ours["sent"] <= theirs["received"] and theirs["sent"] <= ours["received"]:
                break
            time.sleep(0.01)
        return self.snapshot()

    def close(self) -> None:
        """End both processes."""
        self._client.end()
        self._server.end()


class StreamGauge(Gauge):
    """The running gauge: *hz* datagrams per second each way between *client* and *address* in *server*.

    *address* is one that the server's namespace owns and the client's can reach, tunnelled or not. *client_address* and
    *device* tie the client's socket down. *tcp*: the same over one TCP connection, where silence is a stall.
    LabError when an end cannot start or has died.
    """

    def __init__(
        self, client: Namespace, server: Namespace, address: str, *, port: int = 0, hz: float = 1000.0,
        datagram_bytes: int = 64, client_address: str = "", device: str = "", tcp: bool = False,
    ) -> None:  # fmt: skip
        pace = ("--hz", str(hz), "--bytes", str(datagram_bytes), *(("--tcp",) if tcp else ()))
        anywhere = "::" if ":" in address else "0.0.0.0"
        here = _ended_in(server, "--bind", address, "--port", str(port), *pace)
        there = _ended_in(
            client, "--bind", client_address or anywhere, "--peer", f"{address}:{here.port}",
            *(("--device", device) if device else ()), *pace,
        )  # fmt: skip
        super().__init__(there, here)


def _stream(sender: dict[str, Any], receiver: dict[str, Any], sender_offset_ns: int) -> Stream:
    # The receiver is asked last or first, so it may know datagrams that the sender's record does not hold yet.
    known = receiver["seq"] < len(sender["sent_ns"])
    return Stream(
        sent_ns=sender["sent_ns"],
        seq=receiver["seq"][known],
        departure_ns=receiver["departure_ns"][known] - sender_offset_ns,
        arrival_ns=receiver["arrival_ns"][known],
        skipped_at_ns=sender["skipped_at_ns"],
        skipped_ticks=sender["skipped_ticks"],
        refused=sender["refused"],
    )
