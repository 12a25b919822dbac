"""Has the machine slept? CLOCK_BOOTTIME goes on meanwhile, CLOCK_MONOTONIC does not."""

import time
from collections.abc import Callable
from typing import Final

#: The clocks are read one after the other, by a process that may lose its CPU in between.
LEAST_SLEEP_NS: Final = 500_000_000


def _clocks_ns() -> tuple[int, int]:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.clock_gettime_ns(time.CLOCK_MONOTONIC)


class Sleeping:
    """`clocks` gives (BOOTTIME, MONOTONIC) in nanoseconds."""

    def __init__(self, clocks: Callable[[], tuple[int, int]] = _clocks_ns) -> None:
        self._clocks = clocks
        self._apart_ns = self._read()

    def _read(self) -> int:
        boot_ns, monotonic_ns = self._clocks()
        return boot_ns - monotonic_ns

    def slept_ns(self) -> int:
        """For how long the machine has slept since the last call; 0 when it has not."""
        before_ns, self._apart_ns = self._apart_ns, self._read()
        slept_ns = self._apart_ns - before_ns
        if 0 <= slept_ns < LEAST_SLEEP_NS:
            # A short sleep in several pieces counts too.
            self._apart_ns = before_ns
            return 0
        return max(slept_ns, 0)
