"""Lines for people on standard output, which nobody waits for.

What reads them may be stopped, or a terminal that was halted: then a write would hold up whoever has something to say,
which here is everything that a gateway does.
"""

import os
import select
import threading
from collections import deque
from contextlib import suppress
from typing import Final

#: Lines that are kept while they cannot be written; of more than that the oldest are lost, and counted.
MOST_WAITING: Final = 256
#: A pipe that can be written takes so many bytes at once (PIPE_BUF).
_MOST_BYTES: Final = 4096


class Voice:
    """`say(text)`: one line each, on `descriptor`; any thread. Never waits: what cannot be written goes before the next
    line, at best, and what cannot be written at all is nobody's loss."""

    def __init__(self, name: str, descriptor: int = 1) -> None:
        self._name = name
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()
        self._lost = 0
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def say(self, text: str) -> None:
        with self._lock:
            self._waiting.append(self._line(text))
            while len(self._waiting) > MOST_WAITING:
                self._waiting.popleft()
                self._lost += 1
            # A terminal that has gone away sends SIGHUP, and takes no more words.
            with suppress(OSError):
                self._write()

    def _line(self, text: str) -> bytes:
        return f"{self._name}: {text}\n".encode(errors="replace")

    def _write(self) -> None:
        while self._waiting and self._ready():
            if self._lost:
                self._waiting.appendleft(
                    self._line(f"{self._lost} lines before this one could not be written")
                )
                self._lost = 0
            line = self._waiting.popleft()
            written = os.write(self._descriptor, line[:_MOST_BYTES])
            if written < len(line):
                self._waiting.appendleft(line[written:])

    def _ready(self) -> bool:
        return any(events & select.POLLOUT for _fd, events in self._poll.poll(0))
