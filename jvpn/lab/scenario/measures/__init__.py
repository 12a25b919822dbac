"""Everything an assertion can be about, by the first word of its name.

A stream's name and the mark of a script are such words too; see `streams.py` and `scripts.py`. A new family is a module
with `check` and `value` as `family.Family` says, and a line in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

from jvpn.lab.backends.topology import Topology
from jvpn.lab.scenario.expressions import NONE, ExpressionError, Measure, Value
from jvpn.lab.scenario.measures import captures, nodes, scripts, streams, telling, windows
from jvpn.lab.scenario.measures.family import Family, one_of
from jvpn.policy.source import nearest

if TYPE_CHECKING:
    from jvpn.lab.scenario.record import Record

FAMILIES: Final[Mapping[str, Family]] = {
    "session": Family(nodes.check_session, nodes.session, nodes.words_of_session),
    "client": Family(nodes.check_client, nodes.client, nodes.words_of_client),
    "gateway": Family(nodes.check_gateway, nodes.gateway, nodes.words_of_gateway),
    "gw1": Family(nodes.check_gateway, nodes.gateway, nodes.words_of_gateway),
    "gw2": Family(nodes.check_gateway, nodes.gateway, nodes.words_of_gateway),
    "counters": Family(nodes.check_counters, nodes.counters),
    "grown": Family(nodes.check_counters, nodes.grown),
    "memory": Family(nodes.check_memory, nodes.memory),
    "events": Family(telling.check_events, telling.events),
    "states": Family(telling.check_states, telling.states),
    "said": Family(telling.check_said, telling.said),
    "audit": Family(telling.check_audit, telling.audit),
    "captures": Family(captures.check, captures.value),
}


def is_measure(name: str) -> bool:
    """Whether a measure's name can begin with it in every scenario."""
    return name in FAMILIES


def check(
    measure: Measure,
    streams_of: Mapping[str, str],
    scripts_of: Collection[str],
    marks: Mapping[str, float],
    ends_at_s: float,
    topology: Topology,
) -> None:
    """Raises ExpressionError for what no run of the scenario could measure. *streams_of*: kind by name; *marks*: the
    second by name."""
    if measure.window is not None:
        windows.check(measure.window, marks, ends_at_s)
    first = measure.path[0]
    if first in streams_of:
        streams.check(measure, streams_of[first])
    elif first in scripts_of:
        scripts.check(measure)
    elif first in FAMILIES:
        FAMILIES[first].check(measure, topology)
    else:
        one_of(first, [*FAMILIES, *streams_of, *scripts_of], "measure")


def check_words(measure: Measure, words: Collection[str], topology: Topology) -> None:
    """Raises ExpressionError for *words* that a measure, which `check` has passed, can never be. All can be
    none."""
    family = FAMILIES.get(measure.path[0])
    known = family.words(measure, topology) if family is not None else ()
    for word in words if known else ():
        if word not in known and word != NONE:
            raise ExpressionError(f"{measure} is never {word!r}; {nearest(word, known)}")


def value(record: Record, measure: Measure) -> Value:
    """What was measured."""
    first = measure.path[0]
    if first in record.streams or first in record.transfers:
        return streams.value(record, measure)
    if first in FAMILIES:
        return FAMILIES[first].value(record, measure)
    return scripts.value(record, measure)
