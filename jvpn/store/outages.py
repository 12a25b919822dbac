"""Outages that come and go, said at most so often. No clock here."""

#: A link that flaps may break and mend every second.
SAY_EVERY_MS = 60_000


class Outages:
    """`failed` and `works` return what is to be said now, "" for nothing; times are ms of one clock.

    One that begins sooner than `every_ms` after the last that was told of is told of when it lasts until then, else it
    is counted and told of with the next.
    """

    def __init__(self, every_ms: int = SAY_EVERY_MS) -> None:
        self._every_ms = every_ms
        self._due_ms: int | None = None
        self._unsaid = 0
        self.failing = False
        #: Whether the last that was said is that it fails.
        self.told = False

    def failed(self, text: str, now_ms: int) -> str:
        if not self.failing:
            self.failing = True
            self._unsaid += 1
        if self.told or not self._due(now_ms):
            return ""
        self.told = True
        return text + self._count(now_ms, self._unsaid - 1)

    def works(self, text: str, now_ms: int) -> str:
        self.failing = False
        if self.told:
            self.told = False
            return text
        if self._unsaid and self._due(now_ms):
            return text + self._count(now_ms, self._unsaid)
        return ""

    def _due(self, now_ms: int) -> bool:
        return self._due_ms is None or now_ms >= self._due_ms

    def _count(self, now_ms: int, more: int) -> str:
        """Of those that nobody has been told of."""
        self._unsaid = 0
        self._due_ms = now_ms + self._every_ms
        return f" (failed {more} more time{'s' * (more > 1)} since the last word of it)" if more else ""
