"""Everything a run of a scenario left behind, all times on this process's CLOCK_MONOTONIC, for measures to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from jvpn.lab.backends.topology import Topology
from jvpn.lab.gauge import GaugeResult
from jvpn.lab.scenario.expressions import NONE, Edge, ExpressionError, Value, Window

NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Span:
    start_ns: int
    end_ns: int


@dataclass(slots=True)
class Mark:
    """One line of the timeline as it happened; *end_ns* None where nothing was stopped. *text* is for people."""

    label: str
    what: Literal["fault", "attack", "do", "stop"]
    text: str
    start_ns: int
    end_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """One event of *who* ("client", "gw1", …), decoded, and when it was told."""

    at_ns: int
    who: str
    event: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node answers to `status`, and a gateway to `sessions`; empty when it does not. The resident memory of all
    its processes, in KiB."""

    running: bool
    status: Mapping[str, Any]
    sessions: Sequence[Mapping[str, Any]] = ()
    memory_kb: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What client and gateways answer at one moment."""

    answers: Mapping[str, Answer]

    def status(self, who: str) -> Mapping[str, Any]:
        return self.answers[who].status if who in self.answers else {}

    def running(self, who: str) -> bool:
        return who in self.answers and self.answers[who].running

    def sessions(self) -> list[Mapping[str, Any]]:
        """Of all gateways."""
        return [row for answer in self.answers.values() for row in answer.sessions]

    def session(self) -> Mapping[str, Any] | None:
        """The gateways' row of the client's session."""
        ours = self.status("client").get("session")
        return next((row for row in self.sessions() if row["session_id"] == ours), None)

    def owner(self) -> str:
        """Who of those that answer has a session: a gateway's name, "none", or several with a comma."""
        return ",".join(name for name, answer in self.answers.items() if answer.sessions) or NONE

    def counter(self, who: str, name: str) -> int | None:
        """0 where it has not been counted, None where nobody answers; of "gateway" the sum over all who do."""
        found = [status.get("counters", {}) for one in self._names(who) if (status := self.status(one))]
        return sum(int(counters.get(name, 0)) for counters in found) if found else None

    def memory_kb(self, who: str) -> int | None:
        """Of "gateway" that of all of them; None where no process is left."""
        return sum(self.answers[one].memory_kb for one in self._names(who) if one in self.answers) or None

    def any_gateway(self) -> bool:
        """Whether any gateway answers."""
        return any(self.status(name) for name in self._names("gateway"))

    def _names(self, who: str) -> list[str]:
        return [other for other in self.answers if other != "client"] if who == "gateway" else [who]


class Transfer(Protocol):
    """A bulk transfer's record."""

    def measure(self, name: str, start_ns: int, end_ns: int) -> Value:
        """One of `measures.streams.OF_TRANSFER`."""


@dataclass(slots=True)
class Record:
    """*summaries*: of scripts, by mark; *tallies*: of captures, by the router's device; *findings*: the auditor's;
    *logs*: of nodes, by name; *pace*: real seconds to one of the scenario's."""

    topology: Topology
    devices: Mapping[str, str]
    start_ns: int
    end_ns: int
    before: Snapshot
    after: Snapshot
    marks: Sequence[Mark] = ()
    streams: Mapping[str, GaugeResult] = field(default_factory=dict)
    transfers: Mapping[str, Transfer] = field(default_factory=dict)
    events: Sequence[Told] = ()
    findings: Sequence[str] = ()
    summaries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tallies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    logs: Mapping[str, str] = field(default_factory=dict)
    pace: float = 1.0

    def told_by(self, who: str) -> list[Told]:
        """Of "gateway" what all gateways told, in its order."""
        return [
            told for told in self.events if told.who == who or (who == "gateway" and told.who != "client")
        ]

    def uplink_of(self, device: str | None) -> str:
        """ "A" or "B" for a device of the client's, "" for none of them."""
        return next((role[2:] for role, name in self.devices.items() if name == device), "")

    def span(self, window: Window | None) -> Span:
        """The time that a measure is asked about. Raises ExpressionError where it is empty."""
        if window is None:
            return Span(self.start_ns, self.end_ns)
        if window.whole:
            assert window.start is not None
            mark = self._mark(window.start.mark)
            found = Span(mark.start_ns, mark.end_ns if mark.end_ns is not None else self.end_ns)
        else:
            found = Span(
                self._moment(window.start, self.start_ns),
                self._moment(window.end, self.end_ns),
            )
        # A script that nobody stopped ends after the scenario has.
        found = Span(found.start_ns, min(found.end_ns, self.end_ns))
        if found.end_ns <= found.start_ns:
            raise ExpressionError("the time asked about ends before it begins")
        return found

    def _moment(self, edge: Edge | None, otherwise_ns: int) -> int:
        if edge is None:
            return otherwise_ns
        if not edge.mark:
            return self.start_ns + round(edge.at_s * self.pace * NS)
        mark = self._mark(edge.mark)
        if not edge.at_end:
            return mark.start_ns
        return mark.end_ns if mark.end_ns is not None else self.end_ns

    def _mark(self, label: str) -> Mark:
        found = next((mark for mark in self.marks if mark.label == label), None)
        if found is None:
            raise ExpressionError(f"{label} has not happened")
        return found
