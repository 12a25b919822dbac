"""Draws a timeline for a terminal: time on the left, a spine that shows the state, and what happened beside it.

Solid spine: traffic is delivered. Dashed: recovering or degraded. The bar under a switch shows detection and
reattach to scale with the longest of the session.
"""

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from jvpn.observability.events import PathRef
from jvpn.observability.rows import Note, Row, Switch
from jvpn.session.machine import State, split_version

if TYPE_CHECKING:
    from jvpn.observability.timeline import Timeline

_MARK: Final = {
    State.BIRTH: "·",
    State.ATTACHED: "●",
    State.VOLATILE: "◐",
    State.RECOVERING: "○",
    State.DEGRADED: "◌",
    State.TERMINATED: "■",
}
_SPINE: Final = {
    State.BIRTH: "┆",
    State.ATTACHED: "│",
    State.VOLATILE: "│",
    State.RECOVERING: "┆",
    State.DEGRADED: "┆",
    State.TERMINATED: " ",
}
_COLOR: Final = {
    State.BIRTH: "2",
    State.ATTACHED: "32",
    State.VOLATILE: "33",
    State.RECOVERING: "36",
    State.DEGRADED: "35",
    State.TERMINATED: "31",
}
_NOTE_MARK: Final = {"SECURITY_EVENT": "!", "TRANSPORT_SWITCH_DENIED": "✗", "REATTACH_RESULT": "✗"}
_TIME_WIDTH: Final = 13
#: Columns left of what stands beside the spine.
_BESIDE: Final = _TIME_WIDTH + 4
_BAR_WIDTH: Final = 24
_MIN_WIDTH: Final = 40
#: A spine line tells how long a state lasted, from here on.
_WORTH_SAYING_MS: Final = 1_000


def render(timeline: "Timeline", width: int, color: bool) -> str:
    width = max(width, _MIN_WIDTH)
    rows = timeline.rows
    reasons = max((len(row.reason) for row in rows), default=0)
    versions = max((len(row.version) for row in rows), default=0)
    longest = max((_total(switch) for switch in timeline.switches), default=0.0)
    lines = [*(part for line in _header(timeline) for part in _fold(line, width)), "─" * width]
    for number, row in enumerate(rows):
        lines.append(_row(row, versions, reasons, color))
        beside = _bound(row) + _switch(row.switch, longest)
        lines += [_beside(row, part, color) for text in beside for part in _fold(text, width - _BESIDE)]
        lines += [_noted(row, note, color) for note in row.notes]
        if number + 1 < len(rows):
            lasted = rows[number + 1].offset_ms - row.offset_ms
            if lasted >= _WORTH_SAYING_MS:
                lines.append(_beside(row, f"{_duration(lasted)}", color, faint=True))
    return "\n".join(_cut(line, width) for line in lines)


def _header(timeline: "Timeline") -> list[str]:
    start = datetime.fromtimestamp(timeline.start_ms / 1000, UTC)
    switches = timeline.switches
    gaps = [switch.gap_ms for switch in switches if switch.gap_ms is not None]
    said = [f"{len(switches)} switch{'' if len(switches) == 1 else 'es'}"]
    if gaps:
        said.append(f"longest gap {_ms(max(gaps))}")
    if timeline.lost:
        said.append(f"{timeline.lost} events lost")
    seen_by = f"{timeline.origin} {', '.join(timeline.nodes)}"
    policy = f" · policy {timeline.policy_version}" if timeline.policy_version else ""
    return [
        f"Session {timeline.session_id}",
        f"{timeline.state} at version {split_version(timeline.state_version)} after "
        f"{_duration(timeline.length_ms)} · {' · '.join(said)}",
        f"since {start:%Y-%m-%d %H:%M:%S}.{timeline.start_ms % 1000:03d} UTC · {seen_by}{policy}",
    ]


def _row(row: Row, versions: int, reasons: int, color: bool) -> str:
    time = f"{_clock(row.offset_ms):>{_TIME_WIDTH}}"
    state = _paint(f"{_MARK[row.to]} {row.to:<10}", row.to, color)
    told = "told by the gateway" if row.followed else ""
    return "  ".join((time, state, f"{row.version:<{versions}}", f"{row.reason:<{reasons}}", told)).rstrip()


def _bound(row: Row) -> list[str]:
    return [f"⇄ {_path(row.path)}"] if row.path is not None and row.switch is None else []


def _beside(row: Row, text: str, color: bool, faint: bool = False) -> str:
    spine = _paint(_SPINE[row.to], row.to, color)
    words = f"\x1b[2m{text}\x1b[0m" if faint and color else text
    return f"{'':>{_TIME_WIDTH}}  {spine} {words}"


def _noted(row: Row, note: Note, color: bool) -> str:
    spine = _paint(_SPINE[row.to], row.to, color)
    return f"{_clock(note.offset_ms):>{_TIME_WIDTH}}  {spine} {_NOTE_MARK.get(note.kind, '·')} {note.text}"


def _switch(switch: Switch | None, longest: float) -> list[str]:
    if switch is None:
        return []
    old = _path(switch.old) if switch.old is not None else "no path"
    lines = [f"⇄ {old} → {_path(switch.new)}{' · asked for' if switch.explicit else ''}"]
    parts = [
        f"{name} {_ms(value)}"
        for name, value in (("detect", switch.detect_ms), ("reattach", switch.reattach_ms))
        if value is not None
    ]
    gap = f"gap {_ms(switch.gap_ms)}" if switch.gap_ms is not None else ""
    if switch.silent_ms is not None:
        gap = f"silent {_ms(switch.silent_ms)}"
    told = " · ".join(part for part in (gap, " + ".join(parts)) if part)
    bar = _bar(switch, longest)
    if told or bar:
        lines.append(f"  {bar}{'  ' if bar and told else ''}{told}")
    return lines


def _bar(switch: Switch, longest: float) -> str:
    """Detection solid, reattach shaded; the longest of the session fills the width."""
    total = _total(switch)
    if not longest or not total:
        return ""
    solid = round(_BAR_WIDTH * (switch.detect_ms or 0) / longest)
    whole = max(1, round(_BAR_WIDTH * total / longest))
    return "█" * min(solid, whole) + "▒" * max(0, whole - solid)


def _total(switch: Switch) -> float:
    return (switch.detect_ms or 0) + (switch.reattach_ms or 0)


def _path(path: PathRef) -> str:
    where = " ".join(part for part in (path.device, path.source) if part)
    return f"{path.transport}#{path.index}{' ' + where if where else ''}"


def _paint(text: str, state: State, color: bool) -> str:
    return f"\x1b[{_COLOR[state]}m{text}\x1b[0m" if color else text


def _clock(offset_ms: int) -> str:
    seconds, milliseconds = divmod(offset_ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{seconds:02d}.{milliseconds:03d}"
    return f"{minutes}:{seconds:02d}.{milliseconds:03d}"


def _duration(length_ms: int) -> str:
    if length_ms < 1000:
        return f"{length_ms} ms"
    if length_ms < 60_000:
        return f"{length_ms / 1000:.1f} s"
    minutes, seconds = divmod(round(length_ms / 1000), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _ms(value: float) -> str:
    return f"{value:.1f} ms" if 0 < value < 10 else f"{value:.0f} ms"


def _fold(line: str, width: int) -> list[str]:
    """Break a line that is too long where it has an arrow or a dot between things."""
    if len(line) <= width:
        return [line]
    # From 3 on: what is left over begins with such a mark itself, and must not be broken there again.
    breaks = [match.start() for match in re.finditer(" [→·] ", line) if match.start() > 2]
    if not breaks:
        return [line]
    at = max((place for place in breaks if place <= width), default=breaks[0])
    return [line[:at], *_fold("  " + line[at + 1 :], width)]


def _cut(line: str, width: int) -> str:
    """Shorten to `width` visible columns; a colour is closed again."""
    shown, position = 0, 0
    while position < len(line):
        if line[position] == "\x1b":
            position = line.index("m", position) + 1
            continue
        shown += 1
        position += 1
        if shown == width and position < len(line) and line[position:] != "\x1b[0m":
            ending = "\x1b[0m" if "\x1b" in line else ""
            return line[: position - 1] + "…" + ending
    return line
