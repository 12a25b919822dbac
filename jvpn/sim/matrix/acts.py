"""What happens in a scenario: to the network, to its clocks, by its operators."""

from typing import Any, Final

from jvpn.protocol.addresses import to_bytes
from jvpn.session.machine import Reason
from jvpn.sim.clock import NS
from jvpn.sim.matrix.scene import Act, Scene
from jvpn.sim.network import Flight
from workers.commands import Endpoint

#: Overlays of a direction that do not replace each other.
_SILENCE: Final = 1
_SHAPE: Final = 2


def together(*acts: Act) -> Act:
    """At one instant, in this order."""

    def act(scene: Scene) -> None:
        for one in acts:
            one(scene)

    return act


# Links


def link(place: int, up: bool, told_ms: int = 0) -> Act:
    """The link comes or goes; netlink says so after `told_ms`."""

    def act(scene: Scene) -> None:
        number = scene.uplink(place)
        path = scene.world.network.uplinks[number]
        path.link_up = up
        scene.note(f"uplink {number} {'has a link' if up else 'has no link'}, told after {told_ms} ms")
        scene.world.agenda.later(told_ms, lambda: scene.world.client.link(number, path.link_up))

    return act


def silent(*places: int, up: bool = True, down: bool = True) -> Act:
    """Everything is lost, that way or both, and nobody says so."""

    def act(scene: Scene) -> None:
        for place in places:
            number = scene.uplink(place)
            scene.note(f"uplink {number} is silent{'' if up and down else ' up' if up else ' down'}")
            for way in [way for way, dead in ((True, up), (False, down)) if dead]:
                scene.world.network.uplinks[number].direction(way).overlay(_SILENCE, {"drop": True})

    return act


def loud(*places: int) -> Act:
    """The end of `silent`."""

    def act(scene: Scene) -> None:
        for place in places:
            number = scene.uplink(place)
            scene.note(f"uplink {number} carries again")
            for way in (True, False):
                scene.world.network.uplinks[number].direction(way).lift(_SILENCE)

    return act


def shape(*places: int, up: bool = True, down: bool = True, **changes: Any) -> Act:
    """Other properties (LinkParams); without any, the usual ones."""

    def act(scene: Scene) -> None:
        for place in places:
            number = scene.uplink(place)
            text = ", ".join(f"{name} {value:g}" for name, value in changes.items()) or "as usual"
            scene.note(f"uplink {number}: {text}")
            for way in [way for way, wanted in ((True, up), (False, down)) if wanted]:
                direction = scene.world.network.uplinks[number].direction(way)
                if changes:
                    direction.overlay(_SHAPE, dict(changes))
                else:
                    direction.lift(_SHAPE)

    return act


def rebind(place: int, *, address: str = "") -> Act:
    """The NAT gives another port, and another address if one is named."""

    def act(scene: Scene) -> None:
        path = scene.world.network.uplinks[scene.uplink(place)]
        own = to_bytes(address) if address else path.external.address
        path.external = Endpoint(own, 20_000 + scene.draw.randrange(20_000))
        scene.note(f"uplink {path.number} comes from {address or 'another port'}, port {path.external.port}")

    return act


def hold(scene: Scene) -> None:
    """From now on what goes up is held back."""
    scene.held = []
    scene.note("what goes up is held back")


def release(scene: Scene) -> None:
    """All that was held back arrives at once."""
    held, scene.held = scene.held or [], None
    scene.note(f"{len(held)} datagrams arrive at once")
    for flight in held:
        scene.world.network.to_gateway(flight)


def at_end(offset_ms: int, act: Act, *, up_held: bool = False) -> Act:
    """`act` that much before (negative) or after the session's lifetime is over at the gateway.

    `up_held`: from then on what goes up is held back until the lifetime is over, and arrives then at once.
    """

    def schedule(scene: Scene) -> None:
        node = scene.world.gateway
        over_ns = node.clock.agenda_ns(scene.live.ttl.session_deadline_ms)
        begin_ns = over_ns + offset_ms * NS

        def now() -> None:
            act(scene)
            if up_held:
                hold(scene)

        scene.world.agenda.at(begin_ns, now)
        if up_held:
            scene.world.agenda.at(over_ns + 20 * NS, lambda: release(scene))

    return schedule


def replay(again: int = 1, before: str = "") -> Act:
    """All that has arrived (before the mark), both ways, arrives again so many times.

    From where it came from, and by turns from elsewhere. None of it may move anything: each is watched.
    """

    def act(scene: Scene) -> None:
        until_ns = scene.marks[before] if before else scene.world.agenda.now_ns
        flights = [f for kind in sorted(scene.seen) for at, f in scene.seen[kind] if at <= until_ns]
        scene.note(f"{len(flights)} recorded datagrams are replayed, {again} times")
        path = scene.world.network.uplinks[scene.uplink(0)]
        stranger = Endpoint(to_bytes("198.51.100.66"), 6_666)
        for number in range(again):
            for flight in flights:
                if flight.up:
                    source = flight.source if number % 2 == 0 else stranger
                    arriving = Flight(True, flight.uplink, source, flight.destination, flight.data, False)
                else:
                    uplink = path.number if flight.uplink is None else flight.uplink
                    arriving = Flight(False, uplink, flight.source, flight.destination, flight.data, False)
                scene.unproven(arriving)

    return act


# Operators, owners, clocks


def wish(place: int) -> Act:
    """The client's operator wants that uplink."""

    def act(scene: Scene) -> None:
        client = scene.world.client
        assert client.core is not None
        name = client.plans[scene.uplink(place)].name
        scene.note(f"the client's operator wants {name}")
        client.core.switch(name, client.clock.now_ns)
        client.touched = True

    return act


def gateway_wish(reason: Reason = Reason.OPERATOR_SWITCH) -> Act:
    """The gateway's operator wants another path."""

    def act(scene: Scene) -> None:
        gateway = scene.world.gateway
        assert gateway.core is not None
        scene.note(f"the gateway asks for another path: {reason}")
        gateway.core.switch(scene.live, reason, gateway.clock.now_ms)
        gateway.touched = True

    return act


def end(scene: Scene) -> None:
    """The gateway's operator ends the session."""
    gateway = scene.world.gateway
    assert gateway.core is not None
    scene.note(f"the gateway's operator ends the session, which is {scene.live.machine.state} there")
    gateway.core.terminate(scene.live, Reason.OPERATOR_TERMINATED, gateway.clock.now_ms)
    gateway.touched = True


def rekey(scene: Scene) -> None:
    """The client begins a rekey."""
    client = scene.world.client
    scene.note("the client begins a rekey")
    scene.client.rekeying.begin(client.clock.now_ms)
    scene.client.flush(client.clock.now_ms)
    client.touched = True


def clock(machine: str, by_s: int) -> Act:
    """Somebody sets that machine's wall clock."""

    def act(scene: Scene) -> None:
        node = scene.world.gateway if machine == "gateway" else scene.world.client
        node.clock.skew_ms += by_s * 1_000
        scene.note(f"the {machine}'s wall clock jumps by {by_s} s")

    return act
