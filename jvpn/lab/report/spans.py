"""What lasted from when to when: the timeline's steps, states, and the active transport, out of what a result lists."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from jvpn.lab.scenario.result import Mark, Result, StateStep, Transport

#: What a result's series count together.
BIN_S: Final = 0.1
CLIENT: Final = "client"


@dataclass(frozen=True, slots=True)
class Span:
    """From start to end, seconds, within the run; `text` stands on it, `more` is told of it."""

    start_s: float
    end_s: float
    kind: str
    text: str
    more: str


def until(result: Result) -> float:
    """Where the run's time axis ends, seconds, above zero: with the last bin of traffic, where there was any. A run's
    own duration is longer, by what it takes to set up and to gather."""
    bins = [at + BIN_S for series in result.series.values() for at in series.at_s]
    marks = [mark.at_s for mark in result.marks]
    told = [*map(_at, result.states), *map(_at, result.transports)]
    return max([BIN_S, *marks, *(bins or told)])


def steps(result: Result) -> list[Span]:
    """A span for each fault and attack, to its stop or the run's end, and for each other step that is stopped; what
    happens at once has no length."""
    end_s = until(result)
    spans = []
    for number, mark in enumerate(result.marks):
        if mark.what == "stop" and _begun(result.marks[:number], mark):
            continue
        otherwise_s = end_s if mark.what in ("fault", "attack") else mark.at_s
        last = _stopped(result.marks[number + 1 :], mark, otherwise_s)
        lasting = f"{mark.at_s:.2f} to {last:.2f} s" if last > mark.at_s else f"{mark.at_s:.2f} s"
        spans.append(Span(mark.at_s, last, mark.what, mark.text, f"{mark.text}: {lasting}"))
    return spans


def _begun(before: Sequence[Mark], stop: Mark) -> bool:
    return bool(stop.name) and any(mark.name == stop.name and mark.what != "stop" for mark in before)


def _stopped(after: Sequence[Mark], mark: Mark, otherwise_s: float) -> float:
    if not mark.name:
        return otherwise_s
    return next(
        (later.at_s for later in after if later.what == "stop" and later.name == mark.name), otherwise_s
    )


def states(result: Result) -> dict[str, list[Span]]:
    """By who tells it, the client first: the state it was in, all along the run. Of several gateways one lane: a
    session has one state, and whose it is stands with it."""
    ours = [change for change in result.states if change.who == CLIENT]
    theirs = [change for change in result.states if change.who != CLIENT]
    gateways = {change.who for change in theirs}
    name = gateways.pop() if len(gateways) == 1 else "gateways"
    lanes = {CLIENT: sorted(ours, key=_at), name: sorted(theirs, key=_by_version)}
    return {
        who: _states(lane, until(result), bool(gateways) and who != CLIENT)
        for who, lane in lanes.items()
        if lane
    }


def _by_version(change: StateStep) -> tuple[float, int]:
    return change.at_s, change.version


def _at(entry: StateStep | Transport) -> float:
    return entry.at_s


def _states(changes: list[StateStep], end_s: float, name_them: bool) -> list[Span]:
    spans = []
    if changes[0].at_s > 0:
        spans.append(_span(0.0, changes[0].at_s, changes[0].from_, "", "since before the run"))
    for change, later in zip_longest(changes, changes[1:]):
        last = later.at_s if later else end_s
        if last > 0:
            who = change.who if name_them else ""
            spans.append(_span(max(change.at_s, 0.0), last, change.to, who, change.reason))
    return spans


def _span(start_s: float, end_s: float, state: str, who: str, why: str) -> Span:
    text = f"{state} at {who}" if who else state
    return Span(start_s, end_s, state, text, f"{text} {start_s:.3f} to {end_s:.3f} s: {why}")


def transports(result: Result) -> dict[str, list[Span]]:
    """By device: when it carried the session."""
    lanes: dict[str, list[Span]] = {}
    entries = sorted(result.transports, key=_at)
    for entry, later in zip_longest(entries, entries[1:]):
        last = later.at_s if later else until(result)
        lane = lanes.setdefault(entry.device or "none", [])
        if last > 0:
            start = max(entry.at_s, 0.0)
            more = f"{entry.device or 'no path'} {start:.3f} to {last:.3f} s, {entry.remote}: {entry.reason}"
            lane.append(Span(start, last, "transport" if entry.device else "none", entry.remote, more))
    return dict(sorted(lanes.items()))
