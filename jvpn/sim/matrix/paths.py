"""F1–F4, F9, F28, F31: paths that die, come back, change their source or shrink."""

from typing import Final

from jvpn.observability.events import StateChange
from jvpn.session.machine import State
from jvpn.sim.clock import NS
from jvpn.sim.matrix.acts import link, loud, rebind, shape, silent
from jvpn.sim.matrix.holds import (
    carried,
    gap,
    lost,
    moves,
    never,
    none_older_than,
    passed,
    resumed,
    rtts,
    same_session,
    switches,
    transitions,
    within,
)
from jvpn.sim.matrix.scene import NONE, QUICK, SLOW, At, Flow, Hold, Scenario, Scene

DIED: Final = ("ATTACHED RECOVERING TRANSPORT_DEAD", "RECOVERING ATTACHED REATTACH_OK")
MOVED: Final = ("ATTACHED RECOVERING ADDRESS_CHANGED", "RECOVERING ATTACHED REATTACH_OK")
#: A lossless path is found dead within this and one round trip.
DEAD_MS: Final = 180
RESEND_MS: Final = 500


def _slower(scene: Scene) -> float:
    return max(scene.rtt_ms(0), scene.rtt_ms(1))


def found_dead(place: int = 0) -> Hold:
    return within(rtts(1, DEAD_MS, place), "dies", "client", State.RECOVERING, ["TRANSPORT_DEAD"])


def recovered(scene: Scene) -> float:
    """Found dead, and two round trips of the path that follows."""
    return scene.rtt_ms(0) + DEAD_MS + 2 * scene.rtt_ms(1)


def _noticed(scene: Scene) -> float:
    """As `recovered`, for who has to notice first that a stream has stopped."""
    return recovered(scene) + 50


_SAVED: Final = (same_session, transitions(*DIED), switches(1), lost(0), found_dead(), gap(recovered))


def _ttl_kept(scene: Scene) -> str:
    """TERMINATED when the TTL of being without a binding is over, and not before."""
    for end in ("gateway", "client"):
        unbound, ended = None, None
        for at, change in scene.told(end, StateChange):
            if change.to is State.TERMINATED:
                ended = at
            elif change.bindings == 0 and unbound is None:
                unbound = at
        if unbound is None or ended is None:
            return f"the {end} went {moves(scene, end)}"
        lasted_ms = (ended - unbound) / NS - scene.policy.transport_loss_ttl_ms
        if not -1 <= lasted_ms <= 1 + scene.slack_ms:
            return f"the {end} ended {lasted_ms:.0f} ms beyond the TTL"
    return ""


F1: Final = (
    Scenario(
        "F1",
        "the active uplink's link goes down, another is validated",
        (At(0, link(0, False), "dies"),),
        (same_session, transitions(*DIED), switches(1), lost(0), gap(rtts(1, 20, 1))),
        flows=QUICK,
        lasts_ms=2_000,
    ),
    Scenario(
        "F1-cold",
        "the active uplink's link goes down the moment another's has come up",
        (At(-2_000, link(1, False)), At(-1, link(1, True)), At(0, link(0, False), "dies")),
        (same_session, transitions(*DIED), switches(1), lost(0), gap(rtts(2, 20, 1))),
        flows=QUICK,
        lasts_ms=2_000,
    ),
)

F2: Final = (
    Scenario(
        "F2",
        "the active path is silent, both ways",
        (At(0, silent(0), "dies"),),
        _SAVED,
        flows=QUICK,
        lasts_ms=2_000,
    ),
    Scenario(
        "F2-up",
        "the active path is dead from the client to the gateway",
        (At(0, silent(0, down=False), "dies"),),
        _SAVED,
        flows=QUICK,
        lasts_ms=2_000,
    ),
    Scenario(
        "F2-down",
        "the active path is dead from the gateway to the client",
        (At(0, silent(0, up=False), "dies"),),
        _SAVED,
        flows=QUICK,
        lasts_ms=2_000,
    ),
    Scenario(
        "F2-listening",
        "the active path is silent while only the gateway sends",
        (At(0, silent(0), "dies"),),
        (same_session, transitions(*DIED), switches(1), lost(0), gap(_noticed, up=False)),
        flows=(Flow(False, 20),),
        # A round trip that was measured once or twice may vary by as much as itself.
        policy={"idle_probe_interval_ms": 500},
        warm_ms=8_000,
        lasts_ms=2_500,
    ),
)

F3: Final = (
    Scenario(
        "F3",
        "the only path is silent for good",
        (At(0, silent(0), "dies"),),
        (
            passed("RECOVERING DEGRADED RECOVERY_WINDOW_EXCEEDED", end="client"),
            passed("DEGRADED TERMINATED TRANSPORT_LOSS_TTL_EXPIRED", end="client"),
            passed("DEGRADED TERMINATED TRANSPORT_LOSS_TTL_EXPIRED"),
            _ttl_kept,
        ),
        uplinks=1,
        policy={"recovery_window_ms": 2_000, "transport_loss_ttl_ms": 5_000, "idle_probe_interval_ms": 2_000},
        lasts_ms=14_000,
    ),
)

_BACK: Final = (
    same_session,
    carried("returns"),
    none_older_than(rtts(1.5, RESEND_MS)),
    resumed(rtts(1, 60), "returns"),
    within(rtts(1, 60), "returns", "client", State.ATTACHED),
    lost(0, after="returns"),
)

F4: Final = (
    Scenario(
        "F4",
        "the only path is silent for 5 s",
        (At(0, silent(0), "dies"), At(5_000, loud(0), "returns")),
        _BACK,
        uplinks=1,
        lasts_ms=7_000,
    ),
    Scenario(
        "F4-link",
        "the only link is down for 5 s, and netlink says so",
        (At(0, link(0, False), "dies"), At(5_000, link(0, True), "returns")),
        _BACK,
        uplinks=1,
        lasts_ms=7_000,
    ),
)

F9: Final = (
    Scenario(
        "F9",
        "a NAT gives another port while both ends send",
        (At(0, rebind(0), "moves"),),
        (same_session, transitions(*MOVED), switches(1), lost(0), gap(rtts(2, 20))),
        flows=QUICK,
        lasts_ms=2_000,
    ),
    Scenario(
        "F9-address",
        "a NAT gives another address while both ends send",
        (At(0, rebind(0, address="198.51.100.7"), "moves"),),
        (same_session, transitions(*MOVED), switches(1), lost(0), gap(rtts(2, 20))),
        flows=QUICK,
        lasts_ms=2_000,
    ),
    Scenario(
        "F9-family",
        "the client comes from an IPv6 address instead of its IPv4 one",
        (At(0, rebind(0, address="2001:db8::7"), "moves"),),
        (same_session, transitions(*MOVED), switches(1), lost(0), gap(rtts(2, 20))),
        flows=QUICK,
        lasts_ms=2_000,
    ),
    Scenario(
        "F9-idle",
        "a NAT gives another port while nobody sends",
        (At(0, rebind(0), "moves"),),
        (
            same_session,
            transitions(*MOVED),
            switches(1),
            within(rtts(2, 2_000), "moves", "client", State.ATTACHED),
        ),
        flows=NONE,
        policy={"idle_probe_interval_ms": 2_000},
    ),
    Scenario(
        "F9-listening",
        "a NAT gives another port while only the gateway sends",
        (At(0, rebind(0), "moves"),),
        (same_session, transitions(*MOVED), lost(0), gap(rtts(2, 100), up=False)),
        flows=(Flow(False, 20),),
        lasts_ms=2_500,
    ),
)

F28: Final = (
    Scenario(
        "F28",
        "the path dies, and the next one carries 1280 bytes only, without a word",
        (At(-2_000, shape(1, mtu=1_280)), At(0, link(0, False), "dies")),
        (
            same_session,
            switches(1),
            never(State.TERMINATED, State.DEGRADED),
            lost(0),
            gap(rtts(10, 1_000, 1)),
        ),
        flows=(Flow(True, 20, 1_300), Flow(False, 20, 1_300)),
        lasts_ms=6_000,
    ),
    Scenario(
        "F28-under",
        "the path in use shrinks to 1280 bytes under a transfer",
        (At(0, shape(0, 1, mtu=1_280), "shrinks"), At(6_000, lambda scene: None, "later")),
        (same_session, never(State.TERMINATED), carried("later"), lost(0, after="later")),
        flows=(Flow(True, 20, 1_300), Flow(False, 20, 1_300)),
        lasts_ms=9_000,
    ),
)

F31: Final = (
    Scenario(
        "F31",
        "every uplink drops UDP for 20 s (this build carries UDP alone)",
        (At(0, silent(0, 1), "blocked"), At(20_000, loud(0, 1), "allowed")),
        (
            same_session,
            passed("RECOVERING DEGRADED RECOVERY_WINDOW_EXCEEDED", end="client"),
            never(State.TERMINATED),
            none_older_than(lambda scene: 1.5 * _slower(scene) + RESEND_MS),
            # A challenge is no older than this: the first answer brings another, and the second binds.
            resumed(lambda scene: 2 * _slower(scene) + 60, "allowed"),
            lost(0, after="allowed"),
        ),
        flows=SLOW,
        lasts_ms=23_000,
    ),
)

SCENARIOS: Final = (*F1, *F2, *F3, *F4, *F9, *F28, *F31)
