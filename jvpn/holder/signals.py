"""Signals as something to read, for processes that wait in a selector."""

import os
import signal


def stop_pipe() -> int:
    """A descriptor that becomes readable at SIGTERM or SIGINT, so that no handler runs in the middle of anything."""
    return signal_pipe(signal.SIGTERM, signal.SIGINT)


def signal_pipe(*numbers: signal.Signals) -> int:
    """A descriptor from which each of these signals can be read, as one byte with its number."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    return reader
