"""F16–F18, F29: sessions whose time is over, or whom an operator ends or moves, and clocks that are set."""

from typing import Final

from jvpn.observability.events import StateChange
from jvpn.session.machine import Reason, State
from jvpn.sim.clock import NS
from jvpn.sim.matrix.acts import at_end, clock, end, gateway_wish, loud, replay, shape, silent, together, wish
from jvpn.sim.matrix.holds import carried, lost, moves, never, passed, same_session, switches, transitions
from jvpn.sim.matrix.paths import F3, F4
from jvpn.sim.matrix.scene import BOTH, SLOW, Act, At, Hold, Scenario, Scene

MINUTE_MS: Final = 60_000
#: The lifetime is over 5 to 6 s after the row began.
_OLD_MS: Final = 54_000
#: One way only: a path that loses both ways may well be taken for dead.
_LOSSY: Final = shape(0, down=False, loss=0.3)
_SHORT: Final = {
    "session_ttl_ms": MINUTE_MS,
    "transport_loss_ttl_ms": MINUTE_MS,
    "idle_probe_interval_ms": 500,
}


def ended(which: str, reason: Reason, *states: State) -> Hold:
    """That end's first session was TERMINATED for this reason, out of one of these states, and never moved again."""

    def look(scene: Scene) -> str:
        sink = scene.world.gateway.sink if which == "gateway" else scene.world.client.sink
        first = next(e.session_id for e in sink.events if isinstance(e, StateChange))
        last = [e for e in sink.events if isinstance(e, StateChange) and e.session_id == first][-1]
        fits = last.to is State.TERMINATED and last.reason_code == reason
        if not fits or (states and last.from_ not in states):
            return f"the {which} ended {last.from_} {last.to} {last.reason_code}, not {states} {reason}"
        return ""

    return look


def _lifetime_kept(scene: Scene) -> str:
    """Ended when the lifetime was over, as both ends count it from the handshake."""
    for which in ("gateway", "client"):
        sink = scene.world.gateway.sink if which == "gateway" else scene.world.client.sink
        changes = [
            (at, e) for at, e in zip(sink.times_ns, sink.events, strict=True) if isinstance(e, StateChange)
        ]
        born = changes[0][0]
        over = next((at for at, e in changes if e.to is State.TERMINATED), None)
        if over is None:
            return f"the {which} has not ended: {moves(scene, which)}"
        beyond_ms = (over - born) / NS - MINUTE_MS
        # Each counts from its own half of the handshake; ATTACHED is told up to two round trips later.
        if not -2 * scene.rtt_ms() - scene.slack_ms <= beyond_ms <= scene.slack_ms:
            return f"the {which} ended {beyond_ms:.0f} ms beyond the lifetime"
    return ""


def _another(scene: Scene) -> str:
    """A new session by a new handshake, which delivers."""
    core = scene.world.client.core
    assert core is not None
    if core.handshakes_done != 2 or not scene.world.attached:
        return f"{core.handshakes_done} handshakes, attached: {scene.world.attached}"
    return ""


def _life(name: str, title: str, state: State, *acts: Act, **policy: object) -> Scenario:
    """Its lifetime ends in that state, and its REQUESTs and everything else are said again after that."""
    theirs = state if state is not State.RECOVERING else State.ATTACHED
    return Scenario(
        f"F16{name}",
        f"the session's lifetime is over {title}",
        (
            At(0, together(*acts)),
            At(8_000, together(loud(0), shape(0)), "well"),
            At(10_500, replay(2, "begin"), "replayed"),
        ),
        (
            ended("client", Reason.SESSION_TTL_EXPIRED, state),
            ended("gateway", Reason.SESSION_TTL_EXPIRED, state, theirs, State.RECOVERING),
            _lifetime_kept,
            _another,
            carried("replayed"),
        ),
        uplinks=1,
        policy={**_SHORT, **policy},
        flows=BOTH,
        lasts_ms=13_000,
        warm_ms=_OLD_MS,
    )


F16: Final = (
    _life("", "while it delivers", State.ATTACHED),
    _life("-volatile", "while it is VOLATILE", State.VOLATILE, _LOSSY, volatile_to_degraded_ms=30_000),
    _life("-recovering", "while a reattach is in flight", State.RECOVERING, silent(0)),
    _life(
        "-degraded",
        "while it is DEGRADED without a path",
        State.DEGRADED,
        silent(0),
        recovery_window_ms=1_000,
    ),
    Scenario(
        "F16-late",
        "the REQUESTs of a reattach arrive when the lifetime is over",
        (
            At(0, at_end(-300, silent(0, down=False), up_held=True)),
            At(8_000, loud(0)),
            At(10_000, lambda scene: None, "later"),
        ),
        (
            ended("client", Reason.SESSION_TTL_EXPIRED),
            ended("gateway", Reason.SESSION_TTL_EXPIRED),
            _lifetime_kept,
            _another,
            carried("later"),
        ),
        uplinks=2,
        policy=_SHORT,
        flows=SLOW,
        lasts_ms=13_000,
        warm_ms=_OLD_MS,
    ),
)


def _window_kept(to: State) -> Hold:
    """RECOVERING lasted as long as the recovery window, to the millisecond, and led where the policy says."""

    def look(scene: Scene) -> str:
        changes = scene.told("client", StateChange)
        entered = next((at for at, e in changes if e.to is State.RECOVERING), None)
        left = next(
            (
                at
                for at, e in changes
                if e.from_ is State.RECOVERING and e.reason_code == "RECOVERY_WINDOW_EXCEEDED"
            ),
            None,
        )
        if entered is None or left is None or not any(at == left and e.to is to for at, e in changes):
            return f"the client went {moves(scene, 'client')}"
        beyond_ms = (left - entered) / NS - scene.policy.recovery_window_ms
        return "" if -1 <= beyond_ms <= 1 else f"RECOVERING lasted {beyond_ms:.1f} ms beyond its window"

    return look


F17: Final = (
    Scenario(
        "F17",
        "the recovery window is over, and the policy keeps the session",
        (At(0, silent(0)), At(5_000, loud(0), "returns")),
        (same_session, _window_kept(State.DEGRADED), never(State.TERMINATED), carried("returns")),
        uplinks=1,
        policy={"recovery_window_ms": 2_000},
        lasts_ms=8_000,
    ),
    Scenario(
        "F17-ends",
        "the recovery window is over, and the policy ends the session",
        (At(0, silent(0)), At(5_000, loud(0), "returns"), At(9_000, lambda scene: None, "later")),
        (
            _window_kept(State.TERMINATED),
            ended("client", Reason.RECOVERY_WINDOW_EXCEEDED, State.RECOVERING),
            _another,
            carried("later"),
        ),
        uplinks=1,
        policy={
            "recovery_window_ms": 2_000,
            "on_recovery_window_exceeded": "terminate",
            "idle_probe_interval_ms": 500,
        },
        flows=SLOW,
        lasts_ms=12_000,
    ),
)


def _stopped(scene: Scene) -> str:
    """The client knows that somebody wanted the end, and does not begin anew."""
    core = scene.world.client.core
    assert core is not None
    if not core.stopped or core.handshakes_done != 1:
        return f"stopped: {core.stopped}, {core.handshakes_done} handshakes"
    return ""


def _end_in(name: str, title: str, state: State, at_ms: int, *acts: Act, **policy: object) -> Scenario:
    """A client that cannot hear of it finds a gateway that knows no such session, and shakes hands anew."""
    unheard = state in (State.RECOVERING, State.DEGRADED)
    return Scenario(
        f"F18-ended{name}",
        f"the gateway's operator ends the session {title}",
        (At(0, together(*acts)), At(at_ms, end, "ended"), At(at_ms + 4_000, together(loud(0), shape(0)))),
        (
            ended("gateway", Reason.OPERATOR_TERMINATED, state),
            _another if unheard else _stopped,
        ),
        uplinks=1,
        policy={"idle_probe_interval_ms": 500, **policy},
        flows=BOTH,
        lasts_ms=at_ms + 9_000,
    )


def _moved_by(name: str, title: str, *acts: Act, lossy: bool = False) -> Scenario:
    """Moved by wish, whatever the state: nothing is lost by it."""
    before = shape(0, 1, down=False, loss=0.3) if lossy else shape()
    return Scenario(
        f"F18{name}",
        title,
        (At(0, before), At(3_500, shape(0, 1)), At(3_600, together(*acts), "wished")),
        (
            same_session,
            passed(*(("ATTACHED VOLATILE QUALITY_FLOOR_VIOLATION",) if lossy else ())),
            _operator_switched,
            lost(0, after="wished"),
        ),
        policy={
            "volatile_to_degraded_ms": 30_000,
            "switch_improvement_factor": 10.0,
            "switch_cooldown_ms": 0,
        },
        lasts_ms=6_500,
    )


def _operator_switched(scene: Scene) -> str:
    seen = [move for move in moves(scene, "gateway", "wished") if move.endswith("RECOVERING OPERATOR_SWITCH")]
    return "" if len(seen) == 1 else f"the gateway went {moves(scene)}"


def _stayed(scene: Scene) -> str:
    seen = moves(scene, "gateway", "wished")
    return f"the gateway went {seen}" if seen else ""


F18: Final = (
    _moved_by("", "the client's operator wants another uplink", wish(1)),
    _moved_by("-gateway", "the gateway's operator wants another path", gateway_wish()),
    Scenario(
        "F18-drain",
        "the gateway drains, and there is no other node to go to",
        (At(0, shape()), At(3_600, gateway_wish(Reason.NODE_DRAIN), "wished")),
        (same_session, _stayed, lost(0, after="wished")),
        lasts_ms=6_500,
    ),
    _moved_by("-volatile", "the client's operator wants another uplink while VOLATILE", wish(1), lossy=True),
    _end_in("", "while it delivers", State.ATTACHED, 500),
    _end_in(
        "-volatile", "while it is VOLATILE", State.VOLATILE, 4_000, _LOSSY, volatile_to_degraded_ms=30_000
    ),
    _end_in("-recovering", "while it is RECOVERING", State.RECOVERING, 4_000, silent(0)),
    _end_in("-degraded", "while it is DEGRADED", State.DEGRADED, 7_000, silent(0), recovery_window_ms=1_000),
)

MONTH_S: Final = 30 * 86_400


def _jumps(by_s: int, *at_ms: int) -> tuple[At, ...]:
    """Both machines' wall clocks are set, there and back again."""
    acts = []
    for number, at in enumerate(at_ms):
        step_s = by_s if number % 2 == 0 else -2 * by_s
        acts.append(At(at, together(clock("gateway", step_s), clock("client", -step_s))))
    return tuple(acts)


F29: Final = (
    Scenario(
        "F29",
        "both wall clocks jump by a month, apart and back, under traffic",
        (*_jumps(MONTH_S, 0, 1_000, 2_000), At(1_000, lambda scene: None, "jumped")),
        (same_session, transitions(), transitions(end="client"), switches(0), lost(0), carried("jumped")),
        policy={"rekey_interval_ms": 10_000},
    ),
    Scenario(
        "F29-unbound",
        "the wall clocks jump by a month while the only path is silent for good",
        (*F3[0].timeline, *_jumps(MONTH_S, 1_000, 3_000, 4_000)),
        F3[0].holds,
        uplinks=1,
        policy=F3[0].policy,
        lasts_ms=F3[0].lasts_ms,
    ),
    Scenario(
        "F29-returns",
        "the wall clocks jump by a month while the only path is silent for 5 s",
        (*F4[0].timeline, *_jumps(MONTH_S, 1_000, 3_000)),
        F4[0].holds,
        uplinks=1,
        lasts_ms=F4[0].lasts_ms,
    ),
    Scenario(
        "F29-lifetime",
        "the wall clocks jump by a month shortly before the lifetime is over",
        (*_jumps(MONTH_S, 0, 2_000), At(12_000, lambda scene: None, "later")),
        (
            ended("client", Reason.SESSION_TTL_EXPIRED, State.ATTACHED),
            ended("gateway", Reason.SESSION_TTL_EXPIRED, State.ATTACHED),
            _lifetime_kept,
        ),
        uplinks=1,
        policy=_SHORT,
        flows=SLOW,
        lasts_ms=9_000,
        warm_ms=_OLD_MS,
    ),
)

SCENARIOS: Final = (*F16, *F17, *F18, *F29)
