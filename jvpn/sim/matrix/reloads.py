"""F25, F33: policy files that are broken, and policies that change, while a session runs."""

from typing import Any, Final

from jvpn.observability.events import AuditEvent
from jvpn.policy.model import Policy, PolicyError, load
from jvpn.session.machine import Reason, State
from jvpn.sim.matrix.acts import link
from jvpn.sim.matrix.holds import carried, gap, lost, rtts, same_session, switches, transitions
from jvpn.sim.matrix.lives import ended
from jvpn.sim.matrix.paths import DIED
from jvpn.sim.matrix.scene import Act, At, Hold, Scenario, Scene
from jvpn.supervisor.policies import Mode, PolicySet


def reload(text: str, mode: Mode) -> Act:
    """The file of the policy `default` says `text` now, and the gateway is told to read it."""

    def act(scene: Scene) -> None:
        gateway = scene.world.gateway
        assert gateway.core is not None
        policies: dict[str, Policy] = {}
        broken: dict[str, str] = {}
        try:
            policies["default"] = load(text, "default.yaml")
        except PolicyError as error:
            broken["default"] = str(error)
            scene.note(f"the policy file is broken: {error}")
        assigned = dict.fromkeys(gateway.context.peers.peers, ("default", ()))
        found = PolicySet("default", policies, broken, assigned, mode)
        applied = gateway.core.apply_policies(found, mode, "an operator", gateway.clock.now_ms)
        scene.note(f"policies read again, {mode}: {applied.changed} changed, {applied.ended} ended")
        gateway.touched = True

    return act


def has(**wanted: Any) -> Hold:
    """Both ends go by these parameters."""

    def look(scene: Scene) -> str:
        for end, policy in (("gateway", scene.live.policy), ("client", scene.client.policy)):
            seen = {name: getattr(policy, name) for name in wanted}
            if seen != wanted:
                return f"the {end} goes by {seen}, not {wanted}"
        return ""

    return look


def audited(code: str, *words: str) -> Hold:
    """The gateway has told of it, in these words among others."""

    def look(scene: Scene) -> str:
        told = [e.result for _at, e in scene.told("gateway", AuditEvent) if e.reason_code == code]
        if not any(all(word in text for word in words) for text in told):
            return f"the gateway told {told}, which is not {code} {words}"
        return ""

    return look


def start_again(scene: Scene) -> None:
    """The client is killed and started: it needs a new session."""
    scene.world.client.kill()
    scene.world.client.start()
    scene.note("the client is started anew")


def _refused(scene: Scene) -> str:
    """No new session while the file is broken; the one that had it before is left to its TTL."""
    core = scene.world.client.core
    assert core is not None
    return "" if core.session is None else "a new session has a policy whose file is broken"


def _new_session(scene: Scene) -> str:
    core = scene.world.client.core
    assert core is not None
    return "" if scene.world.attached else "there is no session at the end"


_BROKEN: Final = "probe_interval_ms: 40\nrecovery_window_ms: soon\n"
_SOUND: Final = "probe_interval_ms: 50\nmax_candidates: 2\n"
_KEM: Final = "kem: none\n"


def _broken(name: str, mode: Mode) -> Scenario:
    return Scenario(
        f"F25{name}",
        f"the policy file is broken when it is read again ({mode}), and later a path dies",
        (At(0, reload(_BROKEN, mode)), At(1_000, link(0, False), "dies")),
        (
            same_session,
            transitions(*DIED),
            switches(1),
            lost(0),
            has(probe_interval_ms=40, recovery_window_ms=8_000),
            audited("POLICY_BROKEN", "default.yaml", "2", "recovery_window_ms"),
        ),
        lasts_ms=3_000,
    )


F25: Final = (
    _broken("", "strict"),
    _broken("-grace", "grace"),
    Scenario(
        "F25-start",
        "a client starts while its policy's file is broken",
        (At(0, reload(_BROKEN, "grace")), At(500, start_again)),
        (_refused, audited("POLICY_BROKEN", "recovery_window_ms")),
        lasts_ms=5_000,
    ),
    Scenario(
        "F25-mended",
        "a client starts while its policy's file is broken, which is then mended",
        (
            At(0, reload(_BROKEN, "grace")),
            At(500, start_again),
            At(4_000, reload(_SOUND, "grace")),
            At(9_000, lambda scene: None, "later"),
        ),
        (_new_session, has(probe_interval_ms=50, max_candidates=2), carried("later")),
        lasts_ms=11_000,
    ),
)

F33: Final = (
    Scenario(
        "F33",
        "another policy in grace mode: the session keeps its own",
        (At(0, reload(_SOUND, "grace")), At(1_000, link(0, False), "dies")),
        (same_session, transitions(*DIED), lost(0), has(probe_interval_ms=40, max_candidates=3)),
        lasts_ms=3_000,
    ),
    Scenario(
        "F33-strict",
        "another policy in strict mode: the session goes on by the new one",
        (At(0, reload(_SOUND, "strict")), At(1_000, link(0, False), "dies")),
        (
            same_session,
            transitions(*DIED),
            lost(0),
            gap(rtts(1, 20, 1), "dies"),
            has(probe_interval_ms=50, max_candidates=2),
            audited("POLICY_CHANGED", "strict"),
        ),
        lasts_ms=3_000,
    ),
    Scenario(
        "F33-keys",
        "another key encapsulation in strict mode: that takes a new handshake",
        (At(0, reload(_KEM, "strict")), At(5_000, lambda scene: None, "later")),
        (ended("gateway", Reason.SESSION_TTL_EXPIRED, State.ATTACHED), audited("POLICY_CHANGED", "strict")),
        lasts_ms=7_000,
    ),
    Scenario(
        "F33-meanwhile",
        "another policy in strict mode while a reattach is in flight",
        (At(0, link(0, False), "dies"), At(3, reload(_SOUND, "strict"))),
        (same_session, transitions(*DIED), lost(0), has(probe_interval_ms=50, max_candidates=2)),
        lasts_ms=3_000,
    ),
)

SCENARIOS: Final = (*F25, *F33)
