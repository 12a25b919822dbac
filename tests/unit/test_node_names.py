"""A node's name in a real etcd belongs to one gateway, also where a configuration was copied."""

from collections.abc import Callable, Iterator
from pathlib import Path

import etcd_cluster
import pytest
from etcd_cluster import Cluster

from jvpn.lab.running import wait_for
from jvpn.store import etcd_keys as ops
from jvpn.store.base import StoreError
from jvpn.store.etcd_client import EtcdClient
from jvpn.store.etcd_lease import LeaseKeeper
from jvpn.store.node_about import NodeAbout, understood
from jvpn.supervisor import fleet_member
from jvpn.supervisor.fleet_member import FleetMember
from jvpn.supervisor.instance import instance_of
from jvpn.supervisor.plan import FleetPlan

KEY = "/jvpn/nodes/gw1"
HERE, THERE = "192.0.2.7:51820", "198.51.100.7:51820"


class Gateway:
    """One called gw1, by its keeper."""

    def __init__(self, cluster: Cluster, instance: str, endpoint: str) -> None:
        self.said: list[str] = []
        about = NodeAbout(advertise=(endpoint,), instance=instance)
        self.keeper = LeaseKeeper(cluster.access(), "gw1", say=self.said.append, about=about.encode())
        self.stopped = False

    def start(self) -> "Gateway":
        self.keeper.start()
        return self

    def begin(self) -> "Gateway":
        self.start()
        wait_for("its lease", lambda: not self.keeper.fenced)
        return self

    def stop(self, give_back: bool = True) -> None:
        if not self.stopped:
            self.stopped = True
            self.keeper.stop(give_back)


Make = Callable[[str, str], Gateway]


@pytest.fixture
def gateway(frail_etcd: Cluster) -> Iterator[Make]:
    made: list[Gateway] = []

    def make(instance: str, endpoint: str) -> Gateway:
        made.append(Gateway(frail_etcd, instance, endpoint))
        return made[-1]

    yield make
    for one in made:
        if one.keeper._thread.ident is not None:
            one.stop()


@pytest.fixture
def client(frail_etcd: Cluster) -> Iterator[EtcdClient]:
    opened = EtcdClient(frail_etcd.access())
    yield opened
    opened.close()


def registered(client: EtcdClient) -> str:
    """The instance whose key it is, "" for nobody's."""
    found = client.read("/v3/kv/range", ops.get(KEY)["request_range"]).get("kvs", [])
    return understood(ops.value_of(found[0])).instance if found else ""


def test_a_second_gateway_of_a_name_waits_until_the_first_has_ended(
    gateway: Make, client: EtcdClient
) -> None:
    first = gateway("a", THERE).begin()
    second = gateway("b", HERE).start()
    wait_for("word of it", lambda: second.said)
    assert f"another gateway calls itself gw1, at {THERE}: give each node_id once" in second.said[0]
    assert second.keeper.fenced
    assert not first.keeper.fenced
    assert registered(client) == "a"
    # A host that dies: its lease ends by itself.
    first.stop(give_back=False)
    wait_for("the name", lambda: not second.keeper.fenced)
    assert registered(client) == "b"
    assert second.keeper.taken is None
    assert len(second.said) == 2


def test_another_supervisor_of_the_same_data_plane_has_the_name_at_once(
    gateway: Make, client: EtcdClient
) -> None:
    lease_id = int(client.write("/v3/lease/grant", {"TTL": "600"})["ID"])
    before = NodeAbout(advertise=(THERE,), instance="a").encode().encode()
    client.write("/v3/kv/txn", ops.together([ops.put(KEY, before, lease_id)]))
    # The lease of the one before goes on: it is not waited for.
    second = gateway("a", THERE).begin()
    assert second.said == []
    client.write("/v3/lease/revoke", {"ID": str(lease_id)})
    assert registered(client) == "a"


def test_a_running_gateway_whose_name_another_has_is_fenced_until_it_has_it_back(
    gateway: Make, client: EtcdClient
) -> None:
    first = gateway("a", THERE).begin()
    lease_id = int(client.write("/v3/lease/grant", {"TTL": "60"})["ID"])
    theirs = NodeAbout(advertise=(HERE,), instance="b").encode().encode()
    client.write("/v3/kv/txn", ops.together([ops.put(KEY, theirs, lease_id)]))
    wait_for("the fence", lambda: first.keeper.taken is not None and first.keeper.fenced)
    assert [f"another gateway calls itself gw1, at {HERE}" in text for text in first.said] == [True]
    first.keeper.announce(NodeAbout(draining=True, instance="a").encode())
    assert registered(client) == "b"
    client.write("/v3/lease/revoke", {"ID": str(lease_id)})
    wait_for("the name", lambda: not first.keeper.fenced)
    assert registered(client) == "a"
    assert len(first.said) == 2


def test_a_start_under_the_name_of_another_gateway_fails(
    frail_etcd: Cluster, gateway: Make, client: EtcdClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway("a", THERE).begin()
    monkeypatch.setattr(fleet_member, "FIRST_LEASE_S", 2.0)
    about = NodeAbout(advertise=(HERE,))
    plan = FleetPlan(frail_etcd.access(), etcd_cluster.fleet_key(tmp_path), "/jvpn", 3000, about)
    fences: list[int] = []
    member = FleetMember(plan, "gw1", instance_of(tmp_path), fences.append, lambda _text: None)
    with pytest.raises(StoreError, match=f"^another gateway calls itself gw1, at {THERE}: give each node_id"):
        member.start()
    member.stop()
    assert fences == []
    assert registered(client) == "a"


def test_an_instance_is_that_of_its_directory(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    assert instance_of(one) == instance_of(tmp_path / "other" / ".." / "one")
    assert instance_of(one) != instance_of(other)
