"""Inner addresses for clients that have no fixed ones: which there are, and which one a client is given.

A pool is kept as ranges and asked for by ranges, never as a list: an IPv6 /64 has 2^64 addresses. Stores say what is in
use (`Register`); what is durable, and that no two clients are given one address, is theirs (jvpn/store).
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from itertools import accumulate
from typing import Protocol

Network = IPv4Network | IPv6Network
#: First and last address, as numbers.
Range = tuple[int, int]

_BYTES = {4: 4, 6: 16}


def packed(version: int, address: int) -> bytes:
    """4 or 16 bytes, whose order is that of the numbers."""
    return address.to_bytes(_BYTES[version], "big")


def text_of(version: int, address: int) -> str:
    return str(IPv4Address(address) if version == 4 else IPv6Address(address))


def number_of(text: str) -> tuple[int, int]:
    """Version and number of an address. Raises ValueError."""
    address = ip_address(text)
    return address.version, int(address)


class Register(Protocol):
    """What a store knows of the addresses of one moment."""

    def taken(self, version: int, first: int, last: int) -> Iterable[int]:
        """Addresses that clients have, from `first` to `last`, ascending."""

    def idle(self, pool: "AddressPool") -> "Given | None":
        """Of the pool's addresses the one whose client has no session and has begun its last one the longest ago; None
        when all have one."""


@dataclass(frozen=True, slots=True)
class Given:
    """An address for a client. `loser`: who has it until then, without a session."""

    version: int
    address: int
    loser: bytes | None = None

    @property
    def text(self) -> str:
        return text_of(self.version, self.address)


@dataclass(frozen=True, slots=True)
class AddressPool:
    """Addresses of one family. `ranges` are ascending and do not touch; there is at least one."""

    version: int
    ranges: tuple[Range, ...]

    @property
    def ends(self) -> Range:
        """The lowest and the highest address."""
        return self.ranges[0][0], self.ranges[-1][1]

    @property
    def size(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)

    def __contains__(self, address: int) -> bool:
        place = bisect_right(self.ranges, address, key=lambda one: one[0]) - 1
        return place >= 0 and address <= self.ranges[place][1]

    def preferred(self, client_public: bytes) -> int:
        """Where to look first for a client: the same on every node, so that nodes seldom want one for two clients."""
        number = int.from_bytes(sha256(b"jvp1 inner address" + client_public).digest(), "big") % self.size
        ends = list(accumulate(last - first + 1 for first, last in self.ranges))
        place = bisect_right(ends, number)
        return self.ranges[place][1] + 1 - (ends[place] - number)

    def first_free(self, start: int, taken: Callable[[int, int, int], Iterable[int]]) -> int | None:
        """The first address that is not `taken(version, first, last)`: from `start` on, then from the beginning."""
        above = [(max(first, start), last) for first, last in self.ranges if last >= start]
        below = [(first, min(last, start - 1)) for first, last in self.ranges if first < start]
        gaps = (_gap(first, last, taken(self.version, first, last)) for first, last in [*above, *below])
        return next((gap for gap in gaps if gap is not None), None)

    def give(self, client_public: bytes, register: Register) -> Given | None:
        """An address for a client that has none: a free one, else one of a client without a session."""
        free = self.first_free(self.preferred(client_public), register.taken)
        if free is not None:
            return Given(self.version, free)
        return register.idle(self)


def _gap(first: int, last: int, taken: Iterable[int]) -> int | None:
    for used in taken:
        if used > first:
            break
        first = used + 1
    return first if first <= last else None


@dataclass(frozen=True, slots=True)
class InnerPool:
    """One AddressPool for each family that clients are given an address of."""

    families: tuple[AddressPool, ...]

    @property
    def fingerprint(self) -> str:
        """Alike where two nodes give the same addresses."""
        said = [(family.version, *family.ranges) for family in self.families]
        return sha256(repr(sorted(said)).encode()).hexdigest()[:16]

    def __contains__(self, text: str) -> bool:
        version, address = number_of(text)
        return any(address in family for family in self.families if family.version == version)

    def give(self, client_public: bytes, held: Mapping[int, int], register: Register) -> list[Given] | None:
        """An address of each family. `held`: what the client has, by version; it keeps what is still of the pool.

        None when a family has no address left.
        """
        given = []
        for family in self.families:
            address = held.get(family.version)
            if address is not None and address in family:
                given.append(Given(family.version, address))
                continue
            new = family.give(client_public, register)
            if new is None:
                return None
            given.append(new)
        return given


def ranges_of(network: Network, without: Iterable[Network]) -> tuple[Range, ...]:
    """What is left of a network without those networks of its family, and without what names no host in it: IPv4's
    network and broadcast address, and IPv6's Subnet-Router anycast address (RFC 4291, 2.6.1)."""
    first, last = int(network.network_address), int(network.broadcast_address)
    if network.prefixlen < network.max_prefixlen - 1:
        first, last = first + 1, last - (network.version == 4)
    holes = sorted(
        (int(hole.network_address), int(hole.broadcast_address))
        for hole in without
        if hole.version == network.version
    )
    ranges = []
    for hole_first, hole_last in holes:
        if hole_first > first:
            ranges.append((first, min(last, hole_first - 1)))
        first = max(first, hole_last + 1)
    ranges.append((first, last))
    return tuple((begin, end) for begin, end in ranges if begin <= end)
