"""Inner addresses out of a pool: what every store keeps to."""

from dataclasses import replace
from ipaddress import ip_network

import pytest
from test_store import RECORD
from test_store_contract import Reopen, reopen, store

from jvpn.session.pool import AddressPool, InnerPool, ranges_of
from jvpn.session.record import SessionRecord
from jvpn.store.base import OwnershipStore, StoreError

__all__ = ["reopen", "store"]


def pool_of(*prefixes: str, without: tuple[str, ...] = ()) -> InnerPool:
    networks = [ip_network(prefix) for prefix in prefixes]
    holes = [ip_network(hole) for hole in without]
    return InnerPool(tuple(AddressPool(n.version, ranges_of(n, holes)) for n in networks))


#: .1 to .6
SMALL = pool_of("10.8.0.0/29")
BOTH = pool_of("10.8.0.0/24", "fd00:8::/64")


def born_of(client: int, session: int = 0) -> SessionRecord:
    name = client.to_bytes(4, "big") + session.to_bytes(12, "big")
    unaddressed = replace(RECORD, inner_v4=None, inner_v6=None)
    return replace(unaddressed, session_id=name, client_public=key_of(client))


def key_of(client: int) -> bytes:
    return client.to_bytes(32, "big")


def give(store: OwnershipStore, client: int, session: int = 0, pool: InnerPool = SMALL) -> str | None:
    kept = store.bear(born_of(client, session), 100, pool).record
    assert kept is None or store.load(kept.session_id) == kept
    return None if kept is None else kept.inner_v4


def end(store: OwnershipStore, client: int, session: int = 0) -> None:
    store.forget(born_of(client, session).session_id)


def test_a_session_is_born_with_an_address_of_each_family(reopen: Reopen) -> None:
    birth = reopen().bear(born_of(1), 100, BOTH)
    kept = birth.record
    assert kept is not None
    assert kept.inner_v4 in BOTH
    assert kept.inner_v6 in BOTH
    again = reopen()
    assert again.load(kept.session_id) == kept
    assert again.timestamps_us() == {key_of(1): 100}
    assert again.inner_addresses() == {key_of(1): (kept.inner_v4, kept.inner_v6)}


def test_an_address_stays_with_its_client(reopen: Reopen) -> None:
    first = [give(reopen(), client) for client in range(1, 5)]
    assert len(set(first)) == 4
    for client in range(1, 5):
        end(reopen(), client)
    assert [give(reopen(), client, 1) for client in (4, 3, 2, 1)] == first[::-1]
    assert [give(reopen(), client, 2) for client in (1, 2, 3, 4)] == first


def test_a_full_pool_gives_what_has_been_idle_the_longest(store: OwnershipStore) -> None:
    first = {client: give(store, client) for client in range(1, 7)}
    assert set(first.values()) == {f"10.8.0.{n}" for n in range(1, 7)}
    assert give(store, 7) is None
    assert store.timestamps_us().get(key_of(7)) is None
    for client in (5, 2, 4):
        end(store, client)
    # The second has begun a session since.
    assert give(store, 2, 1) == first[2]
    end(store, 2, 1)
    assert give(store, 7) == first[4]
    assert give(store, 8) == first[5]
    assert give(store, 4, 1) == first[2]
    assert give(store, 5, 1) is None
    assert store.inner_addresses()[key_of(7)] == (first[4],)
    assert key_of(5) not in store.inner_addresses()


def test_births_of_a_batch_get_different_addresses(store: OwnershipStore) -> None:
    with store.batch():
        births = [store.bear(born_of(client), 100, SMALL) for client in range(1, 9)]
    given = [birth.record.inner_v4 for birth in births if birth.record is not None]
    assert len(set(given)) == len(given) == 6
    assert len(store.sessions()) == 6
    assert {record.inner_v4 for record in store.sessions()} == set(given)


def test_two_births_of_one_client_share_its_address(store: OwnershipStore) -> None:
    with store.batch():
        births = [store.bear(born_of(1, session), 100 + session, SMALL) for session in range(3)]
        store.forget(born_of(1, 1).session_id)
    assert len({birth.record.inner_v4 for birth in births if birth.record is not None}) == 1
    assert {record.session_id for record in store.sessions()} == {born_of(1, n).session_id for n in (0, 2)}
    assert store.timestamps_us() == {key_of(1): 102}


def test_of_a_batch_that_fails_no_session_is_born(store: OwnershipStore) -> None:
    def break_off() -> None:
        with store.batch():
            store.bear(born_of(1), 100, SMALL)
            raise StoreError("on purpose")

    with pytest.raises(StoreError, match="on purpose"):
        break_off()
    assert store.sessions() == []
    assert store.timestamps_us() == {}
    assert give(store, 1) is not None


def test_addresses_are_released_when_there_is_no_session(store: OwnershipStore) -> None:
    given = give(store, 1)
    assert not store.release_addresses(key_of(1))
    assert store.inner_addresses() == {key_of(1): (given,)}
    end(store, 1)
    assert store.release_addresses(key_of(1))
    assert store.release_addresses(key_of(1))
    assert store.inner_addresses() == {}


def test_an_address_that_the_pool_lost_is_exchanged(store: OwnershipStore) -> None:
    before = give(store, 1)
    elsewhere = pool_of("10.9.0.0/29")
    after = give(store, 1, 1, elsewhere)
    assert after in elsewhere
    assert store.inner_addresses() == {key_of(1): (after,)}
    others = {give(store, client) for client in range(2, 8)}
    assert before in others


def test_a_pool_of_2_to_the_64_needs_no_list(store: OwnershipStore) -> None:
    wide = pool_of("fd00:8::/64")
    kept = [store.bear(born_of(client), 100, wide).record for client in range(20)]
    given = {record.inner_v6 for record in kept if record is not None}
    assert len(given) == 20


@pytest.fixture
def crowded(store: OwnershipStore) -> OwnershipStore:
    """More clients than etcd takes in one level of a transaction, or gives in one answer: all but one address."""
    with store.batch():
        for client in range(1, 1022):
            store.bear(born_of(client), 100, pool_of("10.8.0.0/22"))
    return store


def test_the_last_address_of_many_is_found(crowded: OwnershipStore) -> None:
    wide = pool_of("10.8.0.0/22")
    assert len(set(crowded.inner_addresses().values())) == 1021
    assert give(crowded, 2000, pool=wide) is not None
    assert give(crowded, 2001, pool=wide) is None
    given = crowded.inner_addresses()[key_of(700)]
    end(crowded, 700)
    assert (give(crowded, 2001, pool=wide),) == given
