"""Measures of client and gateways as they answer before and after.

session.same                          the SessionID at the end is that of the start, at both ends
session.count, .state, .steps         the gateways' sessions; the client's one: its state, versions gone through
client.state, .active, .running       "ATTACHED", "A" or none, whether its process lives
gateway.running, .workers, .xdp       of all gateways; gw1. and gw2. of one
counters.WHO.NAME, grown.WHO.NAME     at the end, and since the start
memory.WHO.grown_kb                   resident memory of all processes, since the start
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final, get_args

from jvpn.lab.backends.topology import Topology
from jvpn.lab.scenario.expressions import NONE, Measure, Value
from jvpn.lab.scenario.measures.family import length, one_of, timeless, who
from jvpn.lab.scenario.measures.known import counters_of
from jvpn.session.table import State
from jvpn.session.version import split_version
from jvpn.supervisor.steering_backend import XdpMode

if TYPE_CHECKING:
    from jvpn.lab.scenario.record import Record, Snapshot

SESSION: Final = ("same", "count", "state", "steps", "epochs", "owner", "source")
CLIENT: Final = ("state", "active", "first", "running", "candidates")
GATEWAY: Final = ("running", "workers", "xdp")
STATES: Final = tuple(state.value for state in State)


def check_session(measure: Measure, topology: Topology) -> None:
    length(measure, 2, 2, "session.MEASURE")
    timeless(measure)
    one_of(measure.path[1], SESSION, "measure of the session called")


def words_of_session(measure: Measure, topology: Topology) -> Collection[str]:
    """An owner is several gateways with a comma when more than one has a session."""
    names = topology.gateway_names
    known = {"state": STATES, "owner": {*names, ",".join(names)}}
    return known.get(measure.path[1], ())


def session(record: Record, measure: Measure) -> Value:
    before, after = record.before, record.after
    first, last = before.session(), after.session()
    asked = measure.path[1]
    if not after.any_gateway():
        return None
    if asked == "count":
        return len(after.sessions())
    if asked == "same":
        return first is not None and last is not None and _ids(before) == _ids(after)
    if asked == "owner":
        return after.owner()
    if last is None:
        return None
    if asked in ("state", "source"):
        return str(last[asked])
    if first is None:
        return None
    old, new = (split_version(int(row["state_version"])) for row in (first, last))
    return new.epoch - old.epoch if asked == "epochs" else new.count - old.count


def _ids(snapshot: Snapshot) -> tuple[str, str]:
    row = snapshot.session()
    return (str(row["session_id"]) if row else "", str(snapshot.status("client").get("session")))


def check_client(measure: Measure, topology: Topology) -> None:
    length(measure, 2, 2, "client.MEASURE")
    timeless(measure)
    one_of(measure.path[1], CLIENT, "measure of the client called")


def words_of_client(measure: Measure, topology: Topology) -> Collection[str]:
    uplinks = tuple(topology.uplinks)
    known = {"state": STATES, "active": uplinks, "first": uplinks, "candidates": uplinks}
    return known.get(measure.path[1], ())


def client(record: Record, measure: Measure) -> Value:
    status, asked = record.after.status("client"), measure.path[1]
    if asked == "running":
        return record.after.running("client")
    if asked == "first":
        return record.uplink_of(record.before.status("client").get("active")) or NONE
    if not status:
        return None
    if asked == "state":
        return str(status["state"])
    if asked == "active":
        return record.uplink_of(status["active"]) or NONE
    return _sorted(
        {
            record.uplink_of(path["device"])
            for path in status["paths"]
            if path["validated"] and path["state"] == "candidate"
        }
    )


def _sorted(words: set[str]) -> Value:
    return [*sorted(words)]


def check_gateway(measure: Measure, topology: Topology) -> None:
    length(measure, 2, 2, f"{measure.path[0]}.MEASURE")
    who(measure.path[0], topology)
    timeless(measure)
    one_of(measure.path[1], GATEWAY, "measure of a gateway called")


def words_of_gateway(measure: Measure, topology: Topology) -> Collection[str]:
    return get_args(XdpMode) if measure.path[1] == "xdp" else ()


def gateway(record: Record, measure: Measure) -> Value:
    names = [measure.path[0]] if measure.path[0] != "gateway" else list(record.topology.gateway_names)
    if measure.path[1] == "running":
        return all(record.after.running(name) for name in names)
    statuses = [record.after.status(name) for name in names]
    if measure.path[1] == "workers":
        return sum(len(status.get("workers", ())) for status in statuses)
    return _sorted({mode for status in statuses for mode in status.get("xdp_mode", {}).values()})


def check_counters(measure: Measure, topology: Topology) -> None:
    length(measure, 3, 3, f"{measure.path[0]}.WHO.NAME")
    who(measure.path[1], topology)
    one_of(measure.path[2], counters_of(measure.path[1]), f"counter of {measure.path[1]} called")
    timeless(measure)


def counters(record: Record, measure: Measure) -> Value:
    return record.after.counter(measure.path[1], measure.path[2])


def grown(record: Record, measure: Measure) -> Value:
    _, node, name = measure.path
    return _less(record.after.counter(node, name), record.before.counter(node, name))


def _less(after: int | None, before: int | None) -> int | None:
    return None if after is None or before is None else after - before


def check_memory(measure: Measure, topology: Topology) -> None:
    length(measure, 3, 3, "memory.WHO.grown_kb")
    who(measure.path[1], topology)
    one_of(measure.path[2], ("grown_kb",), "measure of memory called")
    timeless(measure)


def memory(record: Record, measure: Measure) -> Value:
    return _less(record.after.memory_kb(measure.path[1]), record.before.memory_kb(measure.path[1]))
