"""Measures of faults and attacks: `MARK.counters.dropped`, anything that the script's summary has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jvpn.lab.scenario.expressions import ExpressionError, Measure, Value
from jvpn.lab.scenario.measures.family import timeless

if TYPE_CHECKING:
    from jvpn.lab.scenario.record import Record


def check(measure: Measure) -> None:
    """What a summary has is known only when it is there."""
    timeless(measure)
    if len(measure.path) < 2:
        raise ExpressionError(
            f"{measure.path[0]} is a script: say what of it, as {measure.path[0]}.counters.NAME"
        )


def value(record: Record, measure: Measure) -> Value:
    """None where the summary has nothing under that name."""
    return dig(record.summaries.get(measure.path[0]), measure.path[1:])


def dig(found: object, names: tuple[str, ...]) -> Value:
    """What stands under these names in nested mappings, None for nothing; numbers, words, truth and lists of them."""
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, bool | int | float | str | list) else None
