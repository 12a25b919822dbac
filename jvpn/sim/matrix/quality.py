"""F5–F8: paths that lose and delay, but live."""

import itertools
from collections.abc import Callable
from typing import Final

from jvpn.observability.events import ReattachAttempt, StateChange, TransportSwitch, TransportSwitchDenied
from jvpn.session.machine import State
from jvpn.sim.clock import NS
from jvpn.sim.matrix.acts import link, loud, shape, silent, together, wish
from jvpn.sim.matrix.holds import (
    counted,
    lost,
    moves,
    never,
    same_session,
    transitions,
    within,
)
from jvpn.sim.matrix.paths import DEAD_MS
from jvpn.sim.matrix.scene import SLOW, Act, At, Scenario, Scene

PROBE_MS: Final = 40
#: Twice the floor's hold and the window it is measured over, and what a decision takes beside that.
BROKEN_MS: Final = 500 + 2_000 + 1_500

#: Two windows of loss, and the time that all has to hold.
CALM_MS: Final = 2 * 2_000 + 2_000 + 1_500
_BOUND: Final = "RECOVERING ATTACHED REATTACH_OK"

_STILL: Final = (same_session, transitions(), transitions(end="client"))


def _on_the_other(scene: Scene) -> str:
    active = scene.client.paths.active
    return "" if active == scene.uplink(1) else f"the session is on uplink {active}"


_BY_QUALITY: Final = (
    "ATTACHED VOLATILE QUALITY_FLOOR_VIOLATION",
    "VOLATILE RECOVERING QUALITY_SWITCH",
    _BOUND,
)
_AT_ONCE: Final = ("ATTACHED RECOVERING QUALITY_SWITCH", _BOUND)
_FOR_DEAD: Final = ("ATTACHED RECOVERING TRANSPORT_DEAD", _BOUND)
_VOLATILE_DEAD: Final = (_BY_QUALITY[0], "VOLATILE RECOVERING TRANSPORT_DEAD", _BOUND)


def _left_once(scene: Scene) -> str:
    """By quality, VOLATILE first unless the HEALTH that proposes it is among what is lost.

    Or, seldom, for dead: with 3 to 4 of 10 packets lost each way more than half of all probes have no answer, and as
    many in a row as make a path dead may come by chance before anything has been measured of the loss.
    """
    seen = tuple(moves(scene))
    ways = (_BY_QUALITY, _AT_ONCE, _FOR_DEAD, _VOLATILE_DEAD)
    return "" if seen in ways else f"the gateway went {list(seen)}"


F5: Final = (
    Scenario(
        "F5",
        "one packet each way is lost",
        (At(0, silent(0)), At(6, loud(0))),
        (*_STILL, lost(1)),
        lasts_ms=3_000,
    ),
    Scenario(
        "F5-late",
        "single packets come late and out of order",
        (At(0, shape(0, reorder=0.02, reorder_ms=60.0)),),
        (*_STILL, lost(0)),
        lasts_ms=6_000,
    ),
    Scenario(
        "F5-floor",
        "loss of 8 %, below the floor",
        (At(0, shape(0, loss=0.08)),),
        _STILL,
        lasts_ms=12_000,
    ),
)

F6: Final = tuple(
    Scenario(
        f"F6{name}",
        f"{share:.0%} of all packets are lost on the active path, another is clean",
        (At(0, shape(0, loss=share), "lossy"),),
        (
            same_session,
            _left_once,
            _on_the_other,
            within(
                lambda scene: BROKEN_MS,
                "lossy",
                "gateway",
                State.RECOVERING,
                ["QUALITY_SWITCH", "TRANSPORT_DEAD"],
            ),
        ),
        lasts_ms=8_000,
    )
    for name, share in (("", 0.3), ("-worse", 0.4))
)


def _below_while_it_lasts(scene: Scene) -> str:
    """VOLATILE, and DEGRADED when that has lasted."""
    seen = {e.to for at, e in scene.told("gateway", StateChange) if at < scene.marks["calm"]}
    missing = {State.VOLATILE, State.DEGRADED} - seen
    return f"the gateway was never {min(missing)}: {moves(scene)}" if missing else ""


def _attached_again(scene: Scene) -> str:
    """On the path it is on, or on one that is measured well first; after that nothing moves any more."""
    times = [scene.ms_since("calm", at) for at, _e in scene.told("gateway", StateChange, "calm")]
    state = scene.live.machine.state
    if state is not State.ATTACHED or scene.client.view.state is not state:
        return f"the gateway is {state}, the client {scene.client.view.state}"
    return f"still moving after {times[-1]:.0f} ms: {moves(scene)}" if times and times[-1] > CALM_MS else ""


F7: Final = (
    Scenario(
        "F7",
        "every path loses 35 % for 12 s, then the network calms down",
        (At(0, shape(0, 1, loss=0.35)), At(12_000, shape(0, 1), "calm")),
        (
            same_session,
            never(State.TERMINATED),
            _below_while_it_lasts,
            _attached_again,
            lost(0, after="calm"),
        ),
        lasts_ms=22_000,
    ),
)


def _rate_kept(scene: Scene) -> str:
    """Voluntary switches: no more in a minute than the policy says, none sooner after a bind than its cooldown."""
    policy = scene.policy
    chosen = [at / NS for at, e in scene.told("gateway", TransportSwitch) if e.explicit]
    for first, last in zip(chosen, chosen[policy.max_switches_per_minute :], strict=False):
        if last - first < 60_000:
            return f"{policy.max_switches_per_minute + 1} voluntary switches within {last - first:.0f} ms"
    bound = [at / NS for at, _e in scene.told("gateway", TransportSwitch)]
    for before, after in itertools.pairwise(bound):
        if after in chosen and after - before < policy.switch_cooldown_ms - scene.slack_ms:
            return f"a voluntary switch {after - before:.0f} ms after a bind"
    return ""


def _denied(scene: Scene) -> float:
    ends = ("gateway", "client")
    return sum(len(scene.told(end, TransportSwitchDenied)) for end in ends)


def _by_turns(first: Act, second: Act, period_ms: int, until_ms: int) -> tuple[At, ...]:
    times = range(0, until_ms, period_ms)
    return tuple(At(at, first if number % 2 == 0 else second) for number, at in enumerate(times))


def _bad(place: int) -> Act:
    """That uplink loses much, the other nothing."""
    return together(shape(place, loss=0.4), shape(1 - place))


def _count(kind: type[object]) -> Callable[[Scene], float]:
    return lambda scene: len(scene.told("gateway", kind))


_DEATH: Final = (At(40_000, together(shape(0), shape(1), silent(0)), "dies"),)


def _death_recovered(scene: Scene) -> str:
    """Whether or not the session was on the path that died: it delivers over the other within the bound."""
    if scene.client.paths.active != scene.uplink(1):
        return f"the session is on uplink {scene.client.paths.active}, which is dead"
    times = [
        scene.ms_since("dies", at)
        for at, e in scene.told("gateway", StateChange, "dies")
        if e.to is State.ATTACHED and e.reason_code == "REATTACH_OK"
    ]
    # Of a path that was known to lose, up to 14 probes in a row have to stay without an answer.
    most = scene.rtt_ms(0) + DEAD_MS + 11 * PROBE_MS + 2 * scene.rtt_ms(1) + PROBE_MS + scene.slack_ms
    return f"recovered {times[0]:.0f} ms after the death" if times and times[0] > most else ""


F8: Final = (
    Scenario(
        "F8",
        "by turns one path of two loses 40 %, every 4 s, and at the end one dies",
        (*_by_turns(_bad(0), _bad(1), 4_000, 40_000), *_DEATH),
        (
            same_session,
            _rate_kept,
            counted("denials", _denied, 1),
            counted("binds", _count(TransportSwitch), 1, 6),
            never(State.TERMINATED),
            _death_recovered,
        ),
        policy={"max_switches_per_minute": 2},
        flows=SLOW,
        lasts_ms=44_000,
    ),
    Scenario(
        "F8-link",
        "the active uplink's link comes and goes every 150 ms for 6 s",
        (*_by_turns(link(0, False), link(0, True), 150, 6_000), At(6_000, link(0, True), "calm")),
        (
            same_session,
            _rate_kept,
            lost(0),
            counted("binds", _count(TransportSwitch), 1, 3),
            counted("attempts", _count(ReattachAttempt), 1, 6),
        ),
        lasts_ms=9_000,
    ),
    Scenario(
        "F8-wishes",
        "somebody wants the other path ten times within 5 s",
        tuple(At(500 * number, wish(1 - number % 2)) for number in range(10)),
        (same_session, lost(0), _rate_kept, counted("denials", _denied, 1)),
        policy={"max_switches_per_minute": 3},
        lasts_ms=7_000,
    ),
)

SCENARIOS: Final = (*F5, *F6, *F7, *F8)
