"""The pipelines of a started worker, and the commands and moments that concern more than one of them."""

from collections.abc import Callable
from typing import Final

from workers.answers import Answers
from workers.backlog import Backlog
from workers.commands import (
    AddSession,
    Datagram,
    IndexReport,
    IndexSeen,
    MtuAnswered,
    PhaseSeen,
    ProbeAnswered,
    Rebind,
)
from workers.counters import Counter
from workers.decrypt import Decryptor
from workers.deliver import Delivery
from workers.encrypt import Encryptor
from workers.reports import session_reports
from workers.singles import Singles
from workers.table import SessionTable
from workers.tun import TunLike

#: How often what is kept is looked through for what is too old.
SWEEP_NS: Final = 100_000_000
#: How often a backlog gets its turn while it waits for its time.
TICK_S: Final = 0.001


class Pipelines:
    """`offer` gives the supervisor a report that may be lost; False when it would have to wait.

    Without a TUN there is nothing to encrypt and nowhere to deliver to: only commands and probes of others' making.
    """

    def __init__(
        self,
        table: SessionTable,
        tun: TunLike | None,
        mtu: int,
        offer: Callable[[Datagram | ProbeAnswered | MtuAnswered | IndexSeen | PhaseSeen], bool],
        counters: "memoryview[int]",
    ) -> None:
        self.table = table
        self.counters = counters
        self.answers = Answers(table, offer, counters)
        self.encryptor: Encryptor | None = None
        self.decryptor: Decryptor | None = None
        self._singles: Singles | None = None
        self._backlog: Backlog | None = None
        self._offer = offer
        self._next_sweep_ns = 0
        if tun is not None:
            self.attach(tun, mtu)

    def attach(self, tun: TunLike, mtu: int) -> None:
        delivery = Delivery(tun, self.counters)
        self._singles = Singles(self.table, delivery, self.answers, self._offer, self.counters)
        self.encryptor = Encryptor(tun, self.table, self.counters, mtu)
        self.decryptor = Decryptor(self.table, delivery, self._singles, self.answers, self.counters)
        if self._backlog is None:
            self._backlog = Backlog(self.encryptor, self.counters)
        self._backlog.encryptor = self.encryptor

    # Commands

    def add(self, command: AddSession, now_ns: int) -> None:
        session = self.table.add(command)
        if self._backlog is not None:
            self._backlog.bound(session, None, now_ns)

    def rebind(self, command: Rebind, now_ns: int) -> list[IndexReport]:
        """The reports, if they were asked for: with what was held for this bind, without what comes after it."""
        session = self.table.rebind(command)
        if self._singles is not None:
            self._singles.bound(session, now_ns)
        reports = session_reports(session) if command.report else []
        if self._backlog is not None:
            self._backlog.bound(session, command.resend, now_ns)
        return reports

    # Time

    @property
    def _crowded(self) -> bool:
        """Whether something waits since a flood (fair.py)."""
        encryptor, decryptor = self.encryptor, self.decryptor
        return (encryptor is not None and encryptor.crowd.waits) or (
            decryptor is not None and decryptor.crowd.waits
        )

    def _go_on(self, now_ns: int) -> None:
        """The kernel's queues may have nothing more to wake us with."""
        if self.encryptor is not None:
            self.encryptor.send_crowded(now_ns)
        if self.decryptor is not None:
            self.decryptor.take_crowded(now_ns)

    def timeout_s(self) -> float | None:
        """How long the loop may sleep; None: until something comes."""
        if self._crowded:
            return 0.0
        if self._backlog is not None and self._backlog.busy:
            return TICK_S
        return SWEEP_NS / 1e9 if self.table.pool.in_use or self.table.held else None

    @property
    def unfinished(self) -> bool:
        """Whether something that was read, and may go, has not gone yet."""
        return self._crowded or (self._backlog is not None and self._backlog.busy)

    def tick(self, now_ns: int) -> None:
        """Send what may go by now, forget what is too old."""
        if self._crowded:
            self._go_on(now_ns)
        if self._backlog is not None and self._backlog.busy:
            self._backlog.turn(now_ns)
        if now_ns >= self._next_sweep_ns:
            self._next_sweep_ns = now_ns + SWEEP_NS
            self.table.pool.expire(now_ns)
            self.counters[Counter.NOT_BOUND] += self.table.held.expire(now_ns)
            if self.encryptor is not None:
                self.encryptor.count_lost()
