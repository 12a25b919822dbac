"""Who has something to do next: a heap of deadlines, so that sessions that nobody touches cost nothing."""

import heapq
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")


class Agenda(Generic[T]):
    """One deadline for each, milliseconds. A new one replaces the old, whose heap entry is skipped later."""

    def __init__(self) -> None:
        self._due_ms: dict[T, int] = {}
        self._heap: list[tuple[int, int, T]] = []
        self._order = count()

    def put(self, whom: T, due_ms: int) -> None:
        if self._due_ms.get(whom) != due_ms:
            self._due_ms[whom] = due_ms
            heapq.heappush(self._heap, (due_ms, next(self._order), whom))
            self._compact()

    def forget(self, whom: T) -> None:
        self._due_ms.pop(whom, None)

    def _compact(self) -> None:
        """Entries that are skipped later must not outnumber those that count: a deadline may be hours away."""
        if len(self._heap) > 2 * len(self._due_ms) + 64:
            self._heap = [entry for entry in self._heap if self._due_ms.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def next_ms(self) -> int | None:
        """The earliest deadline, None when there is none."""
        while self._heap and self._due_ms.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, now_ms: int, most: int) -> list[T]:
        """At most so many sessions whose deadline has come, earliest first; they have none until `put` again."""
        due: list[T] = []
        while len(due) < most and (at_ms := self.next_ms()) is not None and at_ms <= now_ms:
            whom = heapq.heappop(self._heap)[2]
            del self._due_ms[whom]
            due.append(whom)
        return due
