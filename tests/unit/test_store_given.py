"""A session that its owner has given to another node changes by claims alone, in every store."""

from dataclasses import replace

from test_store import RECORD
from test_store_contract import reopen, store, taken

from jvpn.session.machine import pack_version
from jvpn.store.base import OwnershipStore

__all__ = ["reopen", "store"]

GIVEN = replace(RECORD, owner_node="gw2", state_version=pack_version(1, 2))
LATE = replace(RECORD, state_version=pack_version(1, 3))


def give(store: OwnershipStore) -> None:
    assert store.claim(GIVEN, RECORD.state_version, RECORD.owner_node)


def test_who_gave_it_does_not_write_over_that(store: OwnershipStore) -> None:
    store.save(RECORD, 100)
    give(store)
    store.save(LATE, 0)
    assert store.overtaken() == [RECORD.session_id]
    with store.batch():
        store.save(LATE, 200)
    assert store.overtaken() == [RECORD.session_id]
    assert store.load(RECORD.session_id) == GIVEN
    # Of a client's timestamps the newest counts, whoever brings it.
    assert store.timestamps_us() == {RECORD.client_public: 200}


def test_it_is_claimed_and_then_saved_by_who_has_it(store: OwnershipStore) -> None:
    store.save(RECORD, 100)
    give(store)
    assert not store.claim(taken("gw1"), RECORD.state_version, RECORD.owner_node)
    assert store.claim(taken("gw2"), GIVEN.state_version, "gw2")
    changed = replace(taken("gw2"), state_version=pack_version(2, 1))
    store.save(changed, 0)
    assert store.overtaken() == []
    assert store.load(RECORD.session_id) == changed
    store.save(LATE, 0)
    assert store.overtaken() == [RECORD.session_id]


def test_it_may_be_given_back_and_on(store: OwnershipStore) -> None:
    store.save(RECORD, 100)
    give(store)
    assert store.claim(RECORD, GIVEN.state_version, "gw2")
    assert store.claim(replace(GIVEN, owner_node="gw3"), RECORD.state_version, "gw1")
    store.save(LATE, 0)
    assert store.overtaken() == [RECORD.session_id]
    assert store.claim(taken("gw3"), GIVEN.state_version, "gw3")
    store.save(taken("gw3"), 0)
    assert store.overtaken() == []


def test_it_may_be_saved_and_given_in_one_batch(store: OwnershipStore) -> None:
    store.save(RECORD, 100)
    newer = replace(RECORD, last_bound_attempt=9)
    with store.batch():
        store.save(newer, 0)
        granted = store.claim(GIVEN, newer.state_version, newer.owner_node)
        store.save(LATE, 0)
    assert granted
    assert store.overtaken() == [RECORD.session_id]
    store.save(LATE, 0)
    assert store.overtaken() == [RECORD.session_id]
    assert store.load(RECORD.session_id) == GIVEN


def test_one_that_was_forgotten_begins_anew(store: OwnershipStore) -> None:
    store.save(RECORD, 100)
    give(store)
    store.forget(RECORD.session_id)
    store.save(RECORD, 300)
    store.save(LATE, 0)
    assert store.overtaken() == []
    assert store.load(RECORD.session_id) == LATE
