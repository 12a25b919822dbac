"""Who sees two networks that a client uses one after the other cannot tell from the datagrams that it is the same one.

Judged from captures of both networks. A second client, another session at the same gateway, is the measure: a string
that its datagrams have at the same offset is the protocol's, and says nothing of whose session it is.

Two captures of n datagrams share a random string of four bytes now and then (n² / 2³² at each offset), so everything is
done twice: what links by design links each time at the same offset, chance does not.
"""

import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from linking import Seen, constant_bytes, first_counters, highest_sequence, seen, shared, strings
from running import PORT, Running, Setup, running, wait_for
from streams import TcpEcho

from jvpn.lab.capture import Capture
from jvpn.lab.faults import EmulatedLink
from jvpn.lab.links import SERVICE_IP, SERVICE_IP6, Network
from jvpn.protocol.constants import HANDSHAKE_TYPES, PacketType

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

Net = Network[EmulatedLink]
#: A network as observers tell them apart: the link, and the client's address on it.
Where = tuple[str, str]
CLIENT, CONTROL = 0, 1
#: Datagrams each way that a network is watched for before the client leaves it, and after it has come.
ENOUGH = 60


class Observer:
    """Captures both uplinks at the clients' end from before the first datagram of either client.

    It knows which are whose: the client talks IPv4, the control IPv6.
    """

    def __init__(self, net: Net) -> None:
        self.system: Running
        for link in net:
            # So that each datagram is captured by itself, not as a part of a superpacket.
            for namespace, device in ((net.client, link.client_device), (net.gateway, link.gateway_device)):
                namespace.run(["ethtool", "-K", device, "tx-udp-segmentation", "off"])
        self._captures = {
            link.name: Capture(net.client, link.client_device, f"udp port {PORT}") for link in net
        }
        self._seen: dict[str, list[Seen]] = {name: [] for name in self._captures}

    def _all(self) -> list[tuple[Where, Seen]]:
        for name, capture in self._captures.items():
            known = self._seen[name]
            known += seen(capture.frames()[len(known) :])
        return [
            ((name, datagram.client), datagram) for name, known in self._seen.items() for datagram in known
        ]

    def client(self, since_ns: int = 0) -> dict[Where, list[Seen]]:
        found: dict[Where, list[Seen]] = defaultdict(list)
        for where, datagram in self._all():
            if ":" not in datagram.client and datagram.time_ns >= since_ns:
                found[where].append(datagram)
        return found

    def control(self) -> list[Seen]:
        return [datagram for (_link, address), datagram in self._all() if ":" in address]

    def flow_labels(self) -> list[set[int]]:
        """Of what the control sent, by link."""
        sent = [
            (link, d.flow_label or 0) for (link, _), d in self._all() if d.up and d.flow_label is not None
        ]
        return [{label for on, label in sent if on == link} for link in self._captures]

    def where(self) -> Where:
        """The network that the client's session is bound on, by the gateway's word."""
        session = self.system.attached(CLIENT)
        return self.system.active(CLIENT).name, session["source"].partition(":")[0]

    def enough(self, where: Where, since_ns: int) -> None:
        """Wait for traffic in both directions."""

        def busy() -> bool:
            there = [d.up for d in self.client(since_ns)[where] if d.kind is PacketType.DATA]
            return min(there.count(True), there.count(False)) >= ENOUGH

        wait_for(busy, f"traffic on {where}")

    def stop(self) -> None:
        for capture in self._captures.values():
            capture.stop()
            assert capture.dropped == 0


@pytest.fixture
def observer(two_uplinks: Net) -> Iterator[Observer]:
    # An address that goes takes the others of its subnet along otherwise (ip-sysctl.rst).
    two_uplinks.client.sysctl({"net.ipv4.conf.all.promote_secondaries": 1})
    made = Observer(two_uplinks)
    setup = Setup(
        endpoints=((SERVICE_IP, PORT), (SERVICE_IP6, PORT)),
        policy={"switch_cooldown_ms": 0, "max_switches_per_minute": 60},
    )
    with running(two_uplinks, setup, clients=2) as system:
        made.system = system
        yield made
    made.stop()


@pytest.fixture
def traffic(observer: Observer, two_uplinks: Net) -> Iterator[list[TcpEcho]]:
    client, gateway = two_uplinks.client, two_uplinks.gateway
    with TcpEcho(client, gateway, "10.8.0.1") as ours, TcpEcho(client, gateway, "10.8.1.1") as theirs:
        yield [ours, theirs]


# What moves the client


def dead_link(system: Running) -> None:
    left = system.active(CLIENT)
    left.down()
    system.moved_from(left, CLIENT)


def chosen_uplink(system: Running) -> None:
    left = system.active(CLIENT)
    system.order(CLIENT, command="switch", device=system.other(left).client_device)
    system.moved_from(left, CLIENT)


def other_address(system: Running) -> None:
    """The uplink's network gives the client another address and takes the old one away."""
    link, old = system.active(CLIENT), system.attached(CLIENT)["source"].partition(":")[0]
    new = link.spare_ip if old == link.client_ip else link.client_ip
    # Or it might well go on over the other uplink.
    system.other(link).down()
    device = link.client_device
    if f" {new}/" not in system.net.client.run(["ip", "-br", "addr", "show", device]).stdout:
        system.net.client.ip(f"addr add {new}/24 dev {device}")
    system.net.client.ip(f"addr del {old}/24 dev {device}")
    wait_for(
        lambda: system.attached(CLIENT)["source"].startswith(f"{new}:"), "the session at the new address"
    )


MOVES = (dead_link, chosen_uplink, other_address)
Pair = tuple[list[Seen], list[Seen]]


def moves(observer: Observer, act: Callable[[Running], None]) -> Pair:
    """Do it once, with traffic before and after; the datagrams of the network before and of the one after."""
    system = observer.system
    system.attached(CLIENT)
    for link in system.net:
        link.up()
    system.warm(CLIENT)
    began_ns, before = time.monotonic_ns(), observer.where()
    observer.enough(before, began_ns)
    act(system)
    bound_ns, after = time.monotonic_ns(), observer.where()
    assert after != before
    observer.enough(after, bound_ns)
    networks = observer.client(began_ns)
    return networks[before], networks[after]


def as_much_of_the_control(observer: Observer, pairs: list[Pair]) -> None:
    """Its counters must have got as far as the client's, or they would look like the client's own."""
    for up in (True, False):
        ours = highest_sequence(d for pair in pairs for network in pair for d in network if d.up is up)
        wait_for(
            lambda up=up, ours=ours: highest_sequence(d for d in observer.control() if d.up is up) >= ours,
            "as many datagrams of the control",
        )


# What is judged


def test_nothing_in_the_datagrams_links_two_networks(observer: Observer, traffic: list[TcpEcho]) -> None:
    system = observer.system
    session = system.attached(CLIENT)["session_id"]
    control_left = system.active(CONTROL)
    system.order(CONTROL, command="switch", device=system.other(control_left).client_device)
    system.moved_from(control_left, CONTROL)
    a_worker_has_died(system)
    pairs = {act: [moves(observer, act) for _twice in range(2)] for act in MOVES}
    for stream in traffic:
        stream.goes_on()
    assert system.attached(CLIENT)["session_id"] == session
    as_much_of_the_control(observer, [pair for both in pairs.values() for pair in both])
    for act, of_this_kind in pairs.items():
        assert linking_offsets(of_this_kind, observer.control()) == {}, act.__name__
        outer_headers_are_unlinked(of_this_kind)
    no_id_on_two_networks(observer)
    counters_begin_anew(observer)
    no_byte_is_constant(observer)
    flow_labels_are_unlinked(observer)


def a_worker_has_died(system: Running) -> None:
    """The client's: its successor counts in another generation, which is the client's alone."""
    client = system.clients[CLIENT]
    children = Path(f"/proc/{client.popen.pid}/task/{client.popen.pid}/children").read_text().split()
    (worker,) = (p for p in children if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes())
    os.kill(int(worker), signal.SIGKILL)
    wait_for(lambda: "another goes on" in client.said, "another worker")


def linking_offsets(pairs: list[Pair], control: list[Seen]) -> dict[tuple[bool, int], list[bytes]]:
    """Offsets, by direction, at which the networks of every pair share a string that is not in the control's there."""
    found: dict[tuple[bool, int], list[bytes]] = {}
    for up in (True, False):
        innocent = [d for d in control if d.up is up]
        each = [
            shared(strings(d for d in a if d.up is up), strings(d for d in b if d.up is up), innocent)
            for a, b in pairs
        ]
        for at in set.intersection(*(set(links) for links in each)):
            found[up, at] = [string for links in each for string in sorted(links[at])[:3]]
    return found


def no_id_on_two_networks(observer: Observer) -> None:
    where: dict[bytes, set[Where]] = defaultdict(set)
    for network, datagrams in observer.client().items():
        for datagram in datagrams:
            if datagram.kind not in HANDSHAKE_TYPES:
                where[datagram.steering_id].add(network)
    assert {its_id.hex(): seen_on for its_id, seen_on in where.items() if len(seen_on) > 1} == {}


def counters_begin_anew(observer: Observer) -> None:
    """At zero on every index, so a counter says how much the observer of this network has seen, and no more.

    The generation of CONTROL is the supervisor's, one for all its clients.
    """
    firsts = first_counters(datagram for there in observer.client().values() for datagram in there)
    assert len(firsts) > 6
    assert {sequence for _generation, sequence in firsts.values()} == {0}
    generations = first_counters(observer.control())
    for (_id, up, count), (generation, _sequence) in firsts.items():
        assert generation in {g for (_, *key), (g, _) in generations.items() if key == [up, count]}


def no_byte_is_constant(observer: Observer) -> None:
    """Of the session's ids, and of what is sealed in the datagrams of one type: nothing shorter links either."""
    everything = [datagram for there in observer.client().values() for datagram in there]
    ids = {datagram.steering_id for datagram in everything if datagram.kind not in HANDSHAKE_TYPES}
    assert len(ids) > 6
    assert all(len(set(column)) > 1 for column in zip(*ids, strict=True))
    by_kind: dict[tuple[PacketType, bool], list[bytes]] = defaultdict(list)
    for datagram in everything:
        by_kind[datagram.kind, datagram.up].append(datagram.data)
    assert {kind: at for kind, there in by_kind.items() if (at := constant_bytes(there[:100]))} == {}


def outer_headers_are_unlinked(pairs: list[Pair]) -> None:
    """Ports, and what the kernel puts into the IP header: the same for everybody, or counted anew in each send."""
    for before, after in pairs:
        ports = [{d.port for d in network} for network in (before, after)]
        assert [len(each) for each in ports] == [1, 1]
        assert not ports[0] & ports[1]
        sent = [d for d in (*before, *after) if d.up]
        assert {d.ttl for d in sent} == {64}
        # 0, or the number of the segment in a superpacket, of which there are at most 64 (udp(7), UDP_SEGMENT).
        assert max(d.packet_id or 0 for d in sent) < 64


def flow_labels_are_unlinked(observer: Observer) -> None:
    """Of the control, which used both uplinks over IPv6; 0 where the kernel makes none."""
    one, other = observer.flow_labels()
    assert one
    assert other
    assert one & other <= {0}
