"""The two clocks: one for deadlines and leases, one for logs and for the store."""

import time

NS_PER_MS = 1_000_000


def now_ms() -> int:
    """CLOCK_BOOTTIME: it goes on while the machine sleeps, and never steps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // NS_PER_MS


def wall_ms() -> int:
    """Unix time, as it is set now."""
    return time.time_ns() // NS_PER_MS
