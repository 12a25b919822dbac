"""Where things stand in a plot: scales, ticks, and rows in which nothing overlaps."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

Thing = TypeVar("Thing")

#: Units of the drawing. Left of the plots stand names of lanes and ticks of scales.
WIDTH: Final = 920.0
LEFT: Final = 92.0
RIGHT: Final = 16.0
#: A letter's width on average, at the size that the plots have. Text is never measured, so it is on the wide side.
LETTER: Final = 6.9


def width_of(text: str) -> float:
    return LETTER * len(text)


def step(limit: float, about: int) -> float:
    """The round step (1, 2 or 5 times a power of ten) that divides 0 … limit into at most `about` parts."""
    raw = limit / about
    power: float = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """Seconds 0 … until, from the left edge of the plots to the right one."""

    until_s: float

    def x(self, at_s: float) -> float:
        """Times outside the axis stand at its ends."""
        share = min(max(at_s / self.until_s, 0.0), 1.0)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def ticks(self) -> list[tuple[float, str]]:
        by = step(self.until_s, 12)
        digits = max(0, -math.floor(math.log10(by)))
        return [(n * by, f"{n * by:.{digits}f}") for n in range(math.floor(self.until_s / by + 1e-9) + 1)]


@dataclass(frozen=True, slots=True)
class Rate:
    """A scale 0 … top whose top is a round figure, in the unit that suits it."""

    top_mbit_s: float
    unit: str
    label: str

    def share(self, mbit_s: float) -> float:
        return min(max(mbit_s / self.top_mbit_s, 0.0), 1.0)


def rate(most_mbit_s: float) -> Rate:
    unit, factor = "Mbit/s", 1.0
    if most_mbit_s >= 1000:
        unit, factor = "Gbit/s", 1e-3
    elif most_mbit_s < 1:
        unit, factor = "kbit/s", 1e3
    most = most_mbit_s * factor
    by = step(most, 4) if most > 0 else 1.0
    top = math.ceil(most / by - 1e-9) * by if most > 0 else 1.0
    return Rate(top / factor, unit, f"{top:g}")


def rows_of(things: Iterable[tuple[float, float, Thing]]) -> list[list[Thing]]:
    """Things with their extents (from, to), in as few rows as keep them apart, in the order of their beginnings."""
    rows: list[tuple[float, list[Thing]]] = []
    for start, end, thing in sorted(things, key=lambda item: item[0]):
        for number, (taken, row) in enumerate(rows):
            if taken <= start:
                row.append(thing)
                rows[number] = (end, row)
                break
        else:
            rows.append((end, [thing]))
    return [row for _taken, row in rows]
