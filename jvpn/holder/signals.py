"""SIGTERM and SIGINT as something to read, for processes that wait in a selector."""

import os
import signal


def stop_pipe() -> int:
    """A descriptor that becomes readable at SIGTERM or SIGINT, so that no handler runs in the middle of anything."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return reader
