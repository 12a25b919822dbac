"""One trial after another in a lab that stands: a steady stream, a fault, what the stream saw of it."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from contestants import Contestant, Seen
from mishaps import MISHAPS, Mishap, Scene
from stage import Stage

from jvpn.lab.gauge import GaugeResult, Stream, StreamGauge
from jvpn.lab.namespaces import LabError
from jvpn.lab.running import wait_for

QUIET_S = 0.6
LATE_MS = 20.0
POLL_S = 0.05
STEADY_POLLS = 6
STEADY_SHARE = 0.7
SETTLE_LIMIT_S = 40.0
NS = 1_000_000_000

Run = dict[str, Any]


@dataclass(frozen=True)
class Traffic:
    """`silent`: only the gateway sends."""

    hz: float
    length: int
    tcp: bool = False
    silent: bool = False


TRAFFIC = {
    "1khz": Traffic(1000, 64),
    "5ms": Traffic(200, 64),
    "50mbit": Traffic(50e6 / 8 / 1200, 1200),
    "silent": Traffic(1000, 64, silent=True),
    "tcp": Traffic(200, 1000, tcp=True),
}


class Flow:
    """Whether a gauge's stream runs at its pace, in each direction that is to."""

    def __init__(self, gauge: StreamGauge, traffic: Traffic) -> None:
        self._gauge = gauge
        self._ends = slice(1, 2) if traffic.silent else slice(0, 2)
        self._least = traffic.hz * POLL_S * STEADY_POLLS * STEADY_SHARE

    def steady(self, limit_s: float) -> bool:
        """Wait until it does; False when `limit_s` is over first."""
        until = time.monotonic() + limit_s
        seen = [self._gauge.counts()]
        while time.monotonic() < until:
            time.sleep(POLL_S)
            seen = [*seen[-STEADY_POLLS:], self._gauge.counts()]
            gained = [now - then for now, then in zip(seen[-1], seen[0], strict=True)][self._ends]
            if len(seen) > STEADY_POLLS and min(gained) >= self._least:
                return True
        return False


@dataclass(frozen=True)
class Marks:
    """When the fault struck and what belongs to it, CLOCK_MONOTONIC ns; `held` when it was over."""

    t0_ns: int
    t1_ns: int
    held_ns: int | None
    recovered: bool
    handshakes: int
    notes: Seen


class Trials:
    """Trials of one fault under one kind of traffic. `say` is told of each."""

    def __init__(self, stage: Stage, contestant: Contestant, fault: str, traffic: str, rtt_ms: float) -> None:
        self._stage, self._network = stage, stage.network
        self._contestant = contestant
        self._mishap: Mishap = MISHAPS[fault]
        self._traffic = TRAFFIC[traffic]
        self._rtt_ms = rtt_ms
        self._names = {"system": contestant.name, "rtt_ms": rtt_ms, "fault": fault, "traffic": traffic}

    def run(self, number: int) -> list[Run]:
        """LabError when the system does not come back; what was measured until then is lost."""
        network, traffic = self._network, self._traffic
        first = secrets.randbelow(5_000)
        with (
            self._restored(),
            StreamGauge(
                network.client, network.gateway, self._contestant.system.server,
                hz=traffic.hz, datagram_bytes=traffic.length, tcp=traffic.tcp,
            ) as gauge,
        ):  # fmt: skip
            if traffic.silent:
                gauge.hush_client()
            flow = Flow(gauge, traffic)
            marks = [self._one(flow, first + n, first=n == 0) for n in range(number)]
            seen = gauge.stop()
        return [self._judge(mark, seen) for mark in marks]

    @contextmanager
    def _restored(self) -> Iterator[None]:
        try:
            yield
        finally:
            for link in self._network:
                link.heal()
                link.carrier_up()
                self._stage.links((link, True))
                with suppress(LabError):
                    self._network.nat.disable(link)

    def _one(self, flow: Flow, number: int, *, first: bool) -> Marks:
        contestant, mishap = self._contestant, self._mishap
        self._settle(flow, alone=mishap.alone)
        mishap.prepare(self._scene(number, first=first))
        self._settle(flow, alone=mishap.alone)
        scene = self._scene(number, first=first)
        handshakes, wall_ms = contestant.handshakes(), round(time.time() * 1000)
        t0_ns, held_ns = time.monotonic_ns(), None
        mishap.strike(scene)
        if mishap.hold_s:
            time.sleep(mishap.hold_s)
            held_ns = time.monotonic_ns()
            mishap.mend(scene)
        time.sleep(mishap.watch_s)
        recovered = flow.steady(mishap.limit_s)
        t1_ns = time.monotonic_ns()
        made = contestant.handshakes() - handshakes
        notes = contestant.notes(wall_ms)
        if not mishap.hold_s:
            mishap.mend(scene)
        return Marks(t0_ns, t1_ns, held_ns, recovered, made, notes)

    def _scene(self, number: int, *, first: bool) -> Scene:
        struck = self._network[self._contestant.active()]
        other = next(link for link in self._network if link is not struck)
        return Scene(self._stage, self._contestant, struck, other, number, first)

    def _settle(self, flow: Flow, *, alone: bool) -> None:
        """Wait until all is well, and for a moment longer."""
        name = self._contestant.name
        if not flow.steady(SETTLE_LIMIT_S):
            raise LabError(f"{name}: the stream did not come back within {SETTLE_LIMIT_S:g} s")
        wait_for(f"{name} to be ready", lambda: self._contestant.ready(alone=alone), SETTLE_LIMIT_S)
        time.sleep(QUIET_S)

    def _judge(self, marks: Marks, seen: GaugeResult) -> Run:
        ways = {"down": seen.down} if self._traffic.silent else {"up": seen.up, "down": seen.down}
        from_ns = marks.held_ns or marks.t0_ns
        gaps = {way: _silence_ms(stream, marks) for way, stream in ways.items()}
        before_ns = marks.t0_ns - round(QUIET_S * NS)
        run: Run = {
            **self._names,
            "at": round(time.time()),
            "gap_ms": round(max(gaps.values()), 1),
            **{f"gap_{way}_ms": round(gap, 1) for way, gap in gaps.items()},
            "before_ms": round(_worst(ways, lambda s: s.longest_silence_ms(before_ns, marks.t0_ns)), 1),
            "stall_ms": round(_worst(ways, lambda s: _own_stall_ms(s, from_ns, marks.t1_ns)), 1),
            "recovered": marks.recovered,
            "handshakes": int(marks.handshakes > 0) if marks.handshakes > 1_000 else marks.handshakes,
            **marks.notes,
        }
        if not self._traffic.tcp:
            start_ns = marks.t0_ns - round(self._rtt_ms * 1e6)
            for way, stream in ways.items():
                run[f"lost_{way}"] = stream.lost_between(start_ns, marks.t1_ns)
            run["lost"] = sum(stream.lost_between(start_ns, marks.t1_ns) for stream in ways.values())
            run["lost_before"] = sum(stream.lost_between(before_ns, start_ns) for stream in ways.values())
            run["late"] = sum(_late(s, start_ns, marks.t1_ns, self._rtt_ms) for s in ways.values())
            run["sent"] = sum(
                int(np.sum((s.sent_ns >= start_ns) & (s.sent_ns < marks.t1_ns))) for s in ways.values()
            )
        return run


def _worst(ways: dict[str, Stream], figure: Callable[[Stream], float]) -> float:
    return max(figure(stream) for stream in ways.values())


def _silence_ms(stream: Stream, marks: Marks) -> float:
    if marks.held_ns is None:
        return stream.longest_silence_ms(marks.t0_ns, marks.t1_ns)
    arrivals = np.sort(stream.arrival_ns)
    inside = arrivals[(arrivals > marks.held_ns) & (arrivals <= marks.t1_ns)]
    return float(np.diff(np.concatenate(([marks.held_ns], inside, [marks.t1_ns]))).max() / 1e6)


def _own_stall_ms(stream: Stream, t0_ns: int, t1_ns: int) -> float:
    """The longest time for which the sender itself did not get to send: the machine's doing."""
    sent = stream.sent_ns[(stream.sent_ns >= t0_ns) & (stream.sent_ns <= t1_ns)]
    return float(np.diff(sent).max() / 1e6) if len(sent) > 1 else 0.0


def _late(stream: Stream, t0_ns: int, t1_ns: int, rtt_ms: float) -> int:
    within = (stream.departure_ns >= t0_ns) & (stream.departure_ns < t1_ns)
    return int(np.count_nonzero(stream.delay_ms[within] > rtt_ms / 2 + LATE_MS))
