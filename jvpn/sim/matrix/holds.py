"""What must hold in a scenario, judged from payloads and events. Each answers what is wrong, or nothing."""

import itertools
from collections.abc import Callable, Sequence

from jvpn.observability.events import StateChange, TransportSwitch
from jvpn.session.machine import State
from jvpn.sim.clock import NS
from jvpn.sim.matrix.scene import Hold, Scene

Bound = Callable[[Scene], float]
WAYS = ((True, "up"), (False, "down"))


def rtts(count: float, plus_ms: float = 0.0, place: int = 0) -> Bound:
    """So many round trips of that uplink, and so many ms."""
    return lambda scene: count * scene.rtt_ms(place) + plus_ms


# Payloads


def lost(most: int = 0, *, up: bool = True, down: bool = True, after: str = "") -> Hold:
    """No more packets than that have not come, each way (of those offered after the mark)."""

    def look(scene: Scene) -> str:
        for way, name in WAYS:
            since_ns = scene.marks[after] if after else 0
            gone = sum(sent >= since_ns for _size, sent in scene.traffic.ways[way].sent.values())
            if (up if way else down) and gone > most:
                return f"{gone} packets {name} are lost, {most} may be"
        return ""

    return look


def carried(after: str, least: int = 10) -> Hold:
    """After the mark, packets came both ways."""

    def look(scene: Scene) -> str:
        for way, name in WAYS:
            came = sum(sent >= scene.marks[after] for _number, sent, _at in scene.traffic.log[way])
            if came < least:
                return f"{came} packets {name} that were offered after {after} have come, not {least}"
        return ""

    return look


def none_older_than(bound: Bound) -> Hold:
    """No packet came later than that after it was offered."""

    def look(scene: Scene) -> str:
        most_ms = bound(scene) + scene.slack_ms
        for way, name in WAYS:
            for number, sent, at in scene.traffic.log[way]:
                if at - sent > most_ms * NS:
                    return f"packet {number} {name} came {(at - sent) / NS:.0f} ms old, {most_ms:.0f} may be"
        return ""

    return look


def silence_ms(scene: Scene, up: bool, mark: str = "begin") -> float:
    """The longest time without any delivery that ended after the mark."""
    times = [at for _number, _sent, at in scene.traffic.log[up]]
    pairs = itertools.pairwise(times)
    return max(((b - a) / NS for a, b in pairs if b >= scene.marks[mark]), default=float("inf"))


def gap(bound: Bound, mark: str = "begin", *, up: bool = True, down: bool = True) -> Hold:
    """The stream was silent no longer than that, its own period not counted."""

    def look(scene: Scene) -> str:
        for way, name in WAYS:
            if not (up if way else down):
                continue
            period_ms = max(flow.period_ms for flow in scene.scenario.flows if flow.up is way)
            seen, most = silence_ms(scene, way, mark), bound(scene) + period_ms + scene.slack_ms
            if seen > most:
                return f"nothing came {name} for {seen:.1f} ms, {most:.1f} may pass"
        return ""

    return look


def resumed(bound: Bound, mark: str) -> Hold:
    """Both ways, something came no later than that after the mark."""

    def look(scene: Scene) -> str:
        for way, name in WAYS:
            since = scene.marks[mark]
            first = min((at for _number, _sent, at in scene.traffic.log[way] if at >= since), default=1 << 62)
            period_ms = max(flow.period_ms for flow in scene.scenario.flows if flow.up is way)
            most = bound(scene) + period_ms + scene.slack_ms
            if first - since > most * NS:
                return f"{name} the first came {(first - since) / NS:.0f} ms after {mark}, not {most:.0f}"
        return ""

    return look


# The session


def same_session(scene: Scene) -> str:
    """One session, one handshake, and it delivers at the end."""
    core = scene.world.client.core
    assert core is not None
    changes = [e for e in scene.world.gateway.sink.events if isinstance(e, StateChange)]
    sessions = {change.session_id for change in changes}
    if core.handshakes_done != 1 or len(sessions) != 1 or scene.world.client.over:
        return f"{core.handshakes_done} handshakes, {len(sessions)} sessions"
    if not scene.world.attached:
        return f"not attached at the end: {scene.live.machine.state}, client {scene.client.view.state}"
    return ""


def moves(scene: Scene, end: str = "gateway", mark: str = "begin") -> list[str]:
    """The transitions since, as "FROM TO REASON"."""
    return [f"{e.from_} {e.to} {e.reason_code}" for _at, e in scene.told(end, StateChange, mark)]


def transitions(*wanted: str, end: str = "gateway") -> Hold:
    """Exactly these, in this order."""

    def look(scene: Scene) -> str:
        seen = moves(scene, end)
        return "" if seen == list(wanted) else f"the {end} went {seen}, not {list(wanted)}"

    return look


def passed(*wanted: str, end: str = "gateway") -> Hold:
    """These are among them, in this order."""

    def look(scene: Scene) -> str:
        seen = moves(scene, end)
        rest = iter(seen)
        missing = [move for move in wanted if not any(move == other for other in rest)]
        return f"the {end} did not go {missing[0]!r}, but {seen}" if missing else ""

    return look


def never(*states: State) -> Hold:
    """Neither end was in any of them since the beginning."""

    def look(scene: Scene) -> str:
        for end in ("gateway", "client"):
            seen = [move for move in moves(scene, end) if move.split()[1] in states]
            if seen:
                return f"the {end} went {seen[0]}"
        return ""

    return look


def switches(count: int, *, explicit: bool = False) -> Hold:
    """So many TRANSPORT_SWITCHes since the beginning, all of that kind."""

    def look(scene: Scene) -> str:
        seen = [e.explicit for _at, e in scene.told("gateway", TransportSwitch)]
        return "" if seen == [explicit] * count else f"switches {seen}, not {count} × explicit {explicit}"

    return look


def within(bound: Bound, mark: str, end: str, to: State, reasons: Sequence[str] = ()) -> Hold:
    """After the mark that end was in `to` no later than that, for one of these reasons if any are given."""

    def look(scene: Scene) -> str:
        times = [
            scene.ms_since(mark, at)
            for at, e in scene.told(end, StateChange, mark)
            if e.to is to and (not reasons or e.reason_code in reasons)
        ]
        most = bound(scene) + scene.slack_ms
        if not times or times[0] > most:
            return f"the {end} was {to} {times[:1]} ms after {mark}, bound {most:.0f}: {moves(scene, end)}"
        return ""

    return look


def counted(what: str, value: Callable[[Scene], float], low: float, high: float = float("inf")) -> Hold:
    """A number that lies within bounds."""

    def look(scene: Scene) -> str:
        seen = value(scene)
        return "" if low <= seen <= high else f"{what}: {seen:g}, not {low:g}…{high:g}"

    return look
