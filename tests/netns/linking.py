"""What two captures have in common: whether who sees both could tell that they are of one session.

A datagram consists of fields. The first three are the same for everybody or counted; `clear` is what follows them:
sealed bytes, a ticket, a salt.

    0 type, version and phase, suite, zero · 4 steering id · 12 counter · 20 clear
"""

import socket
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from jvpn.lab.capture import Frame
from jvpn.protocol.constants import GENERATION_SHIFT, PacketType

#: Bytes that a string which links has at least.
LINKING = 4
#: Where a field begins; the last one ends with the datagram.
_FIELDS = (0, 4, 12, 20)
_SEQUENCE = (1 << GENERATION_SHIFT) - 1
_ETHERNET = 14
_COUNT_OF = {
    PacketType.DATA: "data",
    PacketType.PATH: "data",
    PacketType.FRAGMENT: "data",
    PacketType.RESENT: "data",
    PacketType.CONTROL: "control",
    PacketType.REATTACH_REQUEST: "request",
}


@dataclass(frozen=True)
class Seen:
    """One datagram as an observer of its network sees it. `client` and `port` are the client's address and port.

    `packet_id` is IPv4's Identification, `flow_label` IPv6's; None where there is no such field.
    """

    time_ns: int
    up: bool
    client: str
    port: int
    packet_id: int | None
    flow_label: int | None
    ttl: int
    data: bytes

    @property
    def kind(self) -> PacketType:
        return PacketType(self.data[0])

    @property
    def steering_id(self) -> bytes:
        return self.data[4:12]


def seen(frames: Iterable[Frame]) -> Iterator[Seen]:
    """The UDP datagrams among frames that were captured on the client's device."""
    for frame in frames:
        data = frame.data[_ETHERNET:]
        if data[0] >> 4 == 4:
            packet_id, ttl = struct.unpack_from("!H", data, 4)[0], data[8]
            flow_label, addresses, at, family = None, (data[12:16], data[16:20]), 20, socket.AF_INET
        else:
            flow_label, ttl = struct.unpack_from("!I", data)[0] & 0xFFFFF, data[7]
            packet_id, addresses, at, family = None, (data[8:24], data[24:40]), 40, socket.AF_INET6
        ports, size = struct.unpack_from("!HH", data, at), struct.unpack_from("!H", data, at + 4)[0]
        end = 0 if frame.outgoing else 1
        yield Seen(
            frame.time_ns,
            frame.outgoing,
            socket.inet_ntop(family, addresses[end]),
            ports[end],
            packet_id,
            flow_label,
            ttl,
            data[at + 8 : at + size],
        )


Strings = dict[int, set[bytes]]


def strings(datagrams: Iterable[Seen]) -> Strings:
    """By offset, every string of LINKING bytes there that lies in one field.

    A string over a field's edge has less than LINKING bytes of either: where one byte of a random field meets three of
    a counter, some of many datagrams are equal by chance. `constant_bytes` sees what is at the edges.
    """
    found: Strings = defaultdict(set)
    for datagram in datagrams:
        data = datagram.data
        for begin, end in zip(_FIELDS, (*_FIELDS[1:], len(data)), strict=True):
            for at in range(begin, end - LINKING + 1):
                found[at].add(data[at : at + LINKING])
    return found


def shared(one: Strings, other: Strings, innocent: Sequence[Seen]) -> Strings:
    """What both have at an offset, and what no datagram of another session has there."""
    both = {at: one[at] & other[at] for at in one.keys() & other.keys()}
    left = {
        at: common - {datagram.data[at : at + LINKING] for datagram in innocent}
        for at, common in both.items()
        if common
    }
    return {at: common for at, common in left.items() if common}


def constant_bytes(datagrams: Iterable[bytes]) -> set[int]:
    """Offsets behind the header at which every datagram that is long enough has the same byte."""
    values: dict[int, set[int]] = defaultdict(set)
    counts: dict[int, int] = defaultdict(int)
    for data in datagrams:
        for at in range(_FIELDS[3], len(data)):
            values[at].add(data[at])
            counts[at] += 1
    # Eight equal random bytes are no coincidence.
    return {at for at, bytes_there in values.items() if len(bytes_there) == 1 and counts[at] >= 8}


def first_counters(datagrams: Iterable[Seen]) -> dict[tuple[bytes, bool, str], tuple[int, int]]:
    """By steering id, direction and count: the lowest (generation, sequence) seen."""
    found: dict[tuple[bytes, bool, str], tuple[int, int]] = {}
    for datagram in datagrams:
        count = _COUNT_OF.get(datagram.kind)
        if count is not None:
            counter = int.from_bytes(datagram.data[12:20], "big")
            at = (counter >> GENERATION_SHIFT, counter & _SEQUENCE)
            key = (datagram.steering_id, datagram.up, count)
            found[key] = min(found.get(key, at), at)
    return found


def highest_sequence(datagrams: Iterable[Seen]) -> int:
    return max(
        (int.from_bytes(d.data[12:20], "big") & _SEQUENCE for d in datagrams if d.kind in _COUNT_OF),
        default=0,
    )
