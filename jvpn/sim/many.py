"""Many seeds: one after another, or shared among processes. The outcome does not depend on how many those are."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from multiprocess import get_context

from jvpn.sim.run import Result, run_seed

#: Failing seeds that are kept with all that was told; the others by number alone.
KEPT: Final = 5


@dataclass(slots=True)
class Summary:
    """What a number of seeds came to."""

    runs: int = 0
    steps: int = 0
    datagrams: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    failed: list[int] = field(default_factory=list)
    kept: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        self.runs += 1
        self.steps += result.steps
        self.datagrams += result.datagrams
        self.faults += result.faults
        self.counts += result.counts
        if result.code:
            self.violations[result.code] += 1
            self.failed.append(result.seed)
            if len(self.kept) < KEPT:
                self.kept.append(result)


def run_all(first: int, count: int, jobs: int = 1) -> Iterator[Result]:
    """The results of seeds `first` … `first + count - 1`, in that order."""
    seeds = range(first, first + count)
    if jobs <= 1 or count <= 1:
        yield from map(run_seed, seeds)
        return
    # Spawned, not forked: what a run finds in its process must not depend on what ran there before.
    with get_context("spawn").Pool(min(jobs, count), maxtasksperchild=None) as pool:
        yield from pool.imap(run_seed, seeds, chunksize=max(1, min(16, count // (jobs * 4) or 1)))
