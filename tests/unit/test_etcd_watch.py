"""A node hears of the sessions that it lost, also of those that it lost while it could not listen."""

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import etcd_cluster
import pytest
from etcd_cluster import Cluster
from test_store import RECORD

from jvpn.lab.running import wait_for
from jvpn.session.machine import pack_version
from jvpn.store.base import StoreError
from jvpn.store.etcd import EtcdStore
from jvpn.store.etcd_client import EtcdClient
from jvpn.store.etcd_watch import Change, Everything, OwnerWatch, Released

TAKEN = replace(RECORD, owner_node="gw2", state_version=pack_version(2, 0))
FIRST = {RECORD.session_id: (RECORD.state_version, "gw1")}


class Fleet:
    """The store as another node writes it, and a watch of gw1's."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.prefix = f"/test-{secrets.token_hex(6)}"
        self.store = EtcdStore(cluster.access(), etcd_cluster.fleet_key(folder), self.prefix)
        self.store.save(RECORD, 100)
        self.watches = [OwnerWatch(cluster.access(2), "gw1", self.prefix)]

    @property
    def watch(self) -> OwnerWatch:
        return self.watches[-1]

    def next(self) -> list[Change]:
        def poll() -> list[Change]:
            try:
                return self.watch.poll(0.2)
            except StoreError:
                return []

        return wait_for("a change", poll)

    def take(self) -> None:
        seen = self.store.load(RECORD.session_id)
        assert seen is not None
        assert self.store.claim(TAKEN, seen.state_version, seen.owner_node)

    def close(self) -> None:
        for watch in self.watches:
            watch.close()
        self.store.close()


@pytest.fixture
def fleet(etcd: Cluster, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(etcd, tmp_path)
    yield made
    made.close()


@pytest.fixture
def frail_fleet(frail_etcd: Cluster, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(frail_etcd, tmp_path)
    yield made
    made.close()


def test_it_begins_with_all_owners_and_goes_on_with_what_was_lost(fleet: Fleet) -> None:
    (first,) = fleet.next()
    assert isinstance(first, Everything)
    assert first.owners == FIRST
    fleet.store.save(replace(RECORD, state_version=pack_version(1, 3)), 0)  # its own
    fleet.store.save(replace(RECORD, session_id=b"o" * 16, owner_node="gw3"), 0)  # never its own
    fleet.take()
    (lost,) = fleet.next()
    assert isinstance(lost, Released)
    assert (lost.session_id, lost.owner, lost.version) == (RECORD.session_id, "gw2", TAKEN.state_version)
    fleet.store.forget(RECORD.session_id)  # another's by now
    mine = replace(RECORD, session_id=b"m" * 16)
    fleet.store.save(mine, 0)
    fleet.store.forget(mine.session_id)
    (ended,) = fleet.next()
    assert isinstance(ended, Released)
    assert (ended.session_id, ended.owner) == (mine.session_id, None)
    assert fleet.watch.poll(0) == []


def test_another_watch_goes_on_from_a_revision(fleet: Fleet, etcd: Cluster) -> None:
    fleet.next()
    seen = fleet.watch.revision
    fleet.take()
    for _ in range(2):
        fleet.watches.append(OwnerWatch(etcd.access(), "gw1", fleet.prefix, seen))
        (lost,) = fleet.next()
        assert isinstance(lost, Released)
        assert lost.owner == "gw2"
        assert fleet.watch.revision == lost.revision


def test_what_was_compacted_is_told_as_a_whole(frail_fleet: Fleet, frail_etcd: Cluster) -> None:
    frail_fleet.next()
    seen = frail_fleet.watch.revision
    frail_fleet.take()
    other = replace(RECORD, session_id=b"o" * 16)
    frail_fleet.store.save(other, 0)
    client = EtcdClient(frail_etcd.access())
    now = client.read("/v3/kv/range", {"key": "YQ=="})["header"]["revision"]
    client.write("/v3/kv/compaction", {"revision": now, "physical": True})
    client.close()
    frail_fleet.watches.append(OwnerWatch(frail_etcd.access(), "gw1", frail_fleet.prefix, seen))
    (everything,) = frail_fleet.next()
    assert isinstance(everything, Everything)
    assert everything.owners == {
        RECORD.session_id: (TAKEN.state_version, "gw2"),
        other.session_id: (other.state_version, "gw1"),
    }
    frail_fleet.store.forget(other.session_id)
    (ended,) = frail_fleet.next()
    assert isinstance(ended, Released)
    assert ended.session_id == other.session_id


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_what_happens_while_its_member_dies_is_told_by_another(
    frail_fleet: Fleet, frail_etcd: Cluster, how: str
) -> None:
    frail_fleet.next()
    assert frail_fleet.watch.poll(0) == []
    (frail_etcd.kill if how == "kill" else frail_etcd.freeze)(frail_etcd.members[0])
    wait_for("another member", lambda: _taken(frail_fleet))
    (lost,) = frail_fleet.next()
    assert isinstance(lost, Released)
    assert lost.owner == "gw2"


def _taken(fleet: Fleet) -> bool:
    try:
        seen = fleet.store.load(RECORD.session_id)
        if seen == TAKEN:
            return True
        fleet.take()
    except StoreError:
        return False
    return True
