"""F13, F30: control messages that are lost, repeated and overtaken, and rekeys at the worst moments."""

from typing import Final

from jvpn.observability.events import KeyEvent
from jvpn.protocol.constants import PacketType
from jvpn.protocol.control import ControlType
from jvpn.session.machine import State
from jvpn.sim.matrix.acts import link, loud, rebind, rekey, shape, silent, together
from jvpn.sim.matrix.holds import (
    carried,
    gap,
    lost,
    never,
    resumed,
    rtts,
    same_session,
    switches,
    transitions,
)
from jvpn.sim.matrix.paths import DIED, recovered
from jvpn.sim.matrix.scene import QUICK, Act, At, Hold, Scenario, Scene
from jvpn.sim.network import Flight


def lose(kind: PacketType, count: int, *, up: bool) -> Act:
    """The next `count` datagrams of that kind are lost on their way."""

    def act(scene: Scene) -> None:
        left = count
        scene.note(f"the next {count} {kind.name} are lost")

        def passes(flight: Flight) -> bool:
            nonlocal left
            if flight.up is not up or flight.kind is not kind or left == 0:
                return True
            left -= 1
            return False

        scene.filters.append(passes)

    return act


def _phase_agreed(scene: Scene) -> str:
    """Both ends are in one phase, and each rekey came about once."""
    ours, theirs = scene.client.rekeying.secrets.phase_number, scene.live.secrets.phase_number
    if ours != theirs or scene.client.rekeying.under_way:
        return f"the client is in phase {ours}, the gateway in {theirs}"
    phases = [e.phase for _at, e in scene.told("gateway", KeyEvent, "begin") if e.action == "rekeyed"]
    return "" if len(phases) == len(set(phases)) else f"phases {phases}"


def rekeyed(count: int) -> Hold:
    def look(scene: Scene) -> str:
        phases = [e.phase for _at, e in scene.told("gateway", KeyEvent) if e.action == "rekeyed"]
        return "" if len(phases) == count else f"{len(phases)} rekeys, not {count}"

    return look


def _configured_once(scene: Scene) -> str:
    configured = scene.world.client.configured
    return "" if len(configured) == 1 else f"the tunnel was configured {len(configured)} times"


def _flaps(place: int, times: int, period_ms: int) -> tuple[At, ...]:
    return tuple(At(n * period_ms, link(place, n % 2 == 1)) for n in range(2 * times))


def _changes(count: int) -> tuple[At, ...]:
    """Another source for each, while nothing that the client sends arrives."""
    addresses = [f"198.51.100.{10 + n}" for n in range(count)]
    return tuple(At(300 + 400 * n, rebind(0, address=address)) for n, address in enumerate(addresses))


F13: Final = (
    Scenario(
        "F13",
        "the ACK that binds is lost three times",
        (At(0, together(lose(PacketType.REATTACH_ACK, 3, up=False), link(0, False)), "dies"),),
        (same_session, transitions(*DIED), switches(1), lost(0), gap(rtts(3, 4 * 50 + 100, 1))),
        lasts_ms=2_500,
    ),
    Scenario(
        "F13-chunks",
        "of a rekey and all it is made of, every third datagram of control is lost each way",
        (
            At(
                0,
                together(rekey, lose(PacketType.CONTROL, 2, up=True), lose(PacketType.CONTROL, 2, up=False)),
            ),
            At(4_000, lambda scene: None, "later"),
        ),
        (same_session, transitions(), rekeyed(1), _phase_agreed, _configured_once, lost(0)),
        warm_ms=9_000,
        lasts_ms=6_000,
    ),
    Scenario(
        "F13-repeated",
        "everything comes twice, and a third of it late, around a rekey and a death",
        (
            At(-500, shape(0, 1, duplicate=1.0, reorder=0.3, reorder_ms=15.0)),
            At(0, rekey),
            At(20, link(0, False), "dies"),
        ),
        (same_session, transitions(*DIED), switches(1), rekeyed(1), _phase_agreed, _configured_once, lost(0)),
        warm_ms=9_000,
        lasts_ms=3_000,
    ),
    Scenario(
        "F13-unheard",
        "the client's network changes five times without a word reaching the gateway",
        (At(0, silent(0, down=False)), *_changes(5), At(2_500, loud(0), "heard")),
        (same_session, never(State.TERMINATED), resumed(rtts(2, 60), "heard"), lost(0, after="heard")),
        uplinks=1,
        lasts_ms=5_000,
    ),
    Scenario(
        "F13-flaps",
        "a candidate's link flaps fifty times, and then the active path dies",
        (*_flaps(1, 50, 60), At(13_000, link(0, False), "dies")),
        (same_session, transitions(*DIED), switches(1), lost(0), gap(rtts(2, 20, 1), "dies")),
        lasts_ms=15_000,
    ),
)


def both_rekey(scene: Scene) -> None:
    """The gateway asks for a rekey at the instant that the client begins one."""
    gateway = scene.world.gateway
    scene.note("both ends want a rekey")
    scene.live.channel.send(ControlType.REKEY_REQUIRED, b"KEY_LIMIT", gateway.clock.now_ms)
    gateway.context.flush(scene.live, gateway.clock.now_ms)
    gateway.touched = True
    rekey(scene)


_WARM_MS: Final = 9_000

F30: Final = (
    Scenario(
        "F30",
        "a rekey begins at the moment that the active link goes down",
        (At(0, together(rekey, link(0, False)), "dies"),),
        (same_session, transitions(*DIED), rekeyed(1), _phase_agreed, lost(0), gap(rtts(1, 20, 1))),
        flows=QUICK,
        warm_ms=_WARM_MS,
        lasts_ms=2_500,
    ),
    Scenario(
        "F30-silent",
        "the active path falls silent while a rekey is under way",
        (At(-5, rekey), At(0, silent(0), "dies")),
        (same_session, transitions(*DIED), rekeyed(1), _phase_agreed, lost(0), gap(recovered)),
        flows=QUICK,
        warm_ms=_WARM_MS,
        lasts_ms=2_500,
    ),
    Scenario(
        "F30-loss",
        "a rekey while 15 % of all packets are lost each way",
        (At(0, shape(0, 1, loss=0.15)), At(500, rekey), At(5_000, shape(0, 1), "calm")),
        (
            same_session,
            never(State.TERMINATED),
            rekeyed(1),
            _phase_agreed,
            lost(0, after="calm"),
            carried("calm"),
        ),
        warm_ms=_WARM_MS,
        lasts_ms=7_000,
    ),
    Scenario(
        "F30-both",
        "the gateway asks for a rekey at the instant that the client begins one",
        (At(0, both_rekey),),
        (same_session, transitions(), rekeyed(1), _phase_agreed, lost(0), gap(rtts(0))),
        flows=QUICK,
        warm_ms=_WARM_MS,
        lasts_ms=3_000,
    ),
)

SCENARIOS: Final = (*F13, *F30)
