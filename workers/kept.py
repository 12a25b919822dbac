"""What a session keeps for a while: what it sent last, and what waits for a path.

Bounded in age and in bytes, each session by itself and all of a worker together: queues that are in use share
POOL_BYTES evenly. Whatever goes, the oldest goes first.
"""

from collections import deque
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from workers.keys import Phase

POOL_BYTES: Final = 256 << 20
NS_PER_MS: Final = 1_000_000


class Kept(Protocol):
    """`data` came or went at `time_ns`."""

    @property
    def time_ns(self) -> int: ...

    @property
    def data(self) -> bytes: ...


class Sent(NamedTuple):
    """Sealed datagrams of `segment` bytes (the last may be shorter), as they went out on `path_index` under `phase`.

    Kept sealed: one copy of what is in the cache already, with counters and lengths in place; no plaintext lies about.
    """

    time_ns: int
    data: bytes
    segment: int
    path_index: int
    phase: Phase


class Waited(NamedTuple):
    """One read from the TUN, virtio_net_hdr in front."""

    time_ns: int
    data: bytes


K = TypeVar("K", bound=Kept)


class Pool:
    """The queues of a worker that hold something. `lost` counts what left a queue that counts; readers reset it."""

    def __init__(self, capacity: int = POOL_BYTES) -> None:
        self.in_use: dict[KeptQueue[Any], None] = {}
        self.lost = 0
        self._capacity = capacity

    def share(self) -> int:
        """Bytes that each queue in use may have."""
        return self._capacity // max(1, len(self.in_use))

    def expire(self, now_ns: int) -> None:
        for queue in list(self.in_use):
            queue.trim(now_ns)


class KeptQueue(Generic[K]):
    """Oldest first. `counts`: what is dropped, rather than taken, is a loss that the pool counts.

    Most are empty most of the time, and an empty deque takes 0.7 KB: there is one while there is something in it.
    """

    __slots__ = ("_bytes", "_counts", "_entries", "_max_bytes", "_pool", "_window_ns")

    def __init__(self, pool: Pool, *, counts: bool) -> None:
        self._pool = pool
        self._counts = counts
        self._entries: deque[K] | None = None
        self._bytes = 0
        self._max_bytes = 0
        self._window_ns = 0

    def limit(self, max_bytes: int, window_ms: int) -> None:
        """Bounds from now on; 0 for either keeps nothing."""
        self._max_bytes = max_bytes if window_ms else 0
        self._window_ns = window_ms * NS_PER_MS

    @property
    def keeps(self) -> bool:
        return self._max_bytes > 0

    def __len__(self) -> int:
        return 0 if self._entries is None else len(self._entries)

    @property
    def first(self) -> K:
        """The oldest of a queue that is not empty."""
        return self._filled()[0]

    def add(self, entry: K) -> None:
        entries = self._entries
        if entries is None:
            entries = self._entries = deque()
            self._pool.in_use[self] = None
        entries.append(entry)
        self._bytes += len(entry.data)
        if self._bytes > self._max_bytes or entry.time_ns - entries[0].time_ns > self._window_ns:
            self.trim(entry.time_ns)

    def take(self) -> K:
        """Remove and return the oldest of a queue that is not empty."""
        entries = self._filled()
        entry = entries.popleft()
        self._bytes -= len(entry.data)
        if not entries:
            self._leave()
        return entry

    def recent(self, now_ns: int) -> list[K]:
        """All that is within the window, oldest first; it stays."""
        self.trim(now_ns)
        return [] if self._entries is None else list(self._entries)

    def trim(self, now_ns: int) -> None:
        """Drop what is too old or too much."""
        entries = self._entries
        if entries is None:
            return
        oldest_ns = now_ns - self._window_ns
        max_bytes = min(self._max_bytes, self._pool.share())
        dropped = 0
        while entries and (self._bytes > max_bytes or entries[0].time_ns < oldest_ns):
            self._bytes -= len(entries.popleft().data)
            dropped += 1
        if self._counts:
            self._pool.lost += dropped
        if not entries:
            self._leave()

    def clear(self) -> None:
        """Drop everything: the session is over, or goes on in another epoch."""
        if self._counts:
            self._pool.lost += len(self)
        self._leave()

    def _filled(self) -> deque[K]:
        assert self._entries is not None
        return self._entries

    def _leave(self) -> None:
        """It is empty."""
        self._entries = None
        self._bytes = 0
        self._pool.in_use.pop(self, None)
