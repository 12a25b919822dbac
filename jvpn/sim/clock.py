"""Virtual time: one agenda for everything, and the clocks of each machine made from it."""

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from typing import Final

from jvpn.observability.events import AnyEvent
from jvpn.observability.sink import MemorySink

NS: Final = 1_000_000
#: Both machines have been up for a while when a run begins.
START_MS: Final = 1_000_000
WALL_MS: Final = 1_700_000_000_000

Action = Callable[[], None]


class Agenda:
    """What happens when. `now_ns` only rises; of two things at one instant the one put first comes first."""

    def __init__(self, start_ns: int = START_MS * NS) -> None:
        self.now_ns = start_ns
        self._entries: list[tuple[int, int, Action]] = []
        self._order = itertools.count()

    def at(self, at_ns: int, action: Action) -> None:
        heapq.heappush(self._entries, (at_ns, next(self._order), action))

    def later(self, delay_ms: float, action: Action) -> None:
        self.at(self.now_ns + round(delay_ms * NS), action)

    @property
    def next_ns(self) -> int | None:
        return self._entries[0][0] if self._entries else None

    def take_due(self) -> Action | None:
        """The next action whose time has come; None when there is none."""
        if self._entries and self._entries[0][0] <= self.now_ns:
            return heapq.heappop(self._entries)[2]
        return None


class Reports:
    """The way from a machine's workers to its core: in order, each `delay_ms` late.

    `at_once`: without delay if nothing is on its way, so that what one datagram brings about can be looked at.
    """

    def __init__(self, agenda: Agenda) -> None:
        self.delay_ms = 0.0
        self.at_once = False
        self._agenda = agenda
        self._under_way: deque[Action] = deque()
        #: Those that have come before their time.
        self._hastened = 0

    def say(self, heard: Action) -> None:
        if self.at_once and not self._under_way:
            heard()
            return
        self._under_way.append(heard)
        self._agenda.later(self.delay_ms, self._arrive)

    @property
    def waiting(self) -> bool:
        """Something is on its way."""
        return bool(self._under_way)

    def hasten(self) -> None:
        """All that is on its way comes now."""
        while self._under_way:
            self._hastened += 1
            self._under_way.popleft()()

    def _arrive(self) -> None:
        if self._hastened:
            self._hastened -= 1
        else:
            self._under_way.popleft()()


class TimedSink(MemorySink):
    """Knows when it was told each event, whatever that machine's wall clock says."""

    def __init__(self, agenda: Agenda) -> None:
        super().__init__()
        self._agenda = agenda
        self.times_ns: list[int] = []

    def emit(self, event: AnyEvent) -> None:
        super().emit(event)
        self.times_ns.append(self._agenda.now_ns)


class MachineClock:
    """CLOCK_BOOTTIME and the wall clock of one machine. `skew_ms` is how far somebody has set the wall clock,
    `drift_ppm` how much faster it runs."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self.boots = 1
        self.skew_ms = 0
        self.drift_ppm = 0
        self._booted_ns = 0

    def reboot(self) -> None:
        """CLOCK_BOOTTIME begins anew, under another boot id."""
        self.boots += 1
        self._booted_ns = self._agenda.now_ns - 10_000 * NS

    @property
    def boot_id(self) -> str:
        return f"boot-{self.boots}"

    @property
    def now_ns(self) -> int:
        return self._agenda.now_ns - self._booted_ns

    @property
    def now_ms(self) -> int:
        return (self._agenda.now_ns - self._booted_ns) // NS

    def agenda_ns(self, own_ms: float) -> int:
        """When this machine's clock reads `own_ms`, as the agenda counts; never between two milliseconds."""
        return int(-(-own_ms // 1)) * NS + self._booted_ns

    def wall_ms(self) -> int:
        passed_ms = self._agenda.now_ns // NS - START_MS
        return WALL_MS + self.skew_ms + passed_ms + passed_ms * self.drift_ppm // 1_000_000
