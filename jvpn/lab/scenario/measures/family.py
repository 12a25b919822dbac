"""What a family of measures is, and the words they share."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from jvpn.lab.backends.topology import Topology
from jvpn.lab.scenario.expressions import ExpressionError, Measure, Value
from jvpn.policy.source import nearest

if TYPE_CHECKING:
    from jvpn.lab.scenario.record import Record

#: Whose events, states and counters: the client's, all gateways' together, one gateway's.
WHO: Final = ("client", "gateway", "gw1", "gw2")
#: Of more names than these a sentence has only the nearest.
_MOST_SHOWN: Final = 40


@dataclass(frozen=True, slots=True)
class Family:
    """*check* raises ExpressionError, when the scenario is loaded, for a measure that there cannot be; *value* is what
    it is in a record, None where there was nothing to measure; *words* are those that it can be, none where it is no
    word or can be any."""

    check: Callable[[Measure, Topology], None]
    value: Callable[[Record, Measure], Value]
    words: Callable[[Measure, Topology], Collection[str]] = lambda measure, topology: ()


def one_of(word: str, known: Iterable[str], what: str) -> None:
    """Raises ExpressionError unless *word* is known."""
    names = list(known)
    if word in names:
        return
    if len(names) <= _MOST_SHOWN:
        remedy = nearest(word, names)
    else:
        remedy = f"nearest: {', '.join(difflib.get_close_matches(word, sorted(names), 3, 0))}"
    raise ExpressionError(f"there is no {what} {word!r}; {remedy}")


def length(measure: Measure, least: int, most: int, shape: str) -> None:
    """Raises ExpressionError unless the measure has that many parts, as *shape* shows them."""
    if not least <= len(measure.path) <= most:
        raise ExpressionError(f"{'.'.join(measure.path)} is not of the form {shape}")


def timeless(measure: Measure) -> None:
    """Raises ExpressionError for a measure that is asked about a time, which it has none of."""
    if measure.window is not None:
        raise ExpressionError(f"{'.'.join(measure.path)} is of the whole scenario: remove the [ ]")


def who(word: str, topology: Topology) -> None:
    """Raises ExpressionError unless *word* is somebody of the topology."""
    one_of(word, ("client", "gateway", *topology.gateway_names), "node")
