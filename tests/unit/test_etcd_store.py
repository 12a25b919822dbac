"""A fleet's store beyond the contract of all: its key, what etcd gets to see, who may write, how it is reached."""

import secrets
from collections.abc import Iterator
from contextlib import ExitStack
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
from jvpn.store.etcd_client import EtcdAccess, EtcdClient, EtcdRefused

TAKEN = replace(RECORD, owner_node="gw2", state_version=pack_version(2, 0))


@pytest.fixture
def prefix() -> str:
    return f"/test-{secrets.token_hex(6)}"


@pytest.fixture
def store(etcd: Cluster, tmp_path: Path, prefix: str) -> Iterator[EtcdStore]:
    opened = EtcdStore(etcd.access(), etcd_cluster.fleet_key(tmp_path), prefix)
    yield opened
    opened.close()


@pytest.fixture
def client(etcd: Cluster) -> Iterator[EtcdClient]:
    opened = EtcdClient(etcd.access())
    yield opened
    opened.close()


def test_secrets_are_sealed(store: EtcdStore, client: EtcdClient, prefix: str) -> None:
    store.save(RECORD, 100)
    found = client.read("/v3/kv/range", ops.whole(prefix + "/"))["kvs"]
    assert any(RECORD.client_public in ops.value_of(kv) for kv in found)
    assert not any(RECORD.secrets[:8] in ops.value_of(kv) for kv in found)


def test_a_record_that_was_tampered_with_is_left_out(
    store: EtcdStore, client: EtcdClient, prefix: str
) -> None:
    """Another session's record under its key, another session's secrets in its record, and no record at all."""
    other = replace(RECORD, session_id=b"j" * 16, secrets=b"other secrets")
    for record in (RECORD, other):
        store.save(record, 100)
    names = [f"{prefix}/sessions/{record.session_id.hex()}" for record in (RECORD, other)]
    mine, theirs = (
        ops.data(client.read("/v3/kv/range", {"key": ops.text(name)})["kvs"][0]["value"]) for name in names
    )
    for forged in (mine, theirs.replace(other.session_id, RECORD.session_id), b"nonsense", b""):
        victim = names[1] if forged == mine else names[0]
        client.write("/v3/kv/put", {"key": ops.text(victim), "value": ops.text(forged)})
        sound = {RECORD.session_id: other, other.session_id: RECORD}
        session_id = bytes.fromhex(victim.rpartition("/")[2])
        assert store.sessions() == [sound[session_id]]
        with pytest.raises(StoreError, match=session_id.hex()):
            store.load(session_id)
        client.write("/v3/kv/put", {"key": ops.text(names[0]), "value": ops.text(mine)})
        client.write("/v3/kv/put", {"key": ops.text(names[1]), "value": ops.text(theirs)})
        assert len(store.sessions()) == 2


def test_a_node_with_another_key_is_refused(
    etcd: Cluster, store: EtcdStore, tmp_path: Path, prefix: str
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    with pytest.raises(StoreError, match="is not the key of this fleet"):
        EtcdStore(etcd.access(), etcd_cluster.fleet_key(folder, b"l" * 32), prefix)


@pytest.mark.parametrize("damage", ["absent", "short", "readable"])
def test_a_key_file_that_cannot_be_used_is_named(etcd: Cluster, tmp_path: Path, damage: str) -> None:
    path = etcd_cluster.fleet_key(tmp_path, b"short" if damage == "short" else b"k" * 32)
    if damage == "absent":
        path.unlink()
    elif damage == "readable":
        path.chmod(0o640)
    with pytest.raises(StoreError, match=str(path)):
        EtcdStore(etcd.access(), path)
    assert path.exists() == (damage != "absent")


def test_a_node_that_lost_a_session_does_not_write_over_its_successor(store: EtcdStore) -> None:
    store.save(RECORD, 100)
    assert store.claim(TAKEN, RECORD.state_version, RECORD.owner_node)
    late = replace(RECORD, state_version=pack_version(1, 9))
    fresh = replace(RECORD, session_id=b"f" * 16)
    with store.batch():
        store.save(late, 0)
        store.save(fresh, 200)
    assert store.load(RECORD.session_id) == TAKEN
    assert store.load(fresh.session_id) == fresh
    assert store.overtaken() == [RECORD.session_id]
    assert store.overtaken() == []
    store.save(replace(TAKEN, state_version=pack_version(2, 1)), 0)
    assert store.overtaken() == []


def test_a_claim_is_not_known_before_its_batch_is_kept(store: EtcdStore) -> None:
    store.save(RECORD, 100)
    with store.batch():
        claimed = store.claim(TAKEN, RECORD.state_version, RECORD.owner_node)
        with pytest.raises(StoreError, match="not known before"):
            bool(claimed)
    assert claimed


def test_a_batch_is_one_request(store: EtcdStore, client: EtcdClient, prefix: str) -> None:
    """Everything that it changes is of one revision of etcd."""
    store.save(RECORD, 100)
    with store.batch():
        store.claim(TAKEN, RECORD.state_version, RECORD.owner_node)
        for number in range(64):
            store.save(replace(RECORD, session_id=number.to_bytes(16, "big")), 200 + number)
    found = client.read("/v3/kv/range", ops.whole(prefix + "/sessions/"))["kvs"]
    assert len({kv["mod_revision"] for kv in found}) == 1
    assert len(found) == 65


def test_what_is_forgotten_leaves_nothing_but_the_timestamp(
    store: EtcdStore, client: EtcdClient, prefix: str
) -> None:
    newer = replace(RECORD, session_id=b"n" * 16)
    store.save(RECORD, 100)
    store.save(newer, 200)
    store.forget(newer.session_id)
    store.save(newer, 200)
    assert store.forget_others(RECORD.client_public, RECORD.session_id) == [newer]
    assert store.claim(replace(RECORD, owner_node="gw2"), RECORD.state_version, RECORD.owner_node)
    store.forget(RECORD.session_id)
    found = client.read("/v3/kv/range", {**ops.whole(prefix + "/"), "keys_only": True})["kvs"]
    names = {ops.data(kv["key"]).decode().removeprefix(prefix) for kv in found}
    assert names == {"/key", f"/clients/{RECORD.client_public.hex()}/timestamp"}


@pytest.mark.parametrize(
    ("urls", "words"),
    [
        ([], "no endpoint"),
        (["http://gateway.example:2379"], "names a host"),
        (["127.0.0.1:2379"], "is no member"),
        (["http://127.0.0.1"], "is no member"),
        (["http://127.0.0.1:99999"], "range"),
    ],
)
def test_an_access_that_cannot_be_one_is_refused(urls: list[str], words: str) -> None:
    with pytest.raises(StoreError, match=words):
        EtcdClient(EtcdAccess(urls))


@pytest.mark.parametrize("prefix", ["", "jvpn", "/jvpn/"])
def test_a_prefix_that_would_share_keys_is_refused(etcd: Cluster, tmp_path: Path, prefix: str) -> None:
    with pytest.raises(StoreError, match="prefix"):
        EtcdStore(etcd.access(), etcd_cluster.fleet_key(tmp_path), prefix)


def test_users_have_passwords_and_tokens_are_renewed(tmp_path: Path) -> None:
    etcd_cluster.need_etcd()
    with ExitStack() as stack:
        cluster = etcd_cluster.on_loopback(tmp_path, 1)
        stack.callback(cluster.close)
        admin = EtcdClient(cluster.access())
        stack.callback(admin.close)
        admin.write("/v3/auth/user/add", {"name": "root", "password": "right"})
        admin.write("/v3/auth/role/add", {"name": "root"})
        admin.write("/v3/auth/user/grant", {"user": "root", "role": "root"})
        admin.write("/v3/auth/enable", {})
        key_file = etcd_cluster.fleet_key(tmp_path)
        for access in (cluster.access(), cluster.access(user="root", password="wrong")):
            with pytest.raises(EtcdRefused):
                EtcdStore(access, key_file)
        store = EtcdStore(cluster.access(user="root", password="right"), key_file)
        stack.callback(store.close)
        store.save(RECORD, 100)
        # A member that was restarted has forgotten all tokens.
        cluster.kill(cluster.members[0])
        cluster.start(cluster.members[0])
        wait_for("the member", lambda: _loads(store))
        assert store.load(RECORD.session_id) == RECORD


def _loads(store: EtcdStore) -> bool:
    try:
        return store.load(RECORD.session_id) is not None
    except EtcdRefused:
        raise
    except StoreError:
        return False


def test_a_session_that_another_node_has_ended_does_not_come_back_by_a_late_save(store: EtcdStore) -> None:
    store.save(RECORD, 100)
    store.forget(RECORD.session_id)
    late = replace(RECORD, last_bound_attempt=9)
    store.save(late, 0)
    assert store.overtaken() == [RECORD.session_id]
    assert store.load(RECORD.session_id) is None
    store.save(RECORD, 200)
    store.save(late, 0)
    assert store.overtaken() == []
    assert store.load(RECORD.session_id) == late
