"""Numbered inner packets both ways, and what became of each.

A payload says its number; the rest of it follows from number and direction, so that an altered one shows.
"""

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from jvpn.sim.clock import NS, Agenda
from jvpn.sim.violation import Violation

_INSIDE: Final = bytes((10, 8, 0, 2))
_OUTSIDE: Final = bytes((10, 8, 0, 1))
_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_NUMBER = struct.Struct(">Q")
_HEADER: Final = _IPV4.size
#: An experimental protocol (RFC 3692): nothing on the way may know better what it carries.
_PROTOCOL: Final = 253
SIZES: Final = (40, 120, 600, 1_300)


def packet(up: bool, number: int, size: int) -> bytes:
    """An IPv4 packet from the client (`up`) or to it, with `size` bytes of payload (at least 8)."""
    source, destination = (_INSIDE, _OUTSIDE) if up else (_OUTSIDE, _INSIDE)
    header = _IPV4.pack(0x45, 0, _HEADER + size, number & 0xFFFF, 0, 64, _PROTOCOL, 0, source, destination)
    return header + _NUMBER.pack(number) + bytes(((number * 7 + up) & 0xFF,)) * (size - _NUMBER.size)


@dataclass(slots=True)
class Stream:
    """One way. `sent`: number → size and when, of those not delivered yet."""

    up: bool
    offered: int = 0
    delivered: int = 0
    sent: dict[int, tuple[int, int]] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)
    longest_ms: float = 0.0
    last_ns: int = 0

    @property
    def lost(self) -> int:
        return self.offered - self.delivered


class Traffic:
    """Offers packets by turns of loud and silent phases, and takes what is delivered.

    `send_up` and `send_down` put a packet into the client's and the gateway's TUN. Raises Violation out of
    `delivered_up` and `delivered_down` for what must not be delivered.
    """

    def __init__(self, agenda: Agenda, draw: random.Random) -> None:
        self._agenda = agenda
        self._draw = draw
        self._send: dict[bool, Callable[[bytes], None]] = {}
        self.ways = {True: Stream(True), False: Stream(False)}
        #: Whether the machine of each end has something running that sends.
        self.may_send: Callable[[bool], bool] = lambda up: True
        #: How old what is delivered may be at most; None: that cannot be said.
        self.oldest_ms: Callable[[], float | None] = lambda: None
        #: Since when nothing may be lost.
        self.fair_since_ns: int | None = None
        self._stopped = False
        #: Told of each delivery: (up, number, when it was offered).
        self.came: Callable[[bool, int, int], None] = lambda up, number, sent_ns: None

    def connect(self, send_up: Callable[[bytes], None], send_down: Callable[[bytes], None]) -> None:
        self._send = {True: send_up, False: send_down}
        for up in (True, False):
            self._phase(up)

    def stop(self) -> None:
        self._stopped = True

    def _phase(self, up: bool) -> None:
        """A silent phase, or a loud one of this period."""
        if self._stopped:
            return
        draw = self._draw
        lasts_ns = round(draw.uniform(200, 4_000)) * NS
        until_ns = self._agenda.now_ns + lasts_ns
        if draw.random() < 0.45:
            self._agenda.at(until_ns, lambda: self._phase(up))
            return
        self._offer(up, draw.choice((20, 50, 100, 200, 400)), draw.choice(SIZES), until_ns)

    def _offer(self, up: bool, period_ms: int, size: int, until_ns: int) -> None:
        if self._stopped:
            return
        if self._agenda.now_ns >= until_ns:
            self._phase(up)
            return
        if self.may_send(up):
            self.one(up, size)
        self._agenda.later(period_ms, lambda: self._offer(up, period_ms, size, until_ns))

    def one(self, up: bool, size: int = SIZES[0]) -> int:
        """Offer one packet now; returns its number."""
        way = self.ways[up]
        way.offered += 1
        number = way.offered
        way.sent[number] = (size, self._agenda.now_ns)
        self._send[up](packet(up, number, size))
        return number

    def look_for_lost(self) -> None:
        """Raises Violation when anything is missing that was offered in fair weather."""
        if self.fair_since_ns is None:
            return
        for way in self.ways.values():
            lost = [number for number, (_size, at_ns) in way.sent.items() if at_ns >= self.fair_since_ns]
            if lost:
                name = "up" if way.up else "down"
                raise Violation("LOST", f"nothing was wrong, and packets {name} are lost: {lost[:5]}")

    def delivered_up(self, inner: bytes) -> None:
        self._delivered(self.ways[True], inner)

    def delivered_down(self, inner: bytes) -> None:
        self._delivered(self.ways[False], inner)

    def _delivered(self, way: Stream, inner: bytes) -> None:
        where = "gateway" if way.up else "client"
        if inner[9:10] != bytes((_PROTOCOL,)):
            return
        (number,) = _NUMBER.unpack_from(inner, _HEADER)
        if number in way.seen:
            raise Violation("DELIVERED_TWICE", f"the {where} was given packet {number} twice")
        size, sent_ns = way.sent.get(number, (0, 0))
        if not size or inner != packet(way.up, number, size):
            raise Violation("ALTERED", f"the {where} was given a packet {number} that nobody sent so")
        way.seen.add(number)
        del way.sent[number]
        way.delivered += 1
        now_ns = self._agenda.now_ns
        age_ms, oldest_ms = (now_ns - sent_ns) / NS, self.oldest_ms()
        if oldest_ms is not None and age_ms > oldest_ms:
            raise Violation("TOO_OLD", f"the {where} was given packet {number}, {age_ms:.0f} ms old")
        way.longest_ms = max(way.longest_ms, age_ms)
        way.last_ns = now_ns
        self.came(way.up, number, sent_ns)
