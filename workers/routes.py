"""Longest prefix match over inner addresses: a dict for single hosts, one dict per prefix length for the rest."""

from ipaddress import ip_network
from typing import Generic, TypeVar

T = TypeVar("T")


class PrefixMap(Generic[T]):
    """Prefixes ("10.8.0.0/24", "fd00::2/128") → values. Addresses are 4 or 16 bytes."""

    def __init__(self) -> None:
        self._hosts: dict[bytes, T] = {}
        #: (address bytes, bits to shift out, network → value), longest prefix first.
        self._levels: list[tuple[int, int, dict[int, T]]] = []

    def add(self, prefix: str, value: T) -> None:
        """The newest value of a prefix wins. Raises ValueError when it is no prefix."""
        network = ip_network(prefix)
        packed = network.network_address.packed
        if network.prefixlen == network.max_prefixlen:
            self._hosts[packed] = value
        else:
            shift = network.max_prefixlen - network.prefixlen
            self._level(len(packed), shift)[int.from_bytes(packed, "big") >> shift] = value

    def discard(self, prefix: str, value: T) -> None:
        """Remove a prefix if it still has `value` (another may have taken it over)."""
        network = ip_network(prefix)
        packed = network.network_address.packed
        if network.prefixlen == network.max_prefixlen:
            if self._hosts.get(packed) is value:
                del self._hosts[packed]
            return
        shift = network.max_prefixlen - network.prefixlen
        level = self._level(len(packed), shift)
        key = int.from_bytes(packed, "big") >> shift
        if level.get(key) is value:
            del level[key]
        self._levels = [entry for entry in self._levels if entry[2]]

    def lookup(self, address: bytes) -> T | None:
        value = self._hosts.get(address)
        if value is None and self._levels:
            size = len(address)
            number = int.from_bytes(address, "big")
            for length, shift, networks in self._levels:
                if length == size and (value := networks.get(number >> shift)) is not None:
                    break
        return value

    def _level(self, length: int, shift: int) -> dict[int, T]:
        for known_length, known_shift, networks in self._levels:
            if (known_length, known_shift) == (length, shift):
                return networks
        made: dict[int, T] = {}
        self._levels.append((length, shift, made))
        self._levels.sort(key=lambda level: level[1])
        return made
