"""Signals that end a command which has much to take back: the first begins that, and none after it cuts it short."""

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

_ENDS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ended_once() -> Iterator[None]:
    """KeyboardInterrupt at the first SIGINT, SIGTERM or SIGHUP; later ones are ignored until the process is gone, by
    what it starts then too.

    What was ignored before (nohup, a shell's background job) stays so. For the main thread.
    """
    before: dict[signal.Signals, Any] = {}

    def end(*_: object) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in _ENDS:
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.getsignal(number)
    for number in before:
        signal.signal(number, end)
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException:
        _restore(before)
        raise
    _restore(before)


def _restore(before: Mapping[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
