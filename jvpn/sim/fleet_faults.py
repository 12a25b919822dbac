"""What goes wrong with a fleet: between nodes and their store, between the client and one of them. See faults.py."""

from msgspec.structs import replace

from jvpn.protocol.constants import PacketType
from jvpn.sim.breaking import start_again
from jvpn.sim.faults import Stage, Undo, fault
from jvpn.sim.network import UP, Flight

# The store


@fault(3, (200, 8_000), fleet=True)
def cut_from_the_store(stage: Stage) -> Undo:
    """One node does not reach the store any more."""
    gateway = stage.gateway
    gateway.way.cut = True
    stage.say(f"{gateway.name} does not reach the store")

    def undo() -> None:
        gateway.way.cut = False

    return undo


@fault(2, (200, 6_000), fleet=True)
def no_quorum(stage: Stage) -> Undo | None:
    """Nobody can read or write."""
    cluster = stage.world.cluster
    if cluster is None or cluster.broken:
        return None
    cluster.set_quorum(False)
    stage.say("the store has no quorum")
    return lambda: cluster.set_quorum(True)


@fault(2, (500, 8_000), fleet=True)
def slow_store(stage: Stage) -> Undo:
    """What one node asks for takes long, now and then longer than anybody waits for it."""
    gateway, delay_ms = stage.gateway, (1.0, stage.draw.choice((100.0, 400.0, 1_500.0, 3_000.0)))
    gateway.way.slower_ms.append(delay_ms)
    stage.say(f"the store answers {gateway.name} after up to {2 * delay_ms[1]:g} ms")

    def undo() -> None:
        gateway.way.slower_ms.remove(delay_ms)

    return undo


@fault(2, (500, 6_000), fleet=True)
def lost_answers(stage: Stage) -> Undo:
    """The store does what one node asks for, and the node does not hear of it."""
    gateway, share = stage.gateway, stage.draw.choice((0.3, 0.6, 1.0))
    gateway.way.lost = share
    stage.say(f"{share:.0%} of what the store answers {gateway.name} is lost")

    def undo() -> None:
        gateway.way.lost = 0.0

    return undo


@fault(2, (1_000, 10_000), fleet=True)
def late_watch(stage: Stage) -> Undo:
    """One node hears late of what the others do."""
    gateway, usual = stage.gateway, stage.gateway.watch_lag_ms
    gateway.watch_lag_ms = stage.draw.choice((200.0, 1_000.0, 3_000.0))
    stage.say(f"{gateway.name} hears of changes after {gateway.watch_lag_ms:g} ms")

    def undo() -> None:
        gateway.watch_lag_ms = usual

    return undo


# Nodes


@fault(2.5, (100, 8_000), fleet=True)
def node_paused(stage: Stage) -> Undo | None:
    """All processes of a node stop, perhaps for longer than its lease, and go on with what they were at."""
    gateway = stage.gateway
    if gateway.paused or not gateway.host_up:
        return None
    gateway.pause()
    boots = gateway.boots
    stage.say(f"{gateway.name} is stopped")
    return lambda: gateway.go_on() if gateway.paused and gateway.boots == boots else None


@fault(2.5, (1_000, 12_000), fleet=True)
def node_killed(stage: Stage) -> Undo | None:
    """A node is gone, and comes back later."""
    gateway = stage.gateway
    if not gateway.host_up:
        return None
    gateway.kill_host()
    stage.say(f"{gateway.name} is killed")

    def undo() -> None:
        if not gateway.host_up:
            gateway.clock.reboot()
            start_again(stage, gateway.boot)

    return undo


@fault(1.5, (1_000, 8_000), fleet=True)
def node_drained(stage: Stage) -> Undo | None:
    """An operator wants a node's sessions to be elsewhere."""
    gateway = stage.gateway
    if gateway.member is None:
        return None
    gateway.member.describe(replace(gateway.about, draining=True))
    stage.say(f"{gateway.name} is drained")

    def undo() -> None:
        gateway.about = replace(gateway.about, draining=False)
        if gateway.member is not None:
            gateway.member.describe(gateway.about)

    return undo


# Between the client and the nodes


@fault(3, (500, 8_000), fleet=True)
def cut_from_the_client(stage: Stage) -> Undo:
    """No uplink of the client reaches one node; the node reaches the store."""
    gateway, cut_off = stage.gateway, stage.world.network.cut_off
    cut_off[gateway.endpoint] += 1
    stage.say(f"the client does not reach {gateway.name}")

    def undo() -> None:
        cut_off[gateway.endpoint] -= 1

    return undo


@fault(2, (500, 6_000), fleet=True)
def asked_at_once(stage: Stage) -> Undo:
    """Whatever REQUEST the client sends to one node reaches all of them at that instant."""
    world, taps = stage.world, stage.world.network.taps
    stage.say("REQUESTs reach all nodes at once")

    def tap(flight: Flight) -> None:
        if not flight.up or flight.uplink is None or flight.data[0] != PacketType.REATTACH_REQUEST:
            return
        for node in world.gateways:
            if node.endpoint != flight.destination and not world.network.cut_off[node.endpoint]:
                copy = Flight(UP, flight.uplink, flight.source, node.endpoint, flight.data)
                world.agenda.later(1, lambda copy=copy: world.network.arrive(copy))  # type: ignore[misc]

    taps.append(tap)
    return lambda: taps.remove(tap)
