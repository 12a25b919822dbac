"""A machine's processes stopped by SIGSTOP, all at once, and what they find when they go on."""

from collections.abc import Callable, Iterable
from typing import Final

from jvpn.sim.clock import NS, Action, Agenda

#: Datagrams, or packets, that sockets and queues hold while nobody reads them.
BACKLOG: Final = 256


class Pausing:
    """`now`: they are stopped. `longest_ms`: for as long as they ever were."""

    def __init__(self, agenda: Agenda) -> None:
        self.now = False
        self.longest_ms = 0
        self._agenda = agenda
        self._since_ns = 0
        self._waiting: list[Action] = []

    def begin(self) -> None:
        self.now, self._since_ns = True, self._agenda.now_ns

    def end(self, last: Iterable[Action]) -> None:
        """What has waited is done at this instant, one thing after the other, and `last` after that."""
        self.now = False
        self.longest_ms = max(self.longest_ms, (self._agenda.now_ns - self._since_ns) // NS)
        waiting, self._waiting = self._waiting, []
        for do in (*waiting, *last):
            self._agenda.later(0, do)

    def forget(self) -> None:
        """They are dead."""
        self.now = False
        self._waiting = []

    def when_awake(self, do: Callable[[], None]) -> None:
        """Now, or when they run again."""
        if self.now:
            self._waiting.append(do)
        else:
            do()

    def queue(self, do: Callable[[], None]) -> None:
        """When they run again, if there is room."""
        if len(self._waiting) < BACKLOG:
            self._waiting.append(do)
