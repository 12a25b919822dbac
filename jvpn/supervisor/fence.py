"""Until when this gateway may act as the owner of its sessions: one time, in the shared page and in the steering maps.

Workers read it in the page once a batch, the XDP program in its map once a packet. A gateway whose store is its own has
no lease and no fence: both say 0, as they do from the start.
"""

from jvpn.supervisor.steering_backend import SteeringBackend
from workers.page import Page

_NS_PER_MS = 1_000_000
#: Past at any time of CLOCK_BOOTTIME.
_LONG_AGO_NS = 1


class Fence:
    """`moved` may be called from any thread, `fenced` too: neither waits for anything."""

    def __init__(self, page: Page, steering: SteeringBackend) -> None:
        """What an earlier supervisor wrote stays in force until it is moved."""
        self._page = page
        self._steering = steering

    def moved(self, fence_ms: int) -> None:
        """Traffic ends at `fence_ms` of CLOCK_BOOTTIME; 0: it has ended. Raises OSError when only workers know it."""
        self._write(max(fence_ms * _NS_PER_MS, _LONG_AGO_NS))

    def lift(self) -> None:
        """Traffic never ends: there is no lease. Raises OSError as `moved` does."""
        self._write(0)

    def fenced(self, now_ms: int) -> bool:
        until_ns = self._page.read_fence()
        return 0 < until_ns <= now_ms * _NS_PER_MS

    def _write(self, until_ns: int) -> None:
        # The workers' first: they are the gate, the maps keep from the CPUs what would be dropped there.
        self._page.write_fence(until_ns)
        self._steering.set_fence(until_ns)
