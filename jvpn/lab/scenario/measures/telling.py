"""Measures of what client and gateways tell: events, states, and whether the auditor believes them.

events.gateway.TRANSPORT_SWITCH[hole]          how many events of a kind
events.gateway.STATE_CHANGE.REATTACH_OK        … with a reason
states.client.VOLATILE                         how often a state was entered
states.client.ATTACHED.after_ms[back]          how long after a mark for the first time
audit.accepted, audit.findings                 nothing, and how much, the auditor finds
audit.violations                               … of what cannot be, not counting what is missing
said.WHO                                       all that is in its log, to look for words in
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, get_args

from jvpn.lab.backends.topology import Topology
from jvpn.lab.scenario.expressions import ExpressionError, Measure, Value
from jvpn.lab.scenario.measures.family import length, one_of, timeless, who
from jvpn.lab.scenario.measures.known import reasons_of
from jvpn.observability.events import AnyEvent
from jvpn.session.machine import State

if TYPE_CHECKING:
    from jvpn.lab.scenario.record import Record, Told

AFTER: Final = "after_ms"
KINDS: Final = tuple(kind.__struct_config__.tag for kind in get_args(AnyEvent))


def check_events(measure: Measure, topology: Topology) -> None:
    length(measure, 3, 5, "events.WHO.KIND or events.WHO.KIND.REASON, with or without .after_ms[MARK]")
    who(measure.path[1], topology)
    kind, more = measure.path[2], [*measure.path[3:]]
    one_of(kind, KINDS, "kind of event")
    if more and more[-1] == AFTER:
        more.pop()
    if more:
        one_of(more.pop(0), reasons_of(kind), f"reason of a {kind} called")
    if more:
        raise ExpressionError(f"an event has one reason: remove {more[0]!r}")
    _check_after(measure)


def _check_after(measure: Measure) -> None:
    if measure.path[-1] == AFTER and measure.window is None:
        raise ExpressionError("after_ms is counted from a mark: write after_ms[MARK]")


def events(record: Record, measure: Measure) -> Value:
    _, node, kind, *reason = [name for name in measure.path if name != AFTER]
    return _count_or_time(
        record,
        measure,
        [
            told.at_ns
            for told in _of(record, node, measure)
            if told.event["event"] == kind and (not reason or told.event.get("reason_code") == reason[0])
        ],
    )


def _count_or_time(record: Record, measure: Measure, times: list[int]) -> Value:
    """How many there are, or how long after the beginning of the time the first came."""
    if measure.path[-1] != AFTER:
        return len(times)
    return round((min(times) - record.span(measure.window).start_ns) / 1e6, 1) if times else None


def check_states(measure: Measure, topology: Topology) -> None:
    length(measure, 3, 4, "states.WHO.STATE or states.WHO.STATE.after_ms[MARK]")
    who(measure.path[1], topology)
    one_of(measure.path[2], [state.value for state in State], "state")
    if len(measure.path) == 4:
        one_of(measure.path[3], (AFTER,), "measure of a state called")
    _check_after(measure)


def states(record: Record, measure: Measure) -> Value:
    entered = [
        told.at_ns
        for told in _of(record, measure.path[1], measure)
        if told.event["event"] == "STATE_CHANGE"
        and told.event["to"] == measure.path[2]
        and told.event["from"] != measure.path[2]
    ]
    return _count_or_time(record, measure, entered)


def check_audit(measure: Measure, topology: Topology) -> None:
    length(measure, 2, 2, "audit.accepted, audit.findings or audit.violations")
    timeless(measure)
    one_of(measure.path[1], ("accepted", "findings", "violations"), "measure of the audit called")


def audit(record: Record, measure: Measure) -> Value:
    if measure.path[1] == "violations":
        return sum(": violation: " in finding for finding in record.findings)
    return not record.findings if measure.path[1] == "accepted" else len(record.findings)


def check_said(measure: Measure, topology: Topology) -> None:
    length(measure, 2, 2, "said.WHO")
    who(measure.path[1], topology)
    timeless(measure)


def said(record: Record, measure: Measure) -> Value:
    node = measure.path[1]
    logs = [
        text for name, text in record.logs.items() if name == node or (node == "gateway" and name != "client")
    ]
    return "".join(logs) if logs else None


def _of(record: Record, node: str, measure: Measure) -> list[Told]:
    span = record.span(measure.window)
    return [told for told in record.told_by(node) if span.start_ns <= told.at_ns < span.end_ns]
