"""The mark of the fleet's key is removed from etcd under nodes that run, or is another one all at once."""

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import etcd_cluster
import pytest
from etcd_cluster import Cluster
from test_store import RECORD

from jvpn.lab.running import wait_for
from jvpn.store import etcd_keys as ops
from jvpn.store.base import StoreError
from jvpn.store.etcd import EtcdStore
from jvpn.store.etcd_client import EtcdClient
from jvpn.store.etcd_lease import LeaseKeeper

NEXT = replace(RECORD, session_id=b"n" * 16)


class Etcd:
    """A prefix in a cluster, and hands in it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self._folder = cluster, folder
        self.prefix = f"/test-{secrets.token_hex(6)}"
        self._client = EtcdClient(cluster.access())
        self._stores: list[EtcdStore] = []

    def store(self, key: bytes = b"k" * 32) -> EtcdStore:
        folder = self._folder / secrets.token_hex(4)
        folder.mkdir()
        key_file = etcd_cluster.fleet_key(folder, key)
        self._stores.append(EtcdStore(self.cluster.access(), key_file, self.prefix))
        return self._stores[-1]

    def remove(self, key: str = "") -> None:
        wanted = {"key": ops.text(key)} if key else ops.whole(f"{self.prefix}/")
        self._client.write("/v3/kv/deleterange", wanted)

    def overwrite(self, mark: bytes) -> None:
        put = {"key": ops.text(f"{self.prefix}/key"), "value": ops.text(mark)}
        self._client.write("/v3/kv/put", put)

    def mark(self) -> bytes | None:
        found = self._client.read("/v3/kv/range", {"key": ops.text(f"{self.prefix}/key")}).get("kvs", [])
        return ops.value_of(found[0]) if found else None

    def close(self) -> None:
        self._client.close()
        for store in self._stores:
            store.close()


@pytest.fixture
def hands(etcd: Cluster, tmp_path: Path) -> Iterator[Etcd]:
    made = Etcd(etcd, tmp_path)
    yield made
    made.close()


def test_a_node_that_keeps_something_puts_the_mark_back(hands: Etcd) -> None:
    store = hands.store()
    store.save(RECORD, 100)
    mark = hands.mark()
    hands.remove()
    store.save(NEXT, 200)
    assert hands.mark() == mark
    assert "somebody has removed" in store.look()
    assert store.look() == ""
    assert store.sessions() == [NEXT]
    with pytest.raises(StoreError, match="is not the key of this fleet"):
        hands.store(b"l" * 32)


def test_where_another_key_came_first_nothing_is_kept(hands: Etcd) -> None:
    ours = hands.store()
    ours.save(RECORD, 100)
    hands.remove()
    theirs = hands.store(b"l" * 32)
    theirs.save(NEXT, 100)
    for _ in range(2):
        with pytest.raises(StoreError, match="is not the key of this fleet"):
            ours.save(RECORD, 200)
        with pytest.raises(StoreError, match="is not the key of this fleet"):
            ours.forget(NEXT.session_id)
    assert theirs.sessions() == [NEXT]
    assert theirs.timestamps_us() == {NEXT.client_public: 100}
    # What the words say is to be done.
    hands.remove(f"{hands.prefix}/key")
    ours.save(RECORD, 300)
    assert ours.load(RECORD.session_id) == RECORD
    with pytest.raises(StoreError, match="is not the key of this fleet"):
        theirs.save(NEXT, 100)


def test_a_node_that_keeps_nothing_puts_the_mark_back_with_its_lease(hands: Etcd) -> None:
    store, said, fences = hands.store(), list[str](), list[int]()
    keeper = LeaseKeeper(
        hands.cluster.access(), "gw1", fences.append, said.append, hands.prefix, mark=store.mark
    )
    keeper.start()
    try:
        wait_for("its lease", lambda: fences)
        mark = hands.mark()
        hands.remove(f"{hands.prefix}/key")
        keeper.doubt()
        wait_for("the mark", lambda: hands.mark() == mark)
        wait_for("a word", lambda: said)
        assert [f"somebody has removed {hands.prefix}/key" in line for line in said] == [True]
        hands.overwrite(b"m" * 32)
        keeper.doubt()
        wait_for("a word", lambda: any("is that of another fleet.key_file" in line for line in said))
        renewed, words = len(fences), len(said)
        wait_for("two renewals", lambda: keeper.doubt() or len(fences) > renewed + 1)
        # Its lease goes on, for the sessions that run, and it is said once.
        assert not keeper.fenced
        assert len(said) == words
    finally:
        keeper.stop()
