"""A node hears of what becomes of sessions and nodes, also of what happened while it could not listen."""

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
from jvpn.store import etcd_keys as ops
from jvpn.store.base import StoreError
from jvpn.store.etcd import EtcdStore
from jvpn.store.etcd_client import EtcdClient
from jvpn.store.etcd_keys import Keys
from jvpn.store.etcd_lease import LeaseKeeper
from jvpn.store.etcd_watch import Announced, Asked, Change, Everything, FleetWatch, Owned
from jvpn.store.node_about import NodeAbout

TAKEN = replace(RECORD, owner_node="gw2", state_version=pack_version(2, 0))
FIRST = {RECORD.session_id: (RECORD.state_version, "gw1")}


def seen(everything: Everything) -> dict[bytes, tuple[int, str]]:
    return {session_id: (one.version, one.owner) for session_id, one in everything.owners.items()}


class Fleet:
    """The store as another node writes it, and a watch of gw1's."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.prefix = f"/test-{secrets.token_hex(6)}"
        self.store = EtcdStore(cluster.access(), etcd_cluster.fleet_key(folder), self.prefix)
        self.store.save(RECORD, 100)
        self.watches = [FleetWatch(cluster.access(2), self.prefix)]

    @property
    def watch(self) -> FleetWatch:
        return self.watches[-1]

    def next(self) -> list[Change]:
        def poll() -> list[Change]:
            try:
                return self.watch.poll(0.2)
            except StoreError:
                return []

        return wait_for("a change", poll)

    def owned(self) -> Owned:
        (change,) = self.next()
        assert isinstance(change, Owned)
        return change

    def take(self) -> None:
        found = self.store.load(RECORD.session_id)
        assert found is not None
        assert self.store.claim(TAKEN, found.state_version, found.owner_node)

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


def test_it_begins_with_all_owners_and_goes_on_with_each_change(fleet: Fleet) -> None:
    (first,) = fleet.next()
    assert isinstance(first, Everything)
    assert seen(first) == FIRST
    fleet.store.save(replace(RECORD, state_version=pack_version(1, 3)), 0)
    (kept,) = fleet.next()
    assert isinstance(kept, Owned)
    assert not kept.lost_by("gw1")
    fleet.take()
    lost = fleet.owned()
    assert lost.now is not None
    assert (lost.session_id, lost.now.owner) == (RECORD.session_id, "gw2")
    assert lost.now.version == TAKEN.state_version
    assert [node for node in ("gw1", "gw2", "gw3") if lost.lost_by(node)] == ["gw1"]
    fleet.store.forget(RECORD.session_id)
    ended = fleet.owned()
    assert ended.now is None
    assert [node for node in ("gw1", "gw2", "gw3") if ended.lost_by(node)] == ["gw2"]
    fleet.store.save(replace(RECORD, session_id=b"o" * 16, owner_node="gw3"), 1)
    begun = fleet.owned()
    assert begun.before is None
    assert not any(begun.lost_by(node) for node in ("gw1", "gw2", "gw3"))
    assert fleet.watch.poll(0) == []


def test_each_owner_comes_with_the_inner_prefixes_of_the_session(fleet: Fleet) -> None:
    many = replace(RECORD, session_id=b"m" * 16, inner_v4="10.8.0.3 192.168.7.0/24", inner_v6="fd00:8::3")
    fleet.store.save(many, 1)
    (first,) = fleet.next()
    assert isinstance(first, Everything)
    assert first.owners[many.session_id].prefixes == ("10.8.0.3", "192.168.7.0/24", "fd00:8::3")
    assert first.owners[RECORD.session_id].prefixes == ("10.8.0.2",)
    assert first.owners[RECORD.session_id].born < first.owners[many.session_id].born
    # The node that takes it over knows other prefixes of the client: the claim goes by version and owner.
    taken = replace(many, owner_node="gw2", state_version=pack_version(2, 0), inner_v4="10.8.0.9")
    assert fleet.store.claim(taken, many.state_version, "gw1")
    moved = fleet.owned()
    assert moved.now is not None
    assert moved.now.prefixes == ("10.8.0.9", "fd00:8::3")
    assert moved.now.born == first.owners[many.session_id].born
    fleet.store.save(replace(taken, inner_v4=None, inner_v6=None), 0)
    bare = fleet.owned()
    assert bare.now is not None
    assert bare.now.prefixes == ()


def test_a_node_is_told_of_while_its_lease_goes_on(fleet: Fleet, etcd: Cluster) -> None:
    fleet.next()
    about = NodeAbout(return_addresses=("192.0.2.11", "2001:db8::11"), advertise=("198.51.100.7:51820",))
    keeper = LeaseKeeper(etcd.access(2), "gw7", prefix=fleet.prefix, about=about.encode())
    keeper.start()
    (come,) = fleet.next()
    assert isinstance(come, Announced)
    assert (come.node_id, come.about) == ("gw7", about)
    late = FleetWatch(etcd.access(2), fleet.prefix)
    fleet.watches.append(late)
    (first,) = fleet.next()
    assert isinstance(first, Everything)
    assert first.nodes == {"gw7": about}
    assert seen(first) == FIRST
    keeper.stop()
    (gone,) = fleet.next()
    assert isinstance(gone, Announced)
    assert (gone.node_id, gone.about) == ("gw7", None)


def test_what_a_node_of_another_kind_says_of_itself_is_nothing(fleet: Fleet, etcd: Cluster) -> None:
    client = EtcdClient(etcd.access())
    client.write("/v3/kv/put", {"key": ops.text(f"{fleet.prefix}/nodes/gw8"), "value": ops.text("hello")})
    client.close()
    (first,) = fleet.next()
    assert isinstance(first, Everything)
    assert first.nodes == {"gw8": NodeAbout()}


def test_a_node_that_is_asked_for_a_session_hears_of_it_also_later(fleet: Fleet, etcd: Cluster) -> None:
    fleet.next()
    fleet.store.ask_owner(RECORD.session_id, "gw1", "gw2", 7)
    (asked,) = fleet.next()
    assert isinstance(asked, Asked)
    assert (asked.node_id, asked.session_id, asked.asker, asked.attempt) == (
        "gw1",
        RECORD.session_id,
        "gw2",
        7,
    )
    fleet.watches.append(FleetWatch(etcd.access(2), fleet.prefix))
    (first,) = fleet.next()
    assert isinstance(first, Everything)
    assert first.asked == [asked]
    # The claim takes the question away: that is no other question.
    fleet.take()
    assert fleet.owned().lost_by("gw1")
    assert fleet.watch.poll(0) == []


def test_nodes_nudges_and_owners_are_all_that_is_watched() -> None:
    """They are one range of keys only as long as no other family of keys is named between them."""
    keys = Keys("/p")
    watched = keys.watched
    first, end = ops.data(watched["key"]).decode(), ops.data(watched["range_end"]).decode()
    session, client = b"s" * 16, b"c" * 32
    inside = {keys.node("gw"), keys.owner(session)}
    others = {
        keys.session(session),
        keys.timestamp(client),
        keys.session_of(client, session),
        keys.fleet_check,
    }
    assert {name for name in inside | others if first <= name < end} == inside


def test_another_watch_goes_on_from_a_revision(fleet: Fleet, etcd: Cluster) -> None:
    fleet.next()
    known = fleet.watch.revision
    fleet.take()
    for _ in range(2):
        fleet.watches.append(FleetWatch(etcd.access(), fleet.prefix, known))
        lost = fleet.owned()
        assert lost.lost_by("gw1")
        assert fleet.watch.revision == lost.revision


def test_what_was_compacted_is_told_as_a_whole(frail_fleet: Fleet, frail_etcd: Cluster) -> None:
    frail_fleet.next()
    known = frail_fleet.watch.revision
    frail_fleet.take()
    other = replace(RECORD, session_id=b"o" * 16)
    frail_fleet.store.save(other, 1)
    client = EtcdClient(frail_etcd.access())
    now = client.read("/v3/kv/range", {"key": "YQ=="})["header"]["revision"]
    client.write("/v3/kv/compaction", {"revision": now, "physical": True})
    client.close()
    frail_fleet.watches.append(FleetWatch(frail_etcd.access(), frail_fleet.prefix, known))
    (everything,) = frail_fleet.next()
    assert isinstance(everything, Everything)
    assert seen(everything) == {
        RECORD.session_id: (TAKEN.state_version, "gw2"),
        other.session_id: (other.state_version, "gw1"),
    }
    frail_fleet.store.forget(other.session_id)
    ended = frail_fleet.owned()
    assert (ended.session_id, ended.now) == (other.session_id, None)


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_what_happens_while_its_member_dies_is_told_by_another(
    frail_fleet: Fleet, frail_etcd: Cluster, how: str
) -> None:
    frail_fleet.next()
    assert frail_fleet.watch.poll(0) == []
    (frail_etcd.kill if how == "kill" else frail_etcd.freeze)(frail_etcd.members[0])
    wait_for("another member", lambda: _taken(frail_fleet))
    lost = frail_fleet.owned()
    assert lost.now is not None
    assert lost.now.owner == "gw2"


def _taken(fleet: Fleet) -> bool:
    try:
        seen = fleet.store.load(RECORD.session_id)
        if seen == TAKEN:
            return True
        fleet.take()
    except StoreError:
        return False
    return True
