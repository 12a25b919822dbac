"""Inner addresses of clients in the store in memory."""

from collections.abc import Callable

from jvpn.session.pool import AddressPool, Given, text_of


class MemoryAddresses:
    """`has_session(client_public)`. A client has at most one address of each version, an address one client."""

    def __init__(self, has_session: Callable[[bytes], bool]) -> None:
        self._has_session = has_session
        #: Clients by version and address; those whose sessions began last are at the end.
        self._clients: dict[tuple[int, int], bytes] = {}

    def copy(self) -> dict[tuple[int, int], bytes]:
        return dict(self._clients)

    def put_back(self, clients: dict[tuple[int, int], bytes]) -> None:
        self._clients = clients

    def held(self, client_public: bytes) -> dict[int, int]:
        return {version: address for (version, address), c in self._clients.items() if c == client_public}

    def taken(self, version: int, first: int, last: int) -> list[int]:
        return sorted(address for v, address in self._clients if v == version and first <= address <= last)

    def idle(self, pool: AddressPool) -> Given | None:
        for (version, address), client in self._clients.items():
            if version == pool.version and address in pool and not self._has_session(client):
                return Given(version, address, client)
        return None

    def keep(self, client_public: bytes, given: Given) -> None:
        before = self.held(client_public).get(given.version)
        if before is not None:
            del self._clients[given.version, before]
        self._clients.pop((given.version, given.address), None)
        self._clients[given.version, given.address] = client_public

    def release(self, client_public: bytes) -> bool:
        if self._has_session(client_public):
            return False
        self._clients = {place: c for place, c in self._clients.items() if c != client_public}
        return True

    def all(self) -> dict[bytes, tuple[str, ...]]:
        found: dict[bytes, tuple[str, ...]] = {}
        for (version, address), client in sorted(self._clients.items()):
            found[client] = (*found.get(client, ()), text_of(version, address))
        return found
