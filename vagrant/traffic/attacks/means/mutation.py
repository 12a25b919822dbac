"""Spoilt copies of real datagrams: bits flipped, cut, lengthened, or a field of a layer set to something else."""

import random
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from scapy.error import Scapy_Exception
from scapy.fields import BitField, Field, FlagsField, PacketListField, StrFixedLenField
from scapy.packet import NoPayload, Packet
from scapy.volatile import VolatileValue

from vagrant.traffic.jvp import JVP

#: Bytes of UDP payload that fit an unfragmented IPv4 packet of 1500.
LONGEST: Final = 1_472
_TRIES: Final = 8


def mutated(dice: random.Random, data: bytes, how: str | None = None) -> tuple[str, bytes]:
    """What was done and what came of it: never what it was, empty at least and LONGEST bytes at most.

    `how`: one of KINDS, else drawn. `data` has at least one byte.
    """
    chosen = how or dice.choice(sorted(KINDS))
    for _ in range(_TRIES):
        made = KINDS[chosen](dice, data)[:LONGEST]
        if made != data:
            return chosen, made
    return "truncated", truncated(dice, data)


def flipped(dice: random.Random, data: bytes) -> bytes:
    """With one to eight bits turned."""
    changed = bytearray(data)
    for _ in range(dice.randrange(1, 9)):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def truncated(dice: random.Random, data: bytes) -> bytes:
    return data[: dice.randrange(len(data))]


def extended(dice: random.Random, data: bytes) -> bytes:
    return data + dice.randbytes(dice.randrange(1, 65))


def edited(dice: random.Random, data: bytes) -> bytes:
    """With another value in one field of one layer. With a key log loaded sealed layers are among them, and what comes
    of it is authentic."""
    packet = JVP(data)
    layers = [layer for layer in _layers(packet) if layer.fields_desc]
    if not layers:
        return flipped(dice, data)
    layer = dice.choice(layers)
    field: Any = dice.choice(layer.fields_desc)
    try:
        layer.setfieldval(field.name, _value(dice, field, layer.getfieldval(field.name)))
        return bytes(packet)
    except (Scapy_Exception, struct.error, ValueError, TypeError):
        # A value that this field of an inner packet cannot be built with.
        return flipped(dice, data)


#: Every kind by its name.
KINDS: Final[dict[str, Callable[[random.Random, bytes], bytes]]] = {
    "flipped": flipped,
    "truncated": truncated,
    "extended": extended,
    "edited": edited,
}


def _layers(packet: Packet) -> Iterator[Packet]:
    """The layer and all behind it, and those in its lists."""
    while not isinstance(packet, NoPayload):
        yield packet
        for field in packet.fields_desc:
            if isinstance(field, PacketListField):
                for inside in packet.getfieldval(field.name) or ():
                    yield from _layers(inside)
        packet = packet.payload


def _value(dice: random.Random, field: Field[Any, Any], old: Any) -> Any:
    """Another value that the field can hold: the edges, a neighbour, or any."""
    if isinstance(field, PacketListField):
        return dice.choice((old * 2, old[:-1], list(reversed(old))))
    if isinstance(old, bytes):
        return _octets(dice, old, fixed=isinstance(field, StrFixedLenField))
    if isinstance(field, FlagsField | BitField):
        bits = field.size
    elif isinstance(old, int | None):
        bits = 8 * field.sz
    else:
        # Addresses, and what else Scapy has a way to draw.
        drawn = field.randval()
        return drawn._fix() if isinstance(drawn, VolatileValue) else drawn
    number = int(old or 0)
    top = (1 << bits) - 1
    return (
        dice.choice((0, 1, top, top - 1, (number + 1) & top, (number - 1) & top, dice.randint(0, top))) & top
    )


def _octets(dice: random.Random, old: bytes, *, fixed: bool) -> bytes:
    drawn = dice.randbytes(len(old))
    if fixed:
        return dice.choice((drawn, bytes(len(old)), flipped(dice, old) if old else old))
    return dice.choice((drawn, b"", old * 2, old[:-1], old + dice.randbytes(dice.randrange(1, 33))))
