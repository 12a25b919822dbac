"""One member of etcd is cut off from the other two, while gateways can still ask all three."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import etcd_cluster
import pytest
from etcd_cluster import Cluster, Member

from jvpn.lab.namespaces import Lab, Namespace
from jvpn.lab.running import wait_for
from jvpn.session.machine import State, pack_version
from jvpn.session.record import SessionRecord
from jvpn.store.base import StoreError
from jvpn.store.etcd import EtcdStore
from jvpn.store.etcd_client import EtcdAccess, EtcdClient
from jvpn.store.etcd_watch import FleetWatch, Owned

RECORD = SessionRecord(
    b"i" * 16, b"c" * 32, "default", "1", "gw1", State.ATTACHED, pack_version(1, 1), b"secret", None, None, 1, 2, 3,
    "boot", 4,
)  # fmt: skip
TAKEN = replace(RECORD, owner_node="gw2", state_version=pack_version(2, 0))


class Net:
    """Each member in a namespace of its own, behind a router in which the gateways live."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.hub = lab.namespace("hub")
        self.hub.sysctl({"net.ipv4.ip_forward": 1})
        self.cluster = Cluster(folder, [self._member(lab, n) for n in range(3)])
        self.cluster.start_all(lambda: self.hub.call(self.cluster.answers))

    def _member(self, lab: Lab, number: int) -> Member:
        inside = lab.namespace(f"m{number}")
        self.hub.ip(f"link add v{number} type veth peer name eth0 netns {inside.name}")
        self.hub.ip(f"addr add 10.77.{number}.1/24 dev v{number}", f"link set v{number} up")
        inside.ip(f"addr add 10.77.{number}.2/24 dev eth0", "link set eth0 up")
        inside.ip(f"route add default via 10.77.{number}.1")
        return Member(f"m{number}", f"10.77.{number}.2", 2379, 2380, inside.popen)

    def cut_off(self, member: Member) -> None:
        device = f"v{self.cluster.members.index(member)}"
        _nft(self.hub, "add table ip cut")
        _nft(self.hub, "add chain ip cut way { type filter hook forward priority 0; }")
        _nft(self.hub, f'add rule ip cut way iifname "{device}" drop')
        _nft(self.hub, f'add rule ip cut way oifname "{device}" drop')

    def heal(self) -> None:
        _nft(self.hub, "delete table ip cut")

    def access(self, first: Member, timeout_s: float = 2.0) -> EtcdAccess:
        """Asks `first` before the others."""
        others = [member.url for member in self.cluster.members if member is not first]
        return EtcdAccess([first.url, *others], timeout_s)

    def store(self, first: Member, only: bool = False) -> EtcdStore:
        key_file = etcd_cluster.fleet_key(self.cluster.folder)
        access = EtcdAccess([first.url], 2) if only else self.access(first)
        return self.hub.call(lambda: EtcdStore(access, key_file))


def _nft(namespace: Namespace, command: str) -> None:
    namespace.run(["nft", command])


@pytest.fixture
def net(lab: Lab, tmp_path: Path) -> Iterator[Net]:
    etcd_cluster.need_etcd()
    with etcd_cluster.in_memory(tmp_path) as folder:
        made = Net(lab, folder)
        yield made
        made.cluster.close()


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_a_member_that_is_cut_off_says_nothing_and_the_others_go_on(net: Net, who: str) -> None:
    leader = net.hub.call(net.cluster.leader)
    victim = leader if who == "leader" else next(m for m in net.cluster.members if m is not leader)
    alone, free = net.store(victim, only=True), net.store(victim)
    net.hub.call(lambda: free.save(RECORD, 100))
    watch = FleetWatch(net.access(victim))
    net.hub.call(lambda: watch.poll(1))
    assert net.hub.call(lambda: watch.poll(0)) == []
    net.cut_off(victim)

    def claimed() -> bool:
        """By a gateway that asks the one that is cut off first."""
        try:
            found = free.load(RECORD.session_id)
            return found == TAKEN or bool(free.claim(TAKEN, RECORD.state_version, RECORD.owner_node))
        except StoreError:
            return False

    wait_for("the others", lambda: net.hub.call(claimed))
    # The one that is cut off would say what was: it says nothing, and takes nothing.
    with pytest.raises(StoreError):
        net.hub.call(lambda: alone.load(RECORD.session_id))
    rival = replace(TAKEN, owner_node="gw3")
    with pytest.raises(StoreError):
        net.hub.call(lambda: alone.claim(rival, RECORD.state_version, RECORD.owner_node))

    def told() -> bool:
        try:
            return any(isinstance(c, Owned) and c.lost_by("gw1") for c in watch.poll(0.2))
        except StoreError:
            return False

    wait_for("the watch to hear of it elsewhere", lambda: net.hub.call(told))
    net.heal()
    wait_for("the member to be back", lambda: net.hub.call(lambda: _same(alone)), 40)
    assert not net.hub.call(lambda: alone.claim(rival, RECORD.state_version, RECORD.owner_node))
    assert net.hub.call(lambda: free.load(RECORD.session_id)) == TAKEN
    for one in (alone, free, watch):
        one.close()


def _same(store: EtcdStore) -> bool:
    try:
        return store.load(RECORD.session_id) == TAKEN
    except StoreError:
        return False


def test_a_member_that_swallows_everything_costs_a_call_no_more_than_its_timeout(net: Net) -> None:
    """Cut off from the gateway, not from the others: no RST, no answer."""
    victim = net.cluster.members[0]
    store = net.store(victim)
    _nft(net.hub, "add table ip cut")
    _nft(net.hub, "add chain ip cut way { type filter hook output priority 0; }")
    _nft(net.hub, f"add rule ip cut way ip daddr {victim.address} drop")
    # What only reads is asked of another member within the same call.
    assert net.hub.call(lambda: store.load(b"x" * 16)) is None
    net.hub.call(lambda: store.save(RECORD, 1))
    strangers = EtcdClient(net.access(victim))
    # One that was never connected to it does not wait for it either, nor is a write lost: it was not sent.
    net.hub.call(lambda: strangers.write("/v3/kv/put", {"key": "YQ==", "value": "YQ=="}))
    assert net.hub.call(lambda: store.load(RECORD.session_id)) == RECORD
    strangers.close()
    store.close()
