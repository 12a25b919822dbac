"""One node's way to its store: late, cut, or losing what the store answers; and the desk that a supervisor has there.

What is lost on the way to the store was not done; what is lost on the way back was. Either way the node waits until it
gives up, and does not know. What is late may be done after that.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

from jvpn.sim.clock import Agenda
from jvpn.store.base import OwnershipStore, StoreError
from jvpn.supervisor.store_desk import Answers, Batch, Loaded

#: How long one call is waited for.
TIMEOUT_MS: Final = 2_000

Found = TypeVar("Found")


@dataclass(slots=True)
class StoreWay:
    """`delay_ms`: the least and the most of one direction; both 0: the answer is there at once."""

    agenda: Agenda
    draw: random.Random
    delay_ms: tuple[float, float] = (0.0, 0.0)
    cut: bool = False
    #: The share of answers that are lost.
    lost: float = 0.0
    #: Instead of `delay_ms`, as long as they last; the newest counts.
    slower_ms: list[tuple[float, float]] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether a call is answered well within any patience."""
        return not self.cut and not self.lost and self._delay_ms()[1] < 200

    def _delay_ms(self) -> tuple[float, float]:
        return self.slower_ms[-1] if self.slower_ms else self.delay_ms

    def call(
        self,
        do: Callable[[], Found],
        then: Callable[[Found | StoreError], None],
        timeout_ms: float = TIMEOUT_MS,
    ) -> None:
        """Have the store `do` something; `then` is called once, with what it said or with what went wrong."""
        answered = False

        def answer(found: Found | StoreError) -> None:
            nonlocal answered
            if not answered:
                answered = True
                then(found)

        def arrive() -> None:
            if self.cut:
                return
            try:
                found: Found | StoreError = do()
            except StoreError as error:
                found = error
            if not self._loses():
                self._later(lambda: None if self.cut else answer(found))

        if not self.cut:
            self._later(arrive)
        if not answered:
            error = StoreError(f"the store has not answered for {timeout_ms / 1_000:g} s")
            self.agenda.later(timeout_ms, lambda: answer(error))

    def _loses(self) -> bool:
        return self.lost > 0 and self.draw.random() < self.lost

    def _later(self, what: Callable[[], None]) -> None:
        least_ms, most_ms = self._delay_ms()
        delay_ms = self.draw.uniform(least_ms, most_ms) if most_ms else 0.0
        if delay_ms:
            self.agenda.later(delay_ms, what)
        else:
            what()


class WayDesk:
    """A desk whose answers come when the way lets them. `serve` is what the store does with a batch; `wake` is called
    when there is an answer."""

    def __init__(self, way: StoreWay, serve: Callable[[Batch], Answers], wake: Callable[[], None]) -> None:
        self._way = way
        self._serve = serve
        self._wake = wake
        self._answers: Answers | None = None

    def ask(self, batch: Batch) -> None:
        if batch.loads:
            reads = Batch(loads=batch.loads)
            self._way.call(partial(self._serve, reads), partial(self._read, batch))
        else:
            self._write(batch, [])

    def _read(self, batch: Batch, found: Answers | StoreError) -> None:
        failed: list[Loaded] = [found for _ in batch.loads] if isinstance(found, StoreError) else []
        self._write(batch, failed if isinstance(found, StoreError) else list(found.loaded))

    def _write(self, batch: Batch, loaded: list[Loaded]) -> None:
        if not batch.writes and not batch.ended:
            self._answered(loaded, Answers(loaded, [], []))
            return
        writes = Batch(writes=batch.writes, ended=batch.ended)
        self._way.call(partial(self._serve, writes), partial(self._answered, loaded))

    def _answered(self, loaded: list[Loaded], found: Answers | StoreError) -> None:
        written: Answers = Answers([], found, []) if isinstance(found, StoreError) else found
        self._answers = Answers(loaded, written.written, written.overtaken)
        self._wake()

    def answers(self) -> Answers | None:
        answers, self._answers = self._answers, None
        return answers

    def at_once(self, do: Callable[[OwnershipStore], None], timeout_s: float) -> None:
        raise StoreError("nobody waits for a store in virtual time")
