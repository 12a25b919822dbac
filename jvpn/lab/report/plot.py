"""One run as a drawing: what was done, throughput, session state and active transport, above one time axis.

Colours are classes that `style` gives a value in light and in dark; nothing is told by colour alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from jvpn.lab.report import spans
from jvpn.lab.report.axis import LEFT, RIGHT, WIDTH, Rate, TimeAxis, rate, rows_of, width_of
from jvpn.lab.report.element import Element, el
from jvpn.lab.report.spans import Span
from jvpn.lab.scenario.result import Result, Series

LANE: Final = 18.0
LANE_GAP: Final = 4.0
CURVE: Final = 84.0
HEADING: Final = 20.0
GROUP_GAP: Final = 12.0
#: What lasted less is still seen.
LEAST_WIDTH: Final = 2.5
LONGEST_LABEL: Final = 60
DIRECTIONS: Final = ("up", "down")


def has_drawing(result: Result) -> bool:
    """Whether the run came as far as to leave something to draw."""
    return bool(result.series or result.states or result.transports or result.marks)


def drawing(result: Result) -> Element:
    """An `svg` element, WIDTH wide; its title and description say in words what it shows."""
    plot = _Plot(result)
    plot.steps()
    first = plot.y
    plot.curves()
    plot.lanes("session state", spans.states(result))
    plot.lanes("active transport", spans.transports(result))
    return plot.finished(first)


@dataclass(frozen=True, slots=True)
class _Words:
    """A text that begins at x, upon its bar or beside it; bars and text together reach from start to end."""

    text: str
    x: float
    upon: bool
    start: float
    end: float


class _Plot:
    """`y` is how far down the drawing has come; `back` is what lies behind everything else."""

    def __init__(self, result: Result) -> None:
        self.result = result
        self.axis = TimeAxis(spans.until(result))
        self.y = 4.0
        self.back = el("g")
        self.front = el("g")

    def heading(self, text: str, *more: Element) -> None:
        self.front.append(el("text", text, class_="heading", x=LEFT, y=self.y + 13))
        self.front.extend(more)
        self.y += HEADING

    def lane_name(self, text: str, y: float, class_: str = "name") -> None:
        self.front.append(el("text", _short(text, 13), class_=class_, x=LEFT - 8, y=y, text_anchor="end"))

    def steps(self) -> None:
        """Bars of faults and attacks, what is done again in the same row, with their words once where they fit."""
        alike: dict[tuple[str, str], list[Span]] = {}
        for span in spans.steps(self.result):
            alike.setdefault((span.kind, span.text), []).append(span)
        if not alike:
            return
        self.heading("what was done")
        placed = [(self._words(group), group) for group in alike.values()]
        for row in rows_of((words.start, words.end, (words, group)) for words, group in placed):
            for words, group in row:
                self._group(words, group)
            self.y += LANE + LANE_GAP
        self.y += GROUP_GAP

    def _words(self, group: list[Span]) -> "_Words":
        """Right of the last bar where there is room, else left of the first, else upon it."""
        text = _short(group[0].text, LONGEST_LABEL)
        room = width_of(text) + 14
        x, first = self.axis.x(group[0].start_s), self.axis.x(group[0].end_s)
        end = max(self.axis.x(group[-1].end_s), x + 5)
        if room <= first - x:
            return _Words(text, x + 6, True, x, end)
        if end + room <= WIDTH:
            return _Words(text, end + 6, False, x - 5, end + room)
        if x - room >= LEFT:
            return _Words(text, x - room + 4, False, x - room, end)
        return _Words(text, LEFT + 6, True, LEFT, WIDTH)

    def _group(self, words: "_Words", group: list[Span]) -> None:
        for span in group:
            x, end = self.axis.x(span.start_s), self.axis.x(span.end_s)
            if end > x:
                mark = el("rect", x=x, y=self.y, width=max(end - x, LEAST_WIDTH), height=LANE, rx=2)
            else:
                mark = el("path", d=f"M{x:.2f} {self.y + 3:.2f}l5 6l-5 6l-5 -6z")
            mark.set("class", f"step {span.kind}")
            mark.append(el("title", span.more))
            self.front.append(mark)
        class_ = f"on {group[0].kind}" if words.upon else "beside"
        self.front.append(el("text", words.text, class_=class_, x=words.x, y=self.y + 13))

    def curves(self) -> None:
        """One panel for each stream of traffic, both its directions in it."""
        streams: dict[str, dict[str, Series]] = {}
        for name, series in self.result.series.items():
            stream, _, direction = name.rpartition(".")
            if stream and direction in DIRECTIONS:
                streams.setdefault(stream, {})[direction] = series
            else:
                streams.setdefault(name, {})["up"] = series
        for stream, ways in streams.items():
            self._panel(stream, ways)

    def _panel(self, stream: str, ways: dict[str, Series]) -> None:
        scale = rate(max((value for series in ways.values() for value in series.mbit_s), default=0.0))
        self.heading(f"{stream}, {scale.unit} received", *self._key(ways))
        for share, label in ((1.0, scale.label), (0.0, "0")):
            y = self.y + CURVE * (1 - share)
            self.back.append(el("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
            self.lane_name(label, y + 4, "tick")
        for direction in DIRECTIONS:
            if direction in ways:
                points = self._points(ways[direction], scale)
                title = el("title", f"{stream} {direction}")
                self.front.append(el("polyline", title, class_=f"curve {direction}", points=points))
        self.y += CURVE + GROUP_GAP

    def _key(self, ways: Iterable[str]) -> list[Element]:
        """Which line is which direction, where there are two, at the right end of the heading."""
        shown = [way for way in DIRECTIONS if way in ways]
        if len(shown) == 1:
            return []
        parts, x = [], WIDTH - RIGHT - 150
        for direction in shown:
            line = el("line", class_=f"curve {direction}", x1=x, x2=x + 26, y1=self.y + 9, y2=self.y + 9)
            parts += [line, el("text", direction, class_="beside", x=x + 32, y=self.y + 13)]
            x += 76
        return parts

    def _points(self, series: Series, scale: Rate) -> str:
        return " ".join(
            f"{self.axis.x(at):.1f},{self.y + CURVE * (1 - scale.share(value)):.1f}"
            for at, value in zip(series.at_s, series.mbit_s, strict=True)
            if 0 <= at <= self.axis.until_s
        )

    def lanes(self, title: str, lanes: dict[str, list[Span]]) -> None:
        if not lanes:
            return
        self.heading(title)
        for name, lane in lanes.items():
            self.lane_name(name, self.y + 13)
            ends = {"x1": LEFT, "x2": WIDTH - RIGHT, "y1": self.y + LANE, "y2": self.y + LANE}
            self.back.append(el("line", class_="grid", **ends))
            # The shortest last, so that what is drawn wider than it lasted is not covered.
            for span in sorted(lane, key=lambda span: span.start_s - span.end_s):
                self._bar(span)
            self.y += LANE + LANE_GAP
        self.y += GROUP_GAP

    def _bar(self, span: Span) -> None:
        x = self.axis.x(span.start_s)
        width = max(self.axis.x(span.end_s) - x, LEAST_WIDTH)
        title = el("title", span.more)
        bar = el("rect", title, x=x, y=self.y, width=width, height=LANE, class_=f"bar {_class(span.kind)}")
        self.front.append(bar)
        if width_of(span.text) + 8 <= width:
            words = el("text", span.text, class_=f"on {_class(span.kind)}", x=x + 5, y=self.y + 13)
            self.front.append(words)

    def _legend(self) -> None:
        """Names of the states that occur, for bars too narrow for theirs."""
        kinds = sorted({span.kind for lane in spans.states(self.result).values() for span in lane})
        if not kinds:
            return
        x = LEFT
        for kind in kinds:
            self.front.append(
                el("rect", class_=f"bar {_class(kind)}", x=x, y=self.y + 4, width=12, height=12)
            )
            self.front.append(el("text", kind, class_="beside", x=x + 17, y=self.y + 14))
            x += 17 + width_of(kind) + 22
        self.y += 24

    def finished(self, first: float) -> Element:
        """With the time axis, the faults' bands behind the panels that begin at `first`, and the legend."""
        bottom = self.y
        for at_s, label in self.axis.ticks():
            x = self.axis.x(at_s)
            self.back.append(el("line", class_="grid", x1=x, x2=x, y1=first, y2=bottom))
            self.front.append(
                el("text", f"{label} s", class_="tick", x=x, y=bottom + 14, text_anchor="middle")
            )
        bands = [self._band(span, first, bottom) for span in spans.steps(self.result)]
        self.y += 24
        self._legend()
        name = f"{self.result.scenario}: {self.result.title}"
        words = "What was done, throughput, session state and active transport over the seconds of the run."
        return el(
            "svg", el("title", name), el("desc", words), *bands, self.back, self.front,
            xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH:g} {self.y:g}", class_="run", role="img",
        )  # fmt: skip

    def _band(self, span: Span, top: float, bottom: float) -> Element:
        x, end = self.axis.x(span.start_s), self.axis.x(span.end_s)
        if end > x:
            return el("rect", class_=f"band {span.kind}", x=x, y=top, width=end - x, height=bottom - top)
        return el("line", class_="moment", x1=x, x2=x, y1=top, y2=bottom)


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _class(kind: str) -> str:
    """A state's class; one that is not known looks like BIRTH."""
    word = kind.lower()
    return word if word.isalpha() and word.isascii() else "unknown"
