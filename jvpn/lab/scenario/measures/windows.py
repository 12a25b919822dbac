"""The times that assertions ask about, as far as they are known before anything has run."""

from __future__ import annotations

from collections.abc import Mapping

from jvpn.lab.scenario.expressions import Edge, ExpressionError, Window


def check(window: Window, marks: Mapping[str, float], ends_at_s: float) -> None:
    """Raises ExpressionError for a mark that there is not, and for a time in which nothing can have been measured.

    *marks*: seconds of the scenario at which they are due. When what they began ends is known only afterwards.
    """
    for mark in window.marks:
        if mark not in marks:
            raise ExpressionError(
                f"no line of the timeline is called {mark!r}; give one as: {mark}"
                if not marks
                else f"no line of the timeline is called {mark!r}; there are {', '.join(sorted(marks))}"
            )
    start_s = _due_s(window.start, marks, 0.0)
    end_s = ends_at_s if window.whole else _due_s(window.end, marks, ends_at_s)
    if start_s is not None and start_s >= ends_at_s:
        raise ExpressionError(
            f"the time asked about begins at {start_s:g} s, and the scenario ends at {ends_at_s:g} s",
            "ask about an earlier time, or let ends_at_s be later",
        )
    if start_s is None or end_s is None:
        return
    # Of two lines that are due at one moment the later one happens when the earlier one is done.
    between_marks = bool(window.start and window.start.mark and window.end and window.end.mark)
    if end_s < start_s or (end_s == start_s and not between_marks):
        raise ExpressionError(
            f"the time asked about begins at {start_s:g} s and ends at {end_s:g} s",
            "write [from:to] with the earlier one first",
        )


def _due_s(edge: Edge | None, marks: Mapping[str, float], otherwise_s: float) -> float | None:
    if edge is None:
        return otherwise_s
    if edge.at_end:
        return None
    return marks[edge.mark] if edge.mark else edge.at_s
