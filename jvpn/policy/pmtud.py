"""The path MTU found by probing (RFC 8899, DPLPMTUD), because ICMP may be filtered: sans-I/O, one object per path.

Sizes are outer IP packets in bytes; a probe and its answer have the same size, so what is confirmed passes both ways.
BASE is used until more is confirmed. Search: the ceiling first, then halving what is left. Once complete, the confirmed
size is probed again while traffic flows: when it passes no more although the path lives, everything starts at BASE.
"""

from dataclasses import dataclass, field
from typing import Final

BASE: Final = 1280
CEILING: Final = 1500
#: Sizes closer than this are not told apart.
GRAIN: Final = 8
MAX_PROBES: Final = 3
#: One more before a confirmed size is given up: on a lossy path that would cost a new search.
MAX_VALIDATIONS: Final = 4
MIN_TIMER_NS: Final = 200_000_000
BUSY_INTERVAL_NS: Final = 1_000_000_000
IDLE_INTERVAL_NS: Final = 60_000_000_000
#: PMTU_RAISE_TIMER
RAISE_NS: Final = 600_000_000_000


@dataclass(slots=True)
class PathMtu:
    """`confirmed` passes both ways, as far as is known; `settled`: the search is over. Times are monotonic ns."""

    started_ns: int
    ceiling: int = CEILING
    confirmed: int = BASE
    settled: bool = False
    #: (confirmed, settled) as the last answered probe said it.
    told: tuple[int, bool] = (0, False)
    _failed: int = field(init=False)
    _size: int = field(init=False)
    _tries: int = 0
    _due_ns: int = field(init=False)
    _settled_ns: int = 0
    _sent: dict[int, tuple[int, tuple[int, bool]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._failed = self.ceiling + 1
        self._size = self.ceiling
        self._due_ns = self.started_ns

    def next_probe_at(self, busy: bool) -> int:
        """When `on_timer` is due. `busy`: traffic flows, so a hole would hurt."""
        if not self.settled or self._tries or self.told != (self.confirmed, self.settled):
            return self._due_ns
        return self._due_ns + (BUSY_INTERVAL_NS if busy else IDLE_INTERVAL_NS)

    def on_timer(self, probe_id: int, now_ns: int, rtt_ns: int) -> int:
        """The size of the probe to send now under `probe_id`; `rtt_ns` with some patience in it. `confirmed` may have
        changed."""
        if self._tries >= (MAX_VALIDATIONS if self.settled else MAX_PROBES):
            self._give_up(now_ns)
        if self.settled and now_ns - self._settled_ns >= RAISE_NS and self.confirmed < self.ceiling - GRAIN:
            self.settled, self._failed, self._size = False, self.ceiling + 1, self.ceiling
        self._tries += 1
        self._due_ns = now_ns + max(MIN_TIMER_NS, rtt_ns)
        self._sent[probe_id] = self._size, (self.confirmed, self.settled)
        while len(self._sent) > 16:
            del self._sent[next(iter(self._sent))]
        return self._size

    def on_answer(self, probe_id: int, now_ns: int) -> bool:
        """A probe was answered; True when `confirmed` or `settled` changed."""
        size, said = self._sent.pop(probe_id, (0, (0, False)))
        if not size:
            return False
        before = self.confirmed, self.settled
        self.told = said
        if size == self._size:
            self._tries, self._due_ns = 0, now_ns
        if size > self.confirmed and size < self._failed:
            self.confirmed = size
        self._choose(now_ns)
        return (self.confirmed, self.settled) != before

    def _give_up(self, now_ns: int) -> None:
        """The size tried last does not pass."""
        self._failed = min(self._failed, self._size)
        self._tries = 0
        if self.settled or self._failed <= self.confirmed:
            # It passed before: a hole. Nothing is known but that BASE must pass.
            self.confirmed, self.settled = BASE, False
            self._failed = max(self._failed, BASE + 1)
        self._choose(now_ns)

    def _choose(self, now_ns: int) -> None:
        """What to try next: between what passes and what does not, or what is confirmed when they have met."""
        if self._failed - self.confirmed <= GRAIN:
            if not self.settled:
                self.settled, self._settled_ns = True, now_ns
            size = self.confirmed
        elif self._failed > self.ceiling:
            size = self.ceiling
        else:
            size = (self.confirmed + self._failed) // 2
        if size != self._size:
            self._size, self._tries, self._due_ns = size, 0, now_ns
