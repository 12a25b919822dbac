"""Reports of what arrived (docs/protocol.md, "Lossless reattach"): made from replay windows, and read by the peer."""

from collections.abc import Sequence
from typing import Final

from jvpn.protocol.constants import GENERATION_SHIFT, MAX_REPORTS
from jvpn.protocol.replay import ReplayWindow
from workers.commands import IndexReport
from workers.sessions import Session

REPORTED: Final = 256
UNKNOWN: Final = (1 << 64) - 1
#: A RESENT carries 24 bits of its counter; the receiver takes the nearest that has them.
RESENT_REACH: Final = 1 << 23


def session_reports(session: Session) -> list[IndexReport]:
    """The three newest indexes on which anything came, or could have come: the bound one and the one bound before."""
    for index in session.bound_indexes:
        session.window(index)
    windows = session.known_windows()
    indexes = {*windows, *session.bound_indexes}
    newest = sorted(indexes, reverse=True)[:MAX_REPORTS]
    return [index_report(index, windows.get(index)) for index in newest]


def index_report(index: int, window: ReplayWindow | None) -> IndexReport:
    if window is None or window.highest < 0:
        return IndexReport(index, 0, bytes(REPORTED // 8))
    highest = window.highest
    first = max(highest + 1 - REPORTED, highest >> GENERATION_SHIFT << GENERATION_SHIFT)
    seen = window.seen_run(first, highest + 1 - first)
    missing = sum(1 << bit for bit, was_seen in enumerate(reversed(seen)) if not was_seen)
    return IndexReport(index, highest + 1, missing.to_bytes(REPORTED // 8, "little"))


class Missing:
    """What the peer does not have, by its reports. On an index newer than the oldest reported one, but not reported
    itself, nothing had arrived; of anything older, and without any report, nothing is known."""

    def __init__(self, reports: Sequence[IndexReport]) -> None:
        self._reports = {report.index: report for report in reports}
        self._oldest = min(self._reports, default=UNKNOWN)
        self._bits = {report.index: int.from_bytes(report.missing, "little") for report in reports}

    def among(self, index: int, first: int, count: int) -> bool:
        """Whether any of `count` counters from `first` on can be missing on `index`. It errs to True."""
        report = self._reports.get(index)
        if report is None:
            return index >= self._oldest
        if report.next_counter == UNKNOWN:
            return False
        behind = report.next_counter - first - count
        return behind < 0 or bool(self._bits[index] >> behind & (1 << count) - 1)

    def __call__(self, index: int, counter: int, generation: int) -> bool:
        """Whether what was sent on `index` under `counter` is to go again, and can: by 24 bits of it and, where
        nothing has arrived yet, by the `generation` of what carries it."""
        if not self.among(index, counter, 1):
            return False
        report = self._reports.get(index)
        if report is None or not report.next_counter:
            return 0 <= counter - (generation << GENERATION_SHIFT) < RESENT_REACH
        return counter - (report.next_counter - 1) < RESENT_REACH
