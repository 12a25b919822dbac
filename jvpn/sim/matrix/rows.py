"""All scenarios, by row and id, and many seeds of one."""

import itertools
from collections.abc import Iterator
from typing import Final

from multiprocess import get_context

from jvpn.sim.matrix import control, lives, paths, quality, reloads, strangers
from jvpn.sim.matrix.scene import Scenario, run_scenario
from jvpn.sim.run import Result

_ALL: Final = (
    scenario for part in (paths, quality, strangers, control, lives, reloads) for scenario in part.SCENARIOS
)
SCENARIOS: Final[dict[str, Scenario]] = {
    scenario.id: scenario for scenario in sorted(_ALL, key=lambda scenario: int(scenario.row[1:]))
}


class UnknownScenario(ValueError):
    """There is no scenario of that name."""


def named(name: str) -> list[Scenario]:
    """The scenario of that id, or all of that row (F9), or of all rows (`all`). Raises UnknownScenario."""
    wanted = name.lower()
    found = [
        s
        for s in SCENARIOS.values()
        if wanted == "all" or (s.row if "-" not in name else s.id).lower() == wanted
    ]
    if not found:
        rows = ", ".join(dict.fromkeys(scenario.row for scenario in SCENARIOS.values()))
        raise UnknownScenario(f"there is no scenario {name}; the rows are {rows} (`jvpn sim list` says more)")
    return found


def run_rows(scenarios: list[Scenario], first: int, count: int, jobs: int = 1) -> Iterator[Result]:
    """The results of each scenario under seeds `first` … `first + count - 1`, in that order."""
    runs = [(scenario.id, seed) for scenario in scenarios for seed in range(first, first + count)]
    if jobs <= 1 or len(runs) <= 1:
        yield from itertools.starmap(_run, runs)
        return
    with get_context("spawn").Pool(min(jobs, len(runs))) as pool:
        yield from pool.imap(_run_one, runs, chunksize=4)


def _run(name: str, seed: int) -> Result:
    return run_scenario(SCENARIOS[name], seed)


def _run_one(run: tuple[str, int]) -> Result:
    return _run(*run)
