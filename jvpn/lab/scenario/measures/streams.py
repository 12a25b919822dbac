"""Measures of traffic: `STREAM.up.lost`, `STREAM.down.silence_ms[MARK]`, `BULK.mbit_s`.

Of a gauge, each direction ("up" from the client, "down" to it); counts are of frames sent, or for `received`, `late…`
and `duplicated` arriving, in the time asked about.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np

from jvpn.lab.gauge import Stream
from jvpn.lab.scenario.expressions import ExpressionError, Measure, Value
from jvpn.lab.scenario.measures.family import length, one_of

if TYPE_CHECKING:
    from jvpn.lab.scenario.record import Record, Span

Asked = Callable[[Stream, "Span"], Value]


def _arrived(stream: Stream, span: Span) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return (stream.arrival_ns >= span.start_ns) & (stream.arrival_ns < span.end_ns)


def _received(stream: Stream, span: Span) -> int:
    return len(np.unique(stream.seq[_arrived(stream, span)]))


def _duplicated(stream: Stream, span: Span) -> int:
    return int(np.count_nonzero(_arrived(stream, span))) - _received(stream, span)


def _sent(stream: Stream, span: Span) -> int:
    first, last = np.searchsorted(stream.sent_ns, (span.start_ns, span.end_ns))
    return int(last - first)


def _silence_ms(stream: Stream, span: Span) -> float:
    return round(stream.longest_silence_ms(span.start_ns, span.end_ns), 1)


def _first_ms(stream: Stream, span: Span) -> Value:
    """From the beginning of the time until something arrives."""
    after = stream.arrival_ns[_arrived(stream, span)]
    return round(float(after.min() - span.start_ns) / 1e6, 1) if len(after) else None


def _delay(stream: Stream, span: Span, share: float) -> Value:
    delays = stream.delay_ms[_arrived(stream, span)]
    return round(float(np.quantile(delays, share)), 1) if len(delays) else None


def _reordered(stream: Stream, span: Span) -> int:
    seq = stream.seq[_arrived(stream, span)]
    return int(np.count_nonzero(seq < np.maximum.accumulate(seq))) if len(seq) else 0


def _loss(stream: Stream, span: Span) -> Value:
    sent = _sent(stream, span)
    return round(stream.lost_between(span.start_ns, span.end_ns) / sent, 4) if sent else None


OF_GAUGE: Final[dict[str, Asked]] = {
    "sent": _sent,
    "received": _received,
    "lost": lambda stream, span: stream.lost_between(span.start_ns, span.end_ns),
    "loss": _loss,
    "duplicated": _duplicated,
    "reordered": _reordered,
    "skipped": lambda stream, span: stream.skipped_between(span.start_ns, span.end_ns),
    "silence_ms": _silence_ms,
    "first_ms": _first_ms,
    "delay_median_ms": lambda stream, span: _delay(stream, span, 0.5),
    "delay_max_ms": lambda stream, span: _delay(stream, span, 1.0),
}
OF_TRANSFER: Final = ("mbit_s", "silence_ms", "ok", "retransmits")


def check(measure: Measure, kind: str) -> None:
    """Of a stream of this kind."""
    if kind == "iperf":
        length(measure, 2, 2, "STREAM.MEASURE")
        one_of(measure.path[1], OF_TRANSFER, "measure of a transfer called")
        if measure.window is not None and measure.path[1] in ("ok", "retransmits"):
            raise ExpressionError(f"{measure.path[1]} is of the whole transfer: remove the [ ]")
        return
    length(measure, 3, 3, "STREAM.up.MEASURE or STREAM.down.MEASURE")
    one_of(measure.path[1], ("up", "down"), "direction")
    one_of(measure.path[2], OF_GAUGE, "measure of a stream called")


def value(record: Record, measure: Measure) -> Value:
    span = record.span(measure.window)
    if measure.path[0] in record.transfers:
        found = record.transfers[measure.path[0]].measure(measure.path[1], span.start_ns, span.end_ns)
        # In seconds of the scenario, which its links are slowed by too.
        if measure.path[1] == "mbit_s" and isinstance(found, float):
            return round(found * record.pace, 2)
        return found
    stream: Stream = getattr(record.streams[measure.path[0]], measure.path[1])
    return OF_GAUGE[measure.path[2]](stream, span)
