"""F10–F12, F14, F15: bad proofs, replays, racers, requests at once, versions that the session never had."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from jvpn.observability.events import ReattachResult, SecurityEvent, StateChange
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import DATA_KINDS, PacketType
from jvpn.session.machine import pack_version, split_version
from jvpn.sim.clock import NS
from jvpn.sim.matrix.acts import hold, link, rebind, release, replay, silent, together, wish
from jvpn.sim.matrix.holds import carried, counted, gap, lost, moves, rtts, same_session, transitions
from jvpn.sim.matrix.paths import DIED, MOVED, recovered
from jvpn.sim.matrix.scene import QUICK, SLOW, Act, At, Hold, Scenario, Scene
from jvpn.sim.network import GATEWAY, UP, Flight, flip
from workers.commands import Endpoint

STRANGER: Final = Endpoint(to_bytes("198.51.100.66"), 6_666)


def _security(scene: Scene) -> float:
    return len(scene.told("gateway", SecurityEvent))


# F10


def bad_proofs(count: int, sources: int) -> Act:
    """REQUESTs of the session with a bit flipped, from its own source and from others, all within a second."""

    def act(scene: Scene) -> None:
        requests = scene.seen.get(PacketType.REATTACH_REQUEST, [])
        if not requests:
            scene.findings.append("no REQUEST was seen that could be spoilt")
            return
        scene.note(f"{count} bad proofs, from {sources} sources")
        own = scene.world.network.uplinks[scene.uplink(0)].external
        others = [Endpoint(to_bytes(f"198.51.100.{n + 1}"), 7_000 + n) for n in range(sources - 1)]
        froms = [own, *others]
        for number in range(count):
            data = flip(requests[-1][1].data, scene.draw)
            flight = Flight(UP, None, froms[number % len(froms)], GATEWAY, data, False)
            scene.world.agenda.later(1_000 * number / count, lambda flight=flight: scene.unproven(flight))  # type: ignore[misc]

    return act


#: A voluntary switch and back, so that there are REQUESTs to spoil and replay.
_THERE_AND_BACK: Final = (At(-2_200, wish(1)), At(-400, wish(0)))
_FREE: Final = {"switch_cooldown_ms": 0}


def _answered_little(scene: Scene) -> str:
    """What goes to strangers is not more than what they sent."""
    answers = [flight for flight in scene.world.network.strangers if flight.destination == STRANGER]
    told = sum(len(flight.data) for flight in answers)
    data = [flight for flight in answers if flight.kind in DATA_KINDS]
    if data:
        return f"{len(data)} DATA went to a stranger"
    return (
        ""
        if told <= scene.heard_of_strangers
        else f"strangers were sent {told} bytes for {scene.heard_of_strangers}"
    )


F10: Final = (
    Scenario(
        "F10",
        "one REQUEST with a bad proof",
        (*_THERE_AND_BACK, At(0, bad_proofs(1, 1))),
        (same_session, transitions(), lost(0), gap(rtts(0))),
        policy=_FREE,
        lasts_ms=2_000,
    ),
    Scenario(
        "F10-flood",
        "3000 REQUESTs with bad proofs within a second, from 50 sources, while the path dies",
        (*_THERE_AND_BACK, At(0, bad_proofs(3_000, 50)), At(300, silent(0), "dies")),
        (same_session, transitions(*DIED), lost(0), gap(recovered, "dies")),
        policy=_FREE,
        lasts_ms=2_500,
    ),
)

# F11

F11: tuple[Scenario, ...] = (
    Scenario(
        "F11",
        "everything that has arrived arrives again, from its own source and from another",
        (*_THERE_AND_BACK, At(0, replay(again=2)), At(1_000, replay(again=2))),
        (same_session, transitions(), lost(0), counted("security events", _security, 1, 20)),
        policy=_FREE,
        lasts_ms=2_500,
    ),
    Scenario(
        "F11-moved",
        "everything arrives again after the session has left the path that it came over",
        (*_THERE_AND_BACK, At(0, link(0, False), "dies"), At(1_000, replay(again=2)), At(2_000, replay())),
        (same_session, transitions(*DIED), lost(0)),
        policy=_FREE,
        lasts_ms=3_000,
    ),
)


def trickle(kind: PacketType, period_ms: float, lasts_ms: int) -> Act:
    """What has arrived of that kind arrives again from a stranger's address, one every `period_ms`."""

    def act(scene: Scene) -> None:
        recorded = [flight for _at, flight in scene.seen.get(kind, []) if flight.up]
        scene.note(f"a stranger replays {len(recorded)} {kind.name} every {period_ms} ms")
        for number in range(int(lasts_ms / period_ms)):
            flight = replace(recorded[number % len(recorded)], source=STRANGER, uplink=None, genuine=False)
            scene.world.agenda.later(number * period_ms, lambda flight=flight: scene.unproven(flight))  # type: ignore[misc]

    return act


F11 += (
    Scenario(
        "F11-probes",
        "a stranger sends the client's probes again, a hundred a second for five seconds",
        (At(0, trickle(PacketType.PATH, 10, 5_000)),),
        (same_session, transitions(), transitions(end="client"), lost(0)),
        lasts_ms=8_000,
    ),
)

# F12


def racer(*kinds: PacketType) -> Act:
    """From now on copies of such datagrams reach the gateway from another address, before they do themselves."""

    def act(scene: Scene) -> None:
        scene.note("a racer copies " + " and ".join(kind.name for kind in kinds))

        def tap(flight: Flight) -> None:
            if flight.up and flight.kind in kinds:
                copy = replace(flight, source=STRANGER, uplink=None, genuine=True)
                scene.heard_of_strangers += len(copy.data)
                scene.world.agenda.later(0.01, lambda: scene.guard.receive_up(copy))

        scene.world.network.taps.append(tap)

    return act


F12: Final = (
    Scenario(
        "F12",
        "a racer's copies of REQUESTs and probes arrive first while a path dies",
        (At(-500, racer(PacketType.REATTACH_REQUEST, PacketType.PATH)), At(0, silent(0), "dies")),
        # The answers that the racer gets are lost to the client, so that more probes have to stay without one.
        (same_session, transitions(*DIED), lost(0), gap(lambda s: recovered(s) + 4 * 40), _answered_little),
        flows=QUICK,
        lasts_ms=2_500,
    ),
    Scenario(
        "F12-moved",
        "a racer's copies arrive first while a NAT gives another port",
        (At(-500, racer(PacketType.REATTACH_REQUEST, PacketType.PATH)), At(0, rebind(0), "moves")),
        (same_session, transitions(*MOVED), lost(0), gap(rtts(2, 20)), _answered_little),
        flows=QUICK,
        lasts_ms=2_500,
    ),
)

# F14


def _bound_once_each(scene: Scene) -> str:
    """Of each attempt one result, and of those of one moment one binding."""
    bound = [e.attempt for _at, e in scene.told("gateway", ReattachResult) if e.result == "bound"]
    if len(bound) != len(set(bound)) or bound != sorted(bound):
        return f"the gateway bound the attempts {bound}"
    return ""


def _binds(scene: Scene) -> float:
    return sum(e.result == "bound" for _at, e in scene.told("gateway", ReattachResult))


F14: Final = (
    Scenario(
        "F14",
        "the REQUESTs of one attempt arrive over two paths at once, and more of them than are needed",
        (At(0, together(hold, link(0, False))), At(400, release)),
        (same_session, transitions(*DIED), _bound_once_each, carried("begin")),
        uplinks=3,
        lasts_ms=2_500,
    ),
    Scenario(
        "F14-attempts",
        "the REQUESTs of three attempts arrive at once: a wish, a death, another death",
        (
            At(0, hold),
            At(5, wish(1)),
            At(60, link(0, False)),
            At(200, link(1, False)),
            At(420, release),
            At(1_500, together(link(0, True), link(1, True)), "calm"),
        ),
        (same_session, _bound_once_each, lost(0, after="calm"), counted("binds", _binds, 1, 3)),
        uplinks=3,
        policy=_FREE,
        lasts_ms=3_500,
    ),
    Scenario(
        "F14-backwards",
        "the REQUESTs of three attempts arrive at once, the last first",
        (
            At(0, hold),
            At(5, wish(1)),
            At(60, link(0, False)),
            At(200, link(1, False)),
            At(420, together(lambda scene: (scene.held or []).reverse(), release)),
            At(1_500, together(link(0, True), link(1, True)), "calm"),
        ),
        (same_session, _bound_once_each, lost(0, after="calm"), counted("binds", _binds, 1, 3)),
        uplinks=3,
        policy=_FREE,
        lasts_ms=3_500,
    ),
)


# F15


def claim(version: Callable[[int], int], for_ms: int) -> Act:
    """The client's REQUESTs claim another version than it knows, for so long."""

    def act(scene: Scene) -> None:
        requester, view = scene.client.requester, scene.client.view
        honest = requester._version
        requester._version = lambda: version(view.state_version)
        scene.note("the client claims a version that it never had")

        def honestly() -> None:
            requester._version = honest

        scene.world.agenda.later(for_ms, honestly)

    return act


def _ahead(version: int) -> int:
    known = split_version(version)
    return pack_version(known.epoch, known.count + 7)


def _higher_epoch(version: int) -> int:
    known = split_version(version)
    return pack_version(known.epoch + 1, known.count)


def _behind(version: int) -> int:
    return pack_version(split_version(version).epoch, 1)


def refused(reason: str, security: bool) -> Hold:
    def look(scene: Scene) -> str:
        failed = {e.reason_code for _at, e in scene.told("gateway", ReattachResult) if e.result == "failed"}
        told = [e for _at, e in scene.told("gateway", SecurityEvent)]
        if reason not in failed or bool(told) is not security:
            return f"refused for {failed}, {len(told)} security events"
        return ""

    return look


def _unmoved(scene: Scene) -> str:
    """While it claimed what is not so, the session stood where it was."""
    moved = [
        e
        for at, e in scene.told("gateway", StateChange)
        if at - scene.marks["begin"] < 1_000 * NS and e.bindings
    ]
    return f"the gateway went {moves(scene)}" if moved else ""


def _nothing(_scene: Scene) -> None:
    return


def _claims(name: str, title: str, version: Callable[[int], int], *holds: Hold) -> Scenario:
    return Scenario(
        f"F15{name}",
        title,
        (
            At(0, together(claim(version, 1_000), link(0, False))),
            At(1_500, link(0, True)),
            At(4_000, _nothing, "later"),
        ),
        (*holds, same_session, carried("later")),
        # A client that breaks the rules is ended for it before long: here it may go on for a second.
        policy={"security_failures_before_terminate": 1_000},
        flows=SLOW,
        lasts_ms=7_000,
    )


F15: Final = (
    _claims(
        "",
        "a client claims a higher version of the same epoch",
        _ahead,
        refused("VERSION_CONFLICT", True),
        _unmoved,
    ),
    _claims("-epoch", "a client claims a higher epoch", _higher_epoch, refused("NOT_OWNER", False), _unmoved),
    _claims("-behind", "a client claims a version long gone", _behind, transitions(*DIED)),
)

SCENARIOS: Final = (*F10, *F11, *F12, *F14, *F15)
