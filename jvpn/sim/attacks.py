"""What an attacker does, as faults that seeds draw (faults.py); attacker.py says what must not come of it."""

import random
from collections.abc import Callable
from functools import partial

from jvpn.protocol.constants import (
    HEADER_SIZE,
    REATTACH_REQUEST_SIZE,
    SALT_SIZE,
    TAG_SIZE,
    VERSION,
    PacketType,
)
from jvpn.protocol.handshake import Initiator
from jvpn.protocol.suites import suite, x25519_public
from jvpn.protocol.wire import Header
from jvpn.sim.attacker import OWN, RELAY, Attacker
from jvpn.sim.faults import Stage, Undo, fault
from jvpn.sim.network import DOWN, GATEWAY, UP, Flight, flip
from jvpn.sim.supervising import GATEWAY_KEY
from workers.commands import Endpoint

_ANSWERS = (PacketType.REATTACH_ACK, PacketType.REATTACH_FAIL)
_COUNTERLESS = (*_ANSWERS, PacketType.RESET)


def _again_and_again(stage: Stage, one: Callable[[], None], least_ms: int, most_ms: int) -> Undo:
    """`one` every so often, until undone."""
    ended = False

    def turn() -> None:
        if not ended:
            one()
            stage.world.agenda.later(stage.draw.randrange(least_ms, most_ms), turn)

    def undo() -> None:
        nonlocal ended
        ended = True

    turn()
    return undo


def _sources(stage: Stage, seen: Flight) -> list[Endpoint]:
    """Where a copy may come from: as it came, as another uplink, from elsewhere."""
    return [seen.source, OWN, RELAY, *(path.external for path in stage.world.network.uplinks)]


@fault(3, (500, 8_000))
def replay(stage: Stage) -> Undo:
    """Datagrams of every type once more, old and new, from old and new addresses, to both ends."""
    attacker, draw, uplinks = stage.attacker, stage.draw, stage.world.network.uplinks
    stage.say("an attacker replays what it has seen")

    def one() -> None:
        for _ in range(draw.randrange(1, 4)):
            seen = attacker.pick(draw, draw.random() < 0.7)
            if seen is not None:
                attacker.again(seen, draw.choice(_sources(stage, seen)), draw.randrange(len(uplinks)))

    return _again_and_again(stage, one, 5, 100)


@fault(2, (500, 8_000))
def forgery(stage: Stage) -> Undo:
    """Steering ids that are in use, with garbage, with tags that are wrong, in versions that do not exist."""
    stage.say("an attacker forges")
    return _again_and_again(stage, lambda: stage.attacker.forge(forged(stage)), 5, 100)


@fault(1.5, (300, 2_000))
def flood(stage: Stage) -> Undo:
    """As forgery, many at once, and INITs that are worth a Diffie-Hellman."""
    stage.say("an attacker floods")
    stranger = stage.draw.randbytes(32)

    def one() -> None:
        for _ in range(20):
            stage.attacker.forge(forged(stage))
        stage.attacker.forge(Flight(UP, stage.fault.uplink, OWN, GATEWAY, _init(stage, stranger), False))

    return _again_and_again(stage, one, 20, 60)


@fault(2, (500, 6_000))
def race(stage: Stage) -> Undo:
    """What the client sends comes from the attacker's address first, or spoilt, and is answered by forgeries; what the
    gateway answers goes no further."""
    attacker, draw, taps = stage.attacker, stage.draw, stage.world.network.taps
    later = stage.world.agenda.later
    share = draw.choice((0.3, 1.0))
    stage.say(f"an attacker wins {share:.0%} of the races")

    def tap(flight: Flight) -> None:
        # Who always wins with INITs prevents a session altogether, as any path can.
        often = min(share, 0.5) if flight.data[0] == PacketType.HANDSHAKE_INIT else share
        if not flight.up or flight.uplink is None:
            return
        if draw.random() < 0.2:
            source = draw.choice((flight.source, OWN))
            spoilt = Flight(UP, flight.uplink, source, GATEWAY, flip(flight.data, draw), False)
            later(0, partial(attacker.forge, spoilt))
        if draw.random() < often:
            later(0, partial(attacker.early, flight))
        if flight.data[0] == PacketType.REATTACH_REQUEST and draw.random() < 0.5:
            answer = _garbage(draw.choice((*_ANSWERS, PacketType.RESET)), flight.data, draw)
            later(
                0, partial(attacker.forge, Flight(DOWN, flight.uplink, GATEWAY, flight.source, answer, False))
            )

    taps.append(tap)
    return lambda: taps.remove(tap)


@fault(1.5, (500, 5_000))
def relay(stage: Stage) -> Undo:
    """An attacker on the path of an uplink carries everything under its own address, or all but user data."""
    attacker, uplink = stage.attacker, stage.fault.uplink
    data, beside = stage.draw.random() < 0.6, stage.draw.random() < 0.6
    what = "all" if data else "all but user data"
    stage.say(f"an attacker relays {what} of uplink {uplink}" + (", first" if beside else ""))
    attacker.relay(uplink, data, beside)
    return lambda: attacker.leave(uplink)


# Forgeries


def forged(stage: Stage) -> Flight:
    """One datagram that nobody has sent so, to either end."""
    draw, attacker = stage.draw, stage.attacker
    up = draw.random() < 0.7
    seen = attacker.pick(draw, up)
    make = draw.choice((_flipped, _cut, _grown, _other_version, _other_type, _garbage_on_id))
    data = _noise(draw) if seen is None else make(attacker, seen, draw)
    path = stage.world.network.uplinks[stage.fault.uplink]
    if not up:
        return Flight(DOWN, path.number, GATEWAY, path.external, data, False)
    source = draw.choice((path.external, OWN, Endpoint(path.external.address, draw.randrange(1_024, 65_536))))
    return Flight(UP, path.number, source, GATEWAY, data, False)


def _noise(draw: random.Random) -> bytes:
    return bytes((draw.choice(list(PacketType)), VERSION << 4, 0, 0)) + draw.randbytes(draw.randrange(1, 300))


def _flipped(_attacker: Attacker, seen: Flight, draw: random.Random) -> bytes:
    return flip(seen.data, draw)


def _cut(_attacker: Attacker, seen: Flight, draw: random.Random) -> bytes:
    return seen.data[: draw.randrange(1, len(seen.data))]


def _grown(_attacker: Attacker, seen: Flight, draw: random.Random) -> bytes:
    return seen.data + draw.randbytes(draw.randrange(1, 40))


def _other_version(_attacker: Attacker, seen: Flight, draw: random.Random) -> bytes:
    version = draw.choice([number for number in range(16) if number != VERSION])
    return seen.data[:1] + bytes((version << 4 | seen.data[1] & 15,)) + seen.data[2:]


def _other_type(_attacker: Attacker, seen: Flight, draw: random.Random) -> bytes:
    """The same bytes as another type: the header is part of every proof."""
    others = [kind for kind in PacketType if kind != seen.data[0]]
    return bytes((draw.choice(others),)) + seen.data[1:]


def _garbage_on_id(_attacker: Attacker, seen: Flight, draw: random.Random) -> bytes:
    """A well-formed datagram on an id that somebody has seen, without a key."""
    up = (PacketType.REATTACH_REQUEST, PacketType.CONTROL, PacketType.DATA, PacketType.PATH)
    down = (*_COUNTERLESS, PacketType.CONTROL)
    return _garbage(draw.choice(up if seen.up else down), seen.data, draw)


def _garbage(kind: PacketType, like: bytes, draw: random.Random) -> bytes:
    counterless = kind in _COUNTERLESS
    counter, phase = (0, 0) if counterless else (draw.randrange(1 << 48), like[1] & 15)
    header = Header(kind, like[4:12], counter, phase).encode()
    if kind is PacketType.REATTACH_REQUEST:
        return header + draw.randbytes(REATTACH_REQUEST_SIZE - HEADER_SIZE)
    if kind is PacketType.RESET:
        return header + draw.randbytes(TAG_SIZE)
    return header + draw.randbytes(SALT_SIZE + TAG_SIZE + draw.randrange(20, 120))


def _init(stage: Stage, private: bytes) -> bytes:
    """An INIT as good as it gets for somebody whose key the gateway does not know."""
    draw = stage.draw
    made = Initiator(
        suite(draw.choice((1, 2))),
        private,
        x25519_public(GATEWAY_KEY),
        bytes(32),
        draw.randbytes(32),
        draw.randbytes(8),
        stage.world.gateway.clock.wall_ms() * 1_000,
        0,
        "default",
    )
    return made.init_datagram
