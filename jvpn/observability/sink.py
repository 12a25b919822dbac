"""Where events go. A sink never blocks and never fails whoever emits: what it cannot keep it counts, and says
so when it can.

`FileSink` hands lines to one writer thread over a bounded queue. The queue overflowing, a disk full, a
directory gone, an event that cannot be encoded: each is a counted loss, and a TELEMETRY_LOSS line stands in the
stream where the missing events would have been.

Whoever emits encodes: it takes half a microsecond while the event is at hand. Were that the writer's, both threads
would hand the interpreter to each other all the time, which takes longer than all the encoding.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from jvpn.observability.events import AnyEvent, TelemetryLoss, encode
from jvpn.observability.linefile import LineFile
from jvpn.session.machine import Origin

DEFAULT_CAPACITY: Final = 16_384
#: How long an event waits for others before they are written together, and how long at most if nobody says `wake`.
GATHER_S: Final = 0.005
UNTOLD_S: Final = 1.0
#: So many events wake the writer whatever else is going on.
MANY: Final = 1_024
DEFAULT_RETRY_S: Final = 1.0


class Sink(Protocol):
    def emit(self, event: AnyEvent) -> None:
        """Take `event`; never blocks, never raises."""

    def wake(self) -> None:
        """Whoever emits has a moment now: what was taken may be written. Without it that comes a little later."""

    def close(self, timeout_s: float) -> bool:
        """Write out what was taken. False if something was lost or the time did not suffice."""


class MemorySink:
    """Keeps events in a list, for tests and for the simulator."""

    def __init__(self) -> None:
        self.events: list[AnyEvent] = []

    def emit(self, event: AnyEvent) -> None:
        self.events.append(event)

    def wake(self) -> None:
        return

    def close(self, timeout_s: float) -> bool:
        return True

    def lines(self) -> list[bytes]:
        return [encode(event) for event in self.events]


class NoSink:
    """For a node that is configured to keep no events."""

    def emit(self, event: AnyEvent) -> None:
        return

    def wake(self) -> None:
        return

    def close(self, timeout_s: float) -> bool:
        return True


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class FileSink:
    """Appends JSON lines to `path`, reopening it when it has been rotated away.

    `capacity`: events waiting at most. `retry_s`: how long to wait after a failed write.
    """

    def __init__(
        self,
        path: Path,
        node_id: str,
        origin: Origin = Origin.GATEWAY,
        *,
        capacity: int = DEFAULT_CAPACITY,
        retry_s: float = DEFAULT_RETRY_S,
        wall_ms: Callable[[], int] = _wall_ms,
    ) -> None:
        self._node_id, self._origin = node_id, origin
        self._capacity, self._retry_s, self._wall_ms = capacity, retry_s, wall_ms
        # Whoever emits takes the lock itself: the condition around it is Python, and takes four times as long.
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._queue: list[bytes] = []
        self._resting = False
        self._overflowed = 0
        self._closing = False
        self._lost = 0
        self._written = 0
        self._file = LineFile(path)
        self._writer = threading.Thread(target=self._run, name="jvpn-events", daemon=True)
        self._writer.start()

    @property
    def lost(self) -> int:
        """Events lost so far."""
        with self._wake:
            return self._lost

    @property
    def written(self) -> int:
        """Events written so far, TELEMETRY_LOSS not counted."""
        with self._wake:
            return self._written

    @property
    def last_error(self) -> str:
        """What the last failed write said; empty while writing works."""
        return self._file.error

    def emit(self, event: AnyEvent) -> None:
        line = _encode_or_none(event)
        with self._lock:
            if line is None or self._closing or len(self._queue) >= self._capacity:
                self._overflowed += 1
                self._lost += 1
                return
            self._queue.append(line)
            if len(self._queue) == MANY:
                self._wake.notify()

    def wake(self) -> None:
        """The writer's thread would take turns with a reattach that tells of itself, so it is left alone until then."""
        if self._resting and self._queue:
            with self._wake:
                self._wake.notify()

    def close(self, timeout_s: float) -> bool:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._writer.join(timeout_s)
        return not self._writer.is_alive() and self.lost == 0

    def _run(self) -> None:
        # Losses not yet told in the stream. They happened before anything still queued.
        owed = 0
        while True:
            closing = self._wait(owed)
            if owed:
                if self._file.append([encode(self._loss(owed))]) == 0:
                    if closing:
                        break
                    continue
                owed = 0
            batch, overflowed = self._take()
            # The queue was full from the first overflow until just now: those come after the whole batch.
            owed = self._write(batch) + overflowed
            if closing and not batch and not owed:
                break
        self._abandon()
        self._file.close()

    def _wait(self, owed: int) -> bool:
        """Until there is something to do. Returns whether the sink is closing."""
        with self._wake:
            if self._file.error:
                # Not one attempt for each event while the disk is full: let them gather.
                self._wake.wait_for(lambda: self._closing, self._retry_s)
            elif not owed:
                self._resting = True
                while not (self._queue or self._overflowed or self._closing):
                    self._wake.wait(UNTOLD_S)
                self._resting = False
                self._wake.wait_for(lambda: self._closing, GATHER_S)
            return self._closing

    def _take(self) -> tuple[list[bytes], int]:
        with self._wake:
            batch, self._queue = self._queue, []
            overflowed, self._overflowed = self._overflowed, 0
            return batch, overflowed

    def _write(self, batch: Sequence[bytes]) -> int:
        """Returns how many of `batch` are not in the file."""
        done = self._file.append(batch)
        missing = len(batch) - done
        with self._wake:
            self._written += done
            self._lost += missing
        return missing

    def _abandon(self) -> None:
        """What is still queued when the sink closes on a file that cannot be written is lost."""
        batch, _ = self._take()
        with self._wake:
            self._lost += len(batch)

    def _loss(self, count: int) -> TelemetryLoss:
        return TelemetryLoss(
            ts_ms=self._wall_ms(),
            node_id=self._node_id,
            origin=self._origin,
            reason_code="EVENTS_LOST",
            count=count,
        )


def open_sink(path: Path | None, node_id: str, origin: Origin) -> Sink:
    """A FileSink, its directory made; NoSink for None. A directory that cannot be made is a counted loss too."""
    if path is None:
        return NoSink()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    return FileSink(path, node_id, origin)


def _encode_or_none(event: AnyEvent) -> bytes | None:
    """None for what JSON cannot say: a bug of the emitter, but not one that may stop the others' events."""
    try:
        return encode(event)
    except (TypeError, ValueError, RecursionError, OverflowError):
        return None
