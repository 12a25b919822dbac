"""Measures of what travelled: `captures.rA.up.DATA.packets`, anything that `vagrant.traffic.tally` says of a capture.

Captured are the devices that assertions name: the router's "rA", "rB", "w1", "w2" and "lan".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jvpn.lab.backends.topology import ROUTER, Topology, roles
from jvpn.lab.scenario.expressions import ExpressionError, Measure, Value
from jvpn.lab.scenario.measures.family import one_of, timeless
from jvpn.lab.scenario.measures.scripts import dig

if TYPE_CHECKING:
    from jvpn.lab.scenario.record import Record


def check(measure: Measure, topology: Topology) -> None:
    timeless(measure)
    if len(measure.path) < 3:
        raise ExpressionError("say of which device and what, as captures.rA.up.DATA.packets")
    one_of(measure.path[1], roles(ROUTER, topology), "device of the router")


def value(record: Record, measure: Measure) -> Value:
    return dig(record.tallies.get(measure.path[1]), measure.path[2:])
