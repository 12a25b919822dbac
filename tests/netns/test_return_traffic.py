"""Three gateways' hosts on one LAN: what a host there sends to a client comes out of its owner's TUN, at whichever
gateway it has arrived, and follows the session. Real etcd, real kernel routes, no gateway processes."""

import os
import secrets
import select
import socket
from collections.abc import Callable, Iterator
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
from jvpn.store.etcd_watch import Announced, Everything
from jvpn.store.node_about import NodeAbout
from jvpn.supervisor.fleet_member import FleetMember
from jvpn.supervisor.kernel_routes import ROUTE_PROTOCOL
from jvpn.supervisor.plan import FleetPlan
from workers.tun import open_queue

NODES = ("gw1", "gw2", "gw3")
CLIENT, CLIENT6, SITE = "10.8.0.2", "fd00:8::2", "192.168.77.9"
RECORD = SessionRecord(
    b"i" * 16, b"c" * 32, "default", "1", "gw1", State.ATTACHED, pack_version(1, 1), b"secret",
    f"{CLIENT} 192.168.77.0/24", CLIENT6, 1, 2, 3, "boot", 4,
)  # fmt: skip


class Gateway:
    """A host with a TUN, and what a gateway there runs for its fleet."""

    def __init__(self, net: "Net", number: int) -> None:
        self.name = NODES[number - 1]
        self.inside = net.join(self.name, number)
        self.address, self.address6 = f"10.9.0.{number}", f"fd09::{number}"
        self.inside.sysctl({"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})
        # A host that was told of a shorter way would not try the longer one any more.
        self.inside.sysctl({"net.ipv4.conf.all.send_redirects": 0, "net.ipv4.conf.eth0.send_redirects": 0})
        self.tun = self.inside.call(lambda: open_queue("jvpn0", offload=False))
        self.inside.ip("addr add 10.8.0.1/24 dev jvpn0", "addr add fd00:8::1/64 dev jvpn0 nodad")
        self.inside.ip("link set jvpn0 up", "route add 192.168.77.0/24 dev jvpn0 metric 500")
        self.said: list[str] = []
        about = NodeAbout(return_addresses=(self.address, self.address6))
        folder = net.cluster.folder
        key_file = etcd_cluster.fleet_key(folder)
        self._plan = FleetPlan(net.cluster.access(2), key_file, "/jvpn", 2_000, about)
        self.store: EtcdStore = self.inside.call(lambda: EtcdStore(net.cluster.access(), key_file))
        self.member: FleetMember | None = None
        self.alive: set[str] = set()
        self.start()

    def start(self) -> None:
        member = FleetMember(self._plan, self.name, self.name, lambda _fence_ms: None, self.said.append)
        self.member = member
        self.inside.call(member.start)

    def knows(self, node_id: str) -> bool:
        """Whether it believes that node to be alive."""
        assert self.member is not None
        for change in self.member.news():
            if isinstance(change, Everything):
                self.alive = set(change.nodes)
            elif isinstance(change, Announced):
                self.alive -= {change.node_id}
                self.alive |= set() if change.about is None else {change.node_id}
        return node_id in self.alive

    def arrived(self, mark: bytes) -> bool:
        """Whether a packet with `mark` has come out of the TUN by now."""
        while select.select([self.tun], [], [], 0)[0]:
            if mark in os.read(self.tun, 2048):
                return True
        return False

    def routes(self) -> str:
        shown = [["ip", family, "route", "show", "proto", str(ROUTE_PROTOCOL)] for family in ("-4", "-6")]
        return "".join(self.inside.run(command).stdout for command in shown)

    def take(self, version: int) -> None:
        """The session becomes this node's."""

        def taken() -> bool:
            seen = self.store.load(RECORD.session_id)
            if seen is None or seen.owner_node == self.name:
                return seen is not None
            mine = replace(seen, owner_node=self.name, state_version=pack_version(version, 0))
            return bool(self.store.claim(mine, seen.state_version, seen.owner_node))

        self._done(taken)

    def begin(self) -> None:
        """A session begins here."""
        self._done(lambda: self.store.save(replace(RECORD, owner_node=self.name), 1) is None)

    def end(self) -> None:
        self._done(lambda: self.store.forget(RECORD.session_id) is None)

    def _done(self, write: Callable[[], bool]) -> None:
        """A busy machine's etcd may be at an election, and does not say whether it has kept what it was given."""

        def tried() -> bool:
            try:
                return self.inside.call(write)
            except StoreError:
                return False

        wait_for("etcd", tried, 60)

    def stop(self, give_back: bool = True) -> None:
        member, self.member = self.member, None
        if member is not None:
            self.inside.call(lambda: member.stop(give_back))

    def close(self) -> None:
        self.stop()
        self.store.close()
        os.close(self.tun)


class Net:
    """A LAN with etcd's members at its bridge, three gateways, and a host that sends."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab = lab
        self.hub = lab.namespace("hub")
        self.hub.ip("link add lan type bridge", "link set lan up", "addr add 10.9.0.254/24 dev lan")
        members = [Member(f"m{n}", "10.9.0.254", 2379 + n, 2479 + n, self.hub.popen) for n in range(3)]
        self.cluster = Cluster(folder, members)
        self.gateways: list[Gateway] = []

    def start(self) -> None:
        self.cluster.start_all(lambda: self.hub.call(self.cluster.answers))
        for number in (1, 2, 3):
            self.gateways.append(Gateway(self, number))
        self.host = self.join("host", 100)

    def join(self, label: str, number: int) -> Namespace:
        inside = self._lab.namespace(label)
        self.hub.ip(f"link add {label} type veth peer name eth0 netns {inside.name}")
        self.hub.ip(f"link set {label} master lan", f"link set {label} up")
        inside.ip("link set eth0 up", f"addr add 10.9.0.{number}/24 dev eth0")
        inside.ip(f"addr add fd09::{number}/64 dev eth0 nodad")
        return inside

    def deliverer(self, destination: str, at: Gateway) -> str:
        """The gateway whose TUN a packet comes out of that arrives at this one. Raises LabError when none does."""
        family, hop, bits = (
            (socket.AF_INET6, at.address6, 128) if ":" in destination else (socket.AF_INET, at.address, 32)
        )
        self.host.ip(f"route replace {destination}/{bits} via {hop}")
        mark = secrets.token_bytes(16)

        def sent() -> str | None:
            with self.host.socket(family, socket.SOCK_DGRAM) as sender:
                sender.sendto(mark, (destination, 9))
            return next((gateway.name for gateway in self.gateways if gateway.arrived(mark)), None)

        return wait_for(f"a packet for {destination}", sent)

    def settled(self, owner: str, destination: str = CLIENT) -> None:
        """The owner alone delivers, wherever a packet arrives."""
        for at in self.gateways:
            wait_for(f"{owner} to deliver", lambda at=at: self.deliverer(destination, at) == owner)

    def close(self) -> None:
        for gateway in self.gateways:
            gateway.close()
        self.cluster.close()


@pytest.fixture
def net(lab: Lab, tmp_path: Path) -> Iterator[Net]:
    etcd_cluster.need_etcd()
    made = Net(lab, tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_traffic_follows_the_session_wherever_it_arrives(net: Net) -> None:
    first, second, third = net.gateways
    first.begin()
    for destination in (CLIENT, CLIENT6, SITE):
        net.settled("gw1", destination)
    assert first.routes() == ""
    third.take(2)
    for destination in (CLIENT, CLIENT6, SITE):
        net.settled("gw3", destination)
    # The owner's death changes no route: there is nobody else to send to. Who takes its session gets the traffic.
    wait_for("gw2 to know gw3", lambda: second.knows("gw3"))
    third.stop(give_back=False)
    wait_for("the end of its lease", lambda: not second.knows("gw3"))
    assert third.address in first.routes()
    second.take(3)
    for at in (first, second):
        wait_for("gw2 to deliver", lambda at=at: net.deliverer(CLIENT, at) == "gw2")
    # It comes back, knowing what it knew when it died, and learns better.
    third.start()
    net.settled("gw2")
    # Nobody's: each has it for itself again.
    second.end()
    for gateway in net.gateways:
        wait_for("no route", lambda gateway=gateway: gateway.routes() == "")
        assert net.deliverer(CLIENT, gateway) == gateway.name
    assert [gateway.said for gateway in net.gateways] == [[], [], []]


def test_what_is_not_heard_of_etcd_leaves_routes_as_they_are_and_is_made_up_for(net: Net) -> None:
    first, second, third = net.gateways
    second.begin()
    net.settled("gw2")
    for member in net.cluster.members:
        net.cluster.kill(member)
    wait_for("gw1 to miss it", lambda: first.said)
    assert net.deliverer(CLIENT, first) == "gw2"
    for member in net.cluster.members:
        net.cluster.start(member)
    wait_for("a majority", lambda: net.hub.call(net.cluster.answers), 60)
    third.take(2)
    net.settled("gw3")
    assert any("again" in line for line in first.said)
    # A clean end takes the routes along.
    assert first.routes()
    first.stop()
    assert first.routes() == ""
