"""Small packets of many sessions, read from the TUN in any order, in one batch for each of their paths."""

from typing import Final

from workers.paths import SendPath
from workers.send import SmallBatch

#: Batches that are gathered at a time, of 64 KiB each: a turn is not much longer than one such batch.
AT_ONCE: Final = 32


class Gathering:
    """A SmallBatch for each path that something was read for since the last `flush`; what is sent is kept."""

    def __init__(self, counters: "memoryview[int]", at_once: int = AT_ONCE) -> None:
        self._counters = counters
        self._at_once = at_once
        #: By path, the first to be begun first.
        self._begun: dict[SendPath, SmallBatch] = {}
        self._idle: list[SmallBatch] = []

    def of(self, path: SendPath, now_ns: int) -> SmallBatch:
        """Where the next packet of `path` goes. With so many as `at_once` begun the oldest one is sent."""
        batch = self._begun.get(path)
        if batch is None:
            if len(self._begun) == self._at_once:
                self.flush_path(next(iter(self._begun)), now_ns)
            batch = self._begun[path] = (
                self._idle.pop() if self._idle else SmallBatch(self._counters, keep=True)
            )
        return batch

    def flush_path(self, path: SendPath, now_ns: int) -> None:
        """Send what was gathered for `path`, before anything else of it goes out."""
        batch = self._begun.pop(path, None)
        if batch is not None:
            batch.flush(now_ns)
            self._idle.append(batch)

    def flush(self, now_ns: int) -> None:
        """Send everything."""
        for batch in self._begun.values():
            batch.flush(now_ns)
            self._idle.append(batch)
        self._begun.clear()
