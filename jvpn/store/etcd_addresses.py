"""Inner addresses of clients in etcd: a key for each address and one for each client, which always agree.

An address is given in a transaction of its own, before the one that its session is born in: what it was found free by
is compared there, so of two nodes that want it one gets it and the other looks again. The session's birth compares that
the client still has it (`held_by`). An address is taken from a client only in a transaction that compares that this
client has no session. So there is no session whose address another client was given.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from jvpn.session.pool import AddressPool, Given, InnerPool, packed, text_of
from jvpn.store import etcd_keys as ops
from jvpn.store.base import StoreError
from jvpn.store.etcd_client import EtcdClient
from jvpn.store.etcd_keys import Json, Keys

_PAGE = 512
#: Clients whose sessions are counted in one question.
_CLIENTS_AT_ONCE = ops.OPERATIONS_OF_LEVEL
#: How often an address that was found free may be another node's by the time it is asked for.
_TRIES = 32


def held_by(keys: Keys, client_public: bytes, held: Mapping[int, int]) -> list[Json]:
    """Comparisons: the client has these addresses."""
    return [
        ops.value_is(keys.address_of(client_public, version), packed(version, address))
        for version, address in held.items()
    ]


def used_again(keys: Keys, client_public: bytes, held: Mapping[int, int]) -> list[Json]:
    """A session of the client begins: its addresses are the last to be taken away from idle clients."""
    return [
        ops.put(keys.address(version, packed(version, address)), client_public)
        for version, address in held.items()
    ]


class EtcdAddresses:
    """`read(reads)`: key-values for each; `every(prefix)`: all there is below it. Raises StoreError."""

    def __init__(
        self,
        client: EtcdClient,
        keys: Keys,
        read: Callable[[list[Json]], list[list[Json]]],
        every: Callable[[str], Iterator[Json]],
    ) -> None:
        self._client = client
        self._keys = keys
        self._read = read
        self._every = every
        self._spared: Collection[bytes] = ()

    def lease(self, pools: Mapping[bytes, InnerPool]) -> dict[bytes, Mapping[int, int]]:
        """Addresses that clients have from now on, by version; nothing of those for whom their pool has none left.

        `pools`: by client. None of these clients loses anything to another of them: they are about to have sessions.
        """
        self._spared = pools.keys()
        leased = dict[bytes, Mapping[int, int]]()
        for (client, pool), held in zip(pools.items(), self._held(list(pools)), strict=True):
            addresses = self._lease(client, pool, held)
            if addresses is not None:
                leased[client] = addresses
        return leased

    def _lease(
        self, client_public: bytes, pool: InnerPool, held: Mapping[int, int]
    ) -> Mapping[int, int] | None:
        for _ in range(_TRIES):
            given = pool.give(client_public, held, self)
            if given is None:
                return None
            new = [one for one in given if held.get(one.version) != one.address]
            if not new or self._take(client_public, held, new):
                return {one.version: one.address for one in given}
            (held,) = self._held([client_public])
        raise StoreError("other nodes were faster with every inner address that was free: ask again")

    def _held(self, clients: Sequence[bytes]) -> list[dict[int, int]]:
        """What each has, by version."""
        places = [(n, version) for n in range(len(clients)) for version in (4, 6)]
        reads = [ops.get(self._keys.address_of(clients[n], version)) for n, version in places]
        found = [dict[int, int]() for _client in clients]
        for (n, version), kvs in zip(places, self._read(reads), strict=True):
            for kv in kvs:
                found[n][version] = int.from_bytes(ops.value_of(kv), "big")
        return found

    def taken(self, version: int, first: int, last: int) -> Iterator[int]:
        keys = self._keys
        lowest = keys.address(version, packed(version, first))
        wanted = ops.between(lowest, keys.address(version, packed(version, last)))
        while True:
            reply = self._client.read("/v3/kv/range", {**wanted, "limit": str(_PAGE), "keys_only": True})
            kvs = reply.get("kvs", [])
            for kv in kvs:
                yield _number(kv)
            if not kvs or not reply.get("more"):
                return
            wanted["key"] = ops.text(ops.data(kvs[-1]["key"]) + b"\0")

    def idle(self, pool: AddressPool) -> Given | None:
        """An address was last changed when its client's last session began."""
        every = sorted(
            (int(kv["mod_revision"]), number, ops.value_of(kv))
            for kv in self._every(self._keys.addresses(pool.version))
            if (number := _number(kv)) in pool
        )
        for n in range(0, len(every), _CLIENTS_AT_ONCE):
            given = self._first_idle(pool, [(a, client) for _, a, client in every[n : n + _CLIENTS_AT_ONCE]])
            if given is not None:
                return given
        return None

    def _first_idle(self, pool: AddressPool, owned: list[tuple[int, bytes]]) -> Given | None:
        candidates = [(number, client) for number, client in owned if client not in self._spared]
        counts = self._read([_any_of(self._keys.sessions_of(client)) for _number, client in candidates])
        for (number, client), found in zip(candidates, counts, strict=True):
            if not found:
                return Given(pool.version, number, client)
        return None

    def _take(self, client_public: bytes, held: Mapping[int, int], new: list[Given]) -> bool:
        """All of `new` or nothing: whether all is still as it was found."""
        keys, compare, change = self._keys, list[Json](), list[Json]()
        for one in new:
            value = packed(one.version, one.address)
            place, mine = keys.address(one.version, value), keys.address_of(client_public, one.version)
            before = held.get(one.version)
            if before is None:
                compare.append(ops.absent(mine))
            else:
                old = packed(one.version, before)
                compare.append(ops.value_is(mine, old))
                change.append(ops.delete(keys.address(one.version, old)))
            if one.loser is None:
                compare.append(ops.absent(place))
            else:
                compare += [ops.value_is(place, one.loser), ops.none_of(keys.sessions_of(one.loser))]
                change.append(ops.delete(keys.address_of(one.loser, one.version)))
            change += [ops.put(place, client_public), ops.put(mine, value)]
        reply = self._client.write("/v3/kv/txn", ops.when(compare, change)["request_txn"])
        return bool(reply.get("succeeded", False))

    def release(self, client_public: bytes) -> bool:
        """False, and nothing is changed, while the client has a session."""
        keys = self._keys
        (held,) = self._held([client_public])
        if not held:
            return True
        compare = [ops.none_of(keys.sessions_of(client_public)), *held_by(keys, client_public, held)]
        change = []
        for version, address in held.items():
            change.append(ops.delete(keys.address(version, packed(version, address))))
            change.append(ops.delete(keys.address_of(client_public, version)))
        reply = self._client.write("/v3/kv/txn", ops.when(compare, change)["request_txn"])
        return bool(reply.get("succeeded", False))

    def all(self) -> dict[bytes, tuple[str, ...]]:
        found: dict[bytes, tuple[str, ...]] = {}
        for version in (4, 6):
            for kv in self._every(self._keys.addresses(version)):
                client = ops.value_of(kv)
                found[client] = (*found.get(client, ()), text_of(version, _number(kv)))
        return found


def _number(kv: Json) -> int:
    address = ops.hex_tail(ops.data(kv["key"]).decode())
    if address is None:
        raise StoreError(f"{ops.data(kv['key']).decode()} in etcd is no inner address")
    return int.from_bytes(address, "big")


def _any_of(prefix: str) -> Json:
    return {"request_range": {**ops.whole(prefix), "limit": "1", "keys_only": True}}
