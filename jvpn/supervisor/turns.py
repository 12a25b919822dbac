"""Whose turn it is among the descriptors that are ready: those that must not wait behind others come first."""

import selectors
from collections.abc import Callable
from enum import IntEnum

Callback = Callable[[], object]


class Rank(IntEnum):
    """Lower is served first."""

    AUTHENTICATED = 0
    INSIDE = 1
    STRANGERS = 2


class Turns:
    """A selector whose data are callbacks. Whoever registers with `selector` itself is served as INSIDE."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self._ranks: dict[int, Rank] = {}

    def register(self, descriptor: int, callback: Callback, rank: Rank = Rank.INSIDE) -> None:
        self.selector.register(descriptor, selectors.EVENT_READ, callback)
        self._ranks[descriptor] = rank

    def unregister(self, descriptor: int) -> None:
        self.selector.unregister(descriptor)
        del self._ranks[descriptor]

    def ready(self, timeout_s: float | None) -> list[Callback]:
        """The callbacks of what is ready, the most urgent first, waiting at most `timeout_s` (None: for ever)."""
        ready = self.selector.select(timeout_s)
        ready.sort(key=lambda one: self._ranks.get(one[0].fd, Rank.INSIDE))
        return [key.data for key, _events in ready]
