"""What every ownership store keeps to: the embedded one, the one in memory, and a fleet's on three members of etcd."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import etcd_cluster
import pytest
from test_store import RECORD

from jvpn.session.machine import State, pack_version
from jvpn.session.record import SessionRecord
from jvpn.store.base import OwnershipStore, StoreError
from jvpn.store.etcd import EtcdStore
from jvpn.store.memory import MemoryStore
from jvpn.store.sqlite import SqliteStore

OTHER = replace(RECORD, session_id=b"j" * 16, client_public=b"d" * 32)
Reopen = Callable[[], OwnershipStore]


@pytest.fixture(params=["sqlite", "memory", "etcd"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reopen]:
    """Opens the store, and at each further call opens the same one again, as after a restart."""
    opened: list[OwnershipStore] = []

    def another() -> OwnershipStore:
        if request.param == "memory":
            return memory
        if request.param == "sqlite":
            opened.append(SqliteStore(tmp_path / "sessions.db"))
        else:
            access = request.getfixturevalue("etcd").access()
            opened.append(EtcdStore(access, etcd_cluster.fleet_key(tmp_path), prefix))
        return opened[-1]

    memory, prefix = MemoryStore(b"k" * 32), f"/test-{secrets.token_hex(6)}"
    yield another
    for store in opened:
        store.close()


@pytest.fixture
def store(reopen: Reopen) -> OwnershipStore:
    return reopen()


def taken(owner: str) -> SessionRecord:
    return replace(RECORD, owner_node=owner, state=State.RECOVERING, state_version=pack_version(2, 0))


def test_what_was_saved_is_there_after_a_restart(reopen: Reopen) -> None:
    reopen().save(RECORD, 100)
    again = reopen()
    assert again.sessions() == [RECORD]
    assert again.load(RECORD.session_id) == RECORD
    assert again.timestamps_us() == {RECORD.client_public: 100}
    assert again.fleet_key == reopen().fleet_key
    assert len(again.fleet_key) == 32


def test_a_session_is_replaced_and_its_timestamp_never_falls(store: OwnershipStore) -> None:
    store.save(RECORD, 100)
    newer = replace(RECORD, state_version=pack_version(1, 7), last_bound_attempt=9)
    store.save(newer, 50)
    assert store.sessions() == [newer]
    assert store.timestamps_us() == {RECORD.client_public: 100}
    store.save(newer, 0)
    assert store.timestamps_us() == {RECORD.client_public: 100}
    store.save(newer, 150)
    assert store.timestamps_us() == {RECORD.client_public: 150}


def test_all_of_a_session_that_changes_is_kept(store: OwnershipStore) -> None:
    store.save(RECORD, 100)
    newer = SessionRecord(
        session_id=RECORD.session_id,
        client_public=RECORD.client_public,
        policy_name="another",
        policy_version="0" * 64,
        owner_node="another",
        state=State.DEGRADED,
        state_version=pack_version(3, 1),
        secrets=b"others",
        inner_v4="10.9.9.9",
        inner_v6="fd00::9",
        created_wall_ms=RECORD.created_wall_ms + 1,
        expires_wall_ms=RECORD.expires_wall_ms + 1,
        expires_boot_ms=RECORD.expires_boot_ms + 1,
        boot_id="another",
        stored_wall_ms=RECORD.stored_wall_ms + 1,
        last_bound_attempt=RECORD.last_bound_attempt + 1,
    )
    store.save(newer, 100)
    assert store.load(RECORD.session_id) == newer


def test_a_forgotten_session_leaves_its_clients_timestamp(store: OwnershipStore) -> None:
    store.save(RECORD, 100)
    store.save(OTHER, 200)
    store.forget(RECORD.session_id)
    store.forget(b"never was there!")
    assert store.sessions() == [OTHER]
    assert store.load(RECORD.session_id) is None
    assert store.timestamps_us() == {RECORD.client_public: 100, OTHER.client_public: 200}
    store.forget_timestamp(RECORD.client_public)
    assert store.timestamps_us() == {OTHER.client_public: 200}
    store.save(RECORD, 7)
    assert store.timestamps_us() == {OTHER.client_public: 200, RECORD.client_public: 7}


def test_of_a_clients_sessions_one_is_kept_and_the_others_are_named(store: OwnershipStore) -> None:
    newer = replace(RECORD, session_id=b"n" * 16)
    for record in (RECORD, newer, OTHER):
        store.save(record, 100)
    assert store.forget_others(RECORD.client_public, newer.session_id) == [RECORD]
    assert store.forget_others(RECORD.client_public, newer.session_id) == []
    assert {record.session_id for record in store.sessions()} == {newer.session_id, OTHER.session_id}


def test_a_session_that_was_forgotten_is_not_named_among_the_others(store: OwnershipStore) -> None:
    newer = replace(RECORD, session_id=b"n" * 16)
    store.save(RECORD, 100)
    store.forget(RECORD.session_id)
    with store.batch():
        store.save(newer, 200)
        assert store.forget_others(RECORD.client_public, newer.session_id) == []
    assert store.sessions() == [newer]


def test_of_two_who_claim_a_session_one_gets_it(store: OwnershipStore) -> None:
    store.save(RECORD, 100)
    mine, theirs = taken("gw2"), taken("gw3")
    assert store.claim(mine, RECORD.state_version, RECORD.owner_node)
    assert not store.claim(theirs, RECORD.state_version, RECORD.owner_node)
    assert not store.claim(theirs, mine.state_version, RECORD.owner_node)
    assert not store.claim(theirs, RECORD.state_version, mine.owner_node)
    assert store.load(RECORD.session_id) == mine
    store.forget(RECORD.session_id)
    assert not store.claim(theirs, mine.state_version, mine.owner_node)
    assert store.load(RECORD.session_id) is None


def test_claims_of_a_batch_are_judged_each_for_itself(store: OwnershipStore) -> None:
    store.save(RECORD, 100)
    store.save(OTHER, 100)
    theirs = replace(OTHER, owner_node="gw2", state_version=pack_version(2, 0))
    with store.batch():
        won = store.claim(taken("gw2"), RECORD.state_version, RECORD.owner_node)
        lost = store.claim(theirs, OTHER.state_version, "gw9")
    assert won
    assert not lost
    assert store.load(RECORD.session_id) == taken("gw2")
    assert store.load(OTHER.session_id) == OTHER


def test_the_last_word_of_a_batch_on_a_session_holds(store: OwnershipStore) -> None:
    newer = replace(RECORD, state_version=pack_version(1, 2))
    back = replace(OTHER, last_bound_attempt=77)
    store.save(OTHER, 5)
    with store.batch():
        store.save(RECORD, 100)
        store.save(newer, 90)
        store.forget(OTHER.session_id)
        store.save(back, 0)
        claimed = store.claim(taken("gw2"), newer.state_version, newer.owner_node)
    assert claimed
    assert {record.session_id: record for record in store.sessions()} == {
        RECORD.session_id: taken("gw2"),
        OTHER.session_id: back,
    }
    assert store.timestamps_us() == {RECORD.client_public: 100, OTHER.client_public: 5}
    with store.batch():
        store.save(RECORD, 300)
        store.forget_timestamp(OTHER.client_public)
        store.save(OTHER, 3)
        store.forget(RECORD.session_id)
    assert store.load(RECORD.session_id) is None
    assert store.timestamps_us() == {RECORD.client_public: 300, OTHER.client_public: 3}


def break_off(store: OwnershipStore) -> None:
    with store.batch():
        store.save(OTHER, 200)
        store.forget(RECORD.session_id)
        raise StoreError("on purpose")


def test_of_a_batch_that_fails_nothing_is_kept(store: OwnershipStore) -> None:
    store.save(RECORD, 100)
    with pytest.raises(StoreError, match="on purpose"):
        break_off(store)
    assert store.sessions() == [RECORD]
    assert store.timestamps_us() == {RECORD.client_public: 100}
    store.save(OTHER, 200)
    assert len(store.sessions()) == 2


def test_a_batch_may_be_large(store: OwnershipStore) -> None:
    """More than etcd takes in one level of a transaction, and more than it gives in one answer."""
    many = [
        replace(RECORD, session_id=n.to_bytes(16, "big"), client_public=n.to_bytes(32, "big"))
        for n in range(700)
    ]
    with store.batch():
        for number, record in enumerate(many, 1):
            store.save(record, number)
    assert sorted(store.sessions(), key=lambda record: record.session_id) == many
    assert store.timestamps_us() == {record.client_public: n for n, record in enumerate(many, 1)}
    with store.batch():
        claims = [
            store.claim(
                replace(one, owner_node="gw2", state_version=pack_version(2, n % 2)),
                one.state_version,
                one.owner_node if n % 3 else "gw9",
            )
            for n, one in enumerate(many[:300])
        ]
        for record in many[300:]:
            store.forget(record.session_id)
    assert [bool(claim) for claim in claims] == [n % 3 > 0 for n in range(300)]
    assert len(store.sessions()) == 300


def test_what_is_in_a_higher_epoch_is_another_owners(store: OwnershipStore) -> None:
    store.save(RECORD, 100)
    assert store.claim(taken("gw2"), RECORD.state_version, RECORD.owner_node)
    late = replace(RECORD, state_version=pack_version(1, 9))
    store.save(late, 0)
    assert store.overtaken() == [RECORD.session_id]
    assert store.overtaken() == []
    store.forget(RECORD.session_id, late.state_version)
    assert store.load(RECORD.session_id) == taken("gw2")
    store.forget(RECORD.session_id, taken("gw2").state_version)
    assert store.load(RECORD.session_id) is None


def test_words_for_owners_and_claims_go_in_one_batch(store: OwnershipStore) -> None:
    store.save(RECORD, 100)
    store.save(OTHER, 100)
    with store.batch():
        store.ask_owner(RECORD.session_id, RECORD.owner_node, "gw2", 7)
        store.ask_owner(OTHER.session_id, OTHER.owner_node, "gw2", 7)
        granted = store.claim(taken("gw2"), RECORD.state_version, RECORD.owner_node, owner_gone=True)
    assert granted
    with store.batch():
        store.was_asked(OTHER.session_id, OTHER.owner_node)
        store.was_asked(RECORD.session_id, RECORD.owner_node)


def test_what_was_over_before_a_time_is_found_a_part_at_a_time(store: OwnershipStore) -> None:
    end_ms = RECORD.created_wall_ms + 1000
    many = [
        replace(
            RECORD,
            session_id=n.to_bytes(16, "big"),
            client_public=n.to_bytes(32, "big"),
            expires_wall_ms=end_ms + n % 3,
        )
        for n in range(600)
    ]
    with store.batch():
        for record in many:
            store.save(record, 1)
    over = {record.session_id for record in many if record.expires_wall_ms < end_ms + 1}
    assert len(over) == 200

    def look() -> set[bytes]:
        parts = [store.expired(end_ms + 1) for _ in range(3)]
        assert all(record in many for part in parts for record in part)
        return {record.session_id for part in parts for record in part}

    assert look() == over
    # What stays is found again in the next round.
    assert look() == over
    assert len(store.sessions()) == 600
    back, *gone = sorted(over)
    late = replace(many[0], session_id=back, state_version=pack_version(2, 0))
    assert store.claim(late, many[0].state_version, many[0].owner_node)
    with store.batch():
        for session_id in (back, *gone):
            store.forget(session_id, RECORD.state_version)
    assert len(store.sessions()) == 401
    assert store.load(back) == late
    assert {record.session_id for _ in range(3) for record in store.expired(end_ms + 1)} == {back}
    assert store.expired(RECORD.created_wall_ms) == []
