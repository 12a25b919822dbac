"""A node's lease in a real etcd: alive while it is renewed, fenced before others may think it dead."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import etcd_cluster
import pytest
from etcd_cluster import Cluster

from jvpn.clocks import now_ms
from jvpn.lab.running import wait_for
from jvpn.store import etcd_keys as ops
from jvpn.store.base import StoreError
from jvpn.store.etcd import EtcdStore
from jvpn.store.etcd_client import EtcdClient
from jvpn.store.etcd_lease import LeaseKeeper

REPOSITORY = Path(__file__).parents[2]
CHILD = """
import sys
from jvpn.store.etcd_client import EtcdAccess
from jvpn.store.etcd_lease import LeaseKeeper
keeper = LeaseKeeper(EtcdAccess(sys.argv[1:]), "gw1", on_fence=lambda fence_ms: print(fence_ms, flush=True))
keeper.start()
sys.stdin.read()
"""


@pytest.fixture
def store(frail_etcd: Cluster, tmp_path: Path) -> Iterator[EtcdStore]:
    opened = EtcdStore(frail_etcd.access(), etcd_cluster.fleet_key(tmp_path))
    yield opened
    opened.close()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def fences() -> list[int]:
    return []


@pytest.fixture
def keeper(frail_etcd: Cluster, said: list[str], fences: list[int]) -> Iterator[LeaseKeeper]:
    made = LeaseKeeper(frail_etcd.access(1), "gw1", fences.append, said.append, about="10.0.0.1:51820")
    yield made
    if made._thread.ident is not None:
        made.stop()


def alive(store: EtcdStore) -> bool | None:
    try:
        return store.owner_alive("gw1")
    except StoreError:
        return None


def test_a_node_lives_while_its_lease_is_renewed(
    store: EtcdStore, keeper: LeaseKeeper, fences: list[int]
) -> None:
    assert not store.owner_alive("gw1")
    assert keeper.fenced
    keeper.start()
    wait_for("six renewals: longer than one TTL", lambda: len(fences) > 6)
    assert store.owner_alive("gw1")
    assert not store.owner_alive("gw2")
    assert not keeper.fenced
    assert fences == sorted(fences)
    assert fences[-1] <= now_ms() + 3000 - 250
    keeper.stop()
    assert keeper.fenced
    assert fences[-1] == 0
    assert not store.owner_alive("gw1")


def test_a_process_that_dies_is_fenced_before_its_node_is_thought_dead(
    frail_etcd: Cluster, store: EtcdStore
) -> None:
    command = [sys.executable, "-c", CHILD, *(member.url for member in frail_etcd.members)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            assert store.owner_alive("gw1")
            child.send_signal(signal.SIGKILL)
            last = [int(line) for line in child.stdout][-1:]
            wait_for("the lease to end", lambda: alive(store) is False)
            assert all(now_ms() >= fence_ms for fence_ms in last)
        finally:
            child.kill()


def test_without_a_quorum_a_lease_goes_on_by_itself(
    frail_etcd: Cluster, store: EtcdStore, keeper: LeaseKeeper, said: list[str], fences: list[int]
) -> None:
    keeper.start()
    wait_for("the lease", lambda: len(fences) > 1)
    for member in frail_etcd.members[:2]:
        frail_etcd.kill(member)
    lost_ms = now_ms()
    assert alive(store) is None
    wait_for("a fence that no keepalive has moved", lambda: fences[-1] > lost_ms + 3000)
    wait_for("word of what it means", lambda: said[-1].startswith("etcd has no quorum"))
    assert ["cannot be renewed" in text for text in said] == [True] + [False] * (len(said) - 1)
    # A leader that is left alone leads on until it notices.
    assert all(text.startswith("etcd keeps nothing at present") for text in said[1:-1])
    assert "leads and" not in said[-1]
    assert {"m0 is not running", "m1 is not running"} < set(
        said[-1].rstrip(")").partition("(")[2].split(", ")
    )
    for member in frail_etcd.members[:2]:
        frail_etcd.start(member)
    wait_for("word of it", lambda: said[-1].endswith("renewed again"), 40)
    assert 0 not in fences
    assert fences == sorted(fences)
    assert alive(store)


def test_a_node_cut_off_from_a_majority_is_fenced_and_comes_back(
    frail_etcd: Cluster, store: EtcdStore, keeper: LeaseKeeper, said: list[str], fences: list[int]
) -> None:
    """What is silent may be a majority that goes on without us."""
    keeper.start()
    wait_for("the lease", lambda: len(fences) > 1)
    for member in frail_etcd.members[:2]:
        frail_etcd.freeze(member)
    wait_for("the fence", lambda: keeper.fenced)
    assert not any("no quorum" in text for text in said)
    for member in frail_etcd.members[:2]:
        frail_etcd.thaw(member)
    wait_for("another lease", lambda: not keeper.fenced, 40)
    wait_for("the node", lambda: alive(store))
    wait_for("word of it", lambda: said[-1].endswith("renewed again"))


def test_an_election_fences_nobody(frail_etcd: Cluster, store: EtcdStore, said: list[str]) -> None:
    moved: list[tuple[int, int]] = []
    keeper = LeaseKeeper(frail_etcd.access(1), "gw1", lambda ms: moved.append((now_ms(), ms)), said.append)
    keeper.start()
    try:
        wait_for("the lease", lambda: len(moved) > 1)
        frail_etcd.kill(frail_etcd.leader())
        wait_for("another leader", lambda: alive(store), 40)
        elected = len(moved)
        wait_for("renewals by it", lambda: len(moved) > elected + 1)
        assert all(at_ms < fence_ms for (_, fence_ms), (at_ms, _) in pairwise(moved))
    finally:
        keeper.stop()


def test_doubt_renews_at_once(frail_etcd: Cluster) -> None:
    moved: list[int] = []
    keeper = LeaseKeeper(frail_etcd.access(1), "gw1", moved.append, ttl_s=60)
    keeper.start()
    try:
        wait_for("the lease", lambda: moved)
        keeper.doubt()
        wait_for("a renewal long before its time", lambda: len(moved) > 1)
    finally:
        keeper.stop()


def test_a_lease_that_etcd_has_ended_is_lost_at_once_and_another_one_taken(
    frail_etcd: Cluster, store: EtcdStore, keeper: LeaseKeeper, fences: list[int]
) -> None:
    keeper.start()
    wait_for("the lease", lambda: not keeper.fenced)
    client = EtcdClient(frail_etcd.access())
    (lease,) = client.read("/v3/lease/leases", {})["leases"]
    client.write("/v3/lease/revoke", {"ID": lease["ID"]})
    wait_for("the loss", lambda: 0 in fences)
    wait_for("another lease", lambda: not keeper.fenced)
    assert store.owner_alive("gw1")
    client.write("/v3/kv/deleterange", {"key": ops.text("/jvpn/nodes/gw1")})
    wait_for("the node's name to be back", lambda: alive(store))
    client.close()


def test_stop_does_not_wait_for_a_store_that_is_gone(frail_etcd: Cluster, keeper: LeaseKeeper) -> None:
    keeper.start()
    wait_for("the lease", lambda: not keeper.fenced)
    for member in frail_etcd.members:
        frail_etcd.freeze(member)
    stopping = threading.Thread(target=keeper.stop)
    stopping.start()
    stopping.join(20)
    assert not stopping.is_alive()
    assert keeper.fenced
