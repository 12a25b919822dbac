"""From a run's record to its result: assertions judged, and what the report draws."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from jvpn.lab.gauge import GaugeResult, Times
from jvpn.lab.scenario import measures
from jvpn.lab.scenario import result as results
from jvpn.lab.scenario.expressions import ExpressionError, Value
from jvpn.lab.scenario.model import Assertion, Scenario
from jvpn.lab.scenario.record import NS, Record
from jvpn.lab.scenario.transfers import Transferred

BIN_S: Final = 0.1


def assertions(scenario: Scenario, record: Record, time_factor: float) -> list[results.Assertion]:
    """Each with what was measured; one that cannot be judged has not passed, and its value says why."""
    return [_judged(assertion, record, time_factor) for assertion in scenario.assertions]


def _judged(assertion: Assertion, record: Record, time_factor: float) -> results.Assertion:
    text = assertion.text
    try:
        verdict = assertion.expression.judge(lambda measure: measures.value(record, measure), time_factor)
    except ExpressionError as wrong:
        return results.Assertion(text=text, value=str(wrong), passed=False)
    if verdict.scaled:
        text = f"{text} (limit × {time_factor:g} on this machine)"
    value = "nothing to measure" if verdict.value is None and not verdict.passed else verdict.value
    return results.Assertion(text=text, value=value, passed=verdict.passed, at_most=verdict.at_most)


def measured(scenario: Scenario, record: Record) -> dict[str, Value]:
    """Every measure that the assertions speak of, by its text; logs apart, which are files of their own."""
    found: dict[str, Value] = {}
    for assertion in scenario.assertions:
        for measure in assertion.expression.measures:
            if measure.path[0] == "said":
                continue
            try:
                found[str(measure)] = measures.value(record, measure)
            except ExpressionError:
                found[str(measure)] = None
    return found


def series(scenario: Scenario, record: Record) -> dict[str, results.Series]:
    """What each stream brought, by "STREAM.up" and "STREAM.down"; a bulk transfer's own intervals."""
    found = {}
    size = {traffic.name: traffic.bytes for traffic in scenario.traffic}
    for name, gauge in record.streams.items():
        for way, arrivals in _arrivals(gauge).items():
            found[f"{name}.{way}"] = _binned(arrivals, size[name], record)
    for name, transfer in record.transfers.items():
        if isinstance(transfer, Transferred):
            found[name] = results.Series(
                at_s=[round((start - record.start_ns) / NS, 3) for start, _, _ in transfer.intervals],
                mbit_s=[round(rate, 3) for _, _, rate in transfer.intervals],
            )
    return found


def _arrivals(gauge: GaugeResult) -> dict[str, Times]:
    return {"up": gauge.up.arrival_ns, "down": gauge.down.arrival_ns}


def _binned(arrivals: Times, size: int, record: Record) -> results.Series:
    bins = max(1, round((record.end_ns - record.start_ns) / NS / BIN_S))
    counts, edges = np.histogram((arrivals - record.start_ns) / NS, bins=bins, range=(0.0, bins * BIN_S))
    return results.Series(
        at_s=[round(float(edge), 3) for edge in edges[:-1]],
        mbit_s=[round(int(count) * size * 8 / BIN_S / 1e6, 4) for count in counts],
    )


def marks(record: Record) -> list[results.Mark]:
    """The timeline as it happened."""
    return [
        results.Mark(at_s=_at_s(record, mark.start_ns), what=mark.what, text=mark.text, name=mark.label)
        for mark in sorted(record.marks, key=lambda mark: mark.start_ns)
        if mark.start_ns <= record.end_ns
    ]


def states(record: Record) -> list[results.StateStep]:
    """Every change that client and gateways told."""
    return [
        results.StateStep(
            at_s=_at_s(record, told.at_ns),
            who=told.who,
            version=told.event["state_version"],
            from_=told.event["from"],
            to=told.event["to"],
            reason=told.event["reason_code"],
        )
        for told in record.events
        if told.event["event"] == "STATE_CHANGE"
    ]


def transports(record: Record, first: str) -> list[results.Transport]:
    """Which path is active from when on, as the client tells it; *first*: the device at the start."""
    found = [results.Transport(at_s=0.0, device=first)]
    for told in record.told_by("client"):
        if told.event["event"] == "TRANSPORT_SWITCH" and told.at_ns >= record.start_ns:
            path: dict[str, Any] = told.event["new"]
            found.append(
                results.Transport(
                    at_s=_at_s(record, told.at_ns),
                    device=path.get("device", ""),
                    remote=path.get("source", ""),
                    index=path["index"],
                    reason=told.event["reason_code"],
                )
            )
    return found


def _at_s(record: Record, at_ns: int) -> float:
    return round((at_ns - record.start_ns) / NS, 3)
