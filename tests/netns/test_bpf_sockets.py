"""jvp_pick and jvp_tun_queue in the kernel's own hands: a reuseport group and a multi-queue TUN in a namespace."""

import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator

import pytest
from bpf_support import ID, OTHER_ID, PORT, counted, datagram, steering
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from jvpn.lab.namespaces import Lab, Namespace
from jvpn.protocol.constants import (
    DATA_KINDS,
    SLOT_SUPERVISOR,
    SLOT_UNAUTHENTICATED,
    PacketType,
    Role,
)
from jvpn.supervisor.steering import Steering

__all__ = ["steering"]

pytestmark = pytest.mark.netns

T = PacketType
WAIT_S = 5.0
UDP_SEGMENT, UDP_GRO = 103, 104
OWNED = DATA_KINDS | {T.PATH}


@pytest.fixture
def namespace(lab: Lab) -> Namespace:
    return lab.namespace("gateway")


# --- the reuseport group -------------------------------------------------------------------------------------


@pytest.fixture
def group(namespace: Namespace, steering: Steering) -> Iterator[list[socket.socket]]:
    """Five dual-stack sockets: the supervisor's two and three workers'."""
    sockets = []
    for _ in range(5):
        sock = namespace.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        sock.bind(("::", PORT))
        sockets.append(sock)
    steering.attach_reuseport(sockets[0])
    yield sockets
    for sock in sockets:
        sock.close()


def arrival(group: list[socket.socket]) -> tuple[int, int]:
    """(index of the socket, bytes) of the one datagram that came."""
    ready, _, _ = select.select(group, [], [], WAIT_S)
    assert len(ready) == 1, "one datagram, one socket"
    return group.index(ready[0]), len(ready[0].recv(70_000))


@pytest.fixture(params=["127.0.0.1", "::1"])
def client(request: pytest.FixtureRequest, namespace: Namespace) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with namespace.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((request.param, PORT))
        yield sock


@pytest.mark.parametrize("kind", list(PacketType))
def test_known_id(
    steering: Steering, group: list[socket.socket], client: socket.socket, kind: PacketType
) -> None:
    steering.put_id(ID, 3, Role.ACTIVE)
    before = steering.counters()
    client.send(datagram(kind))
    if kind in OWNED:
        expected, counter = 3, "pick_owner"
    elif kind in {T.REATTACH_REQUEST, T.CONTROL}:
        expected, counter = SLOT_SUPERVISOR, "pick_supervisor"
    else:
        expected, counter = SLOT_UNAUTHENTICATED, "pick_unauthenticated"
    assert arrival(group)[0] == expected
    assert counted(steering, before) == {counter: 1}


@pytest.mark.parametrize(
    "payload",
    [datagram(k, OTHER_ID) for k in (T.DATA, T.REATTACH_REQUEST, T.HANDSHAKE_INIT)] + [b"", b"\x20"],
)
def test_unknown_and_garbage(group: list[socket.socket], client: socket.socket, payload: bytes) -> None:
    client.send(payload)
    assert arrival(group)[0] == SLOT_UNAUTHENTICATED


def test_superpacket_goes_whole_to_its_owner(
    steering: Steering, group: list[socket.socket], client: socket.socket
) -> None:
    segment = datagram(T.DATA, size=1200)
    for slot in (2, 3, 4):
        steering.put_id(ID, slot, Role.ACTIVE)
        client.sendmsg([segment * 20], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", len(segment)))])
        assert arrival(group) == (slot, 20 * len(segment))


def test_moving_the_slot_moves_the_session(
    steering: Steering, group: list[socket.socket], client: socket.socket
) -> None:
    steering.put_id(ID, 2, Role.ACTIVE)
    client.send(datagram(T.DATA))
    assert arrival(group)[0] == 2
    steering.set_slot(2, None, 4, 0)
    client.send(datagram(T.DATA))
    assert arrival(group)[0] == 4


def test_slot_without_a_worker(steering: Steering, group: list[socket.socket], client: socket.socket) -> None:
    steering.put_id(ID, 200, Role.ACTIVE)
    client.send(datagram(T.DATA))
    assert arrival(group)[0] == SLOT_UNAUTHENTICATED


# --- the TUN ---------------------------------------------------------------------------------------------------

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI, IFF_MULTI_QUEUE, IFF_VNET_HDR = 0x1, 0x1000, 0x100, 0x4000
VNET_HEADER = 10
QUEUES = 3


class Tun:
    def __init__(self, namespace: Namespace, header: int) -> None:
        self.header = header
        flags = IFF_TUN | IFF_NO_PI | IFF_MULTI_QUEUE | (IFF_VNET_HDR if header else 0)
        self.queues = [namespace.call(lambda: self._open(flags)) for _ in range(QUEUES)]
        namespace.sysctl({"net.ipv6.conf.jt0.router_solicitations": 0})
        namespace.ip(
            "addr add 10.77.0.1/16 dev jt0",
            "addr add fd77::1/64 dev jt0 nodad",
            "link set jt0 up",
        )

    @staticmethod
    def _open(flags: int) -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"jt0", flags))
        return fd

    def queue_of(self, destination: str) -> int:
        """The queue on which the next packet for `destination` comes; passes over the kernel's own chatter."""
        while True:
            ready, _, _ = select.select(self.queues, [], [], WAIT_S)
            assert ready, f"no packet for {destination} came"
            for fd in ready:
                packet = os.read(fd, 70_000)[self.header :]
                parsed = IP(packet) if packet[0] >> 4 == 4 else IPv6(packet)
                if parsed.dst == destination:
                    return self.queues.index(fd)

    def close(self) -> None:
        for fd in self.queues:
            os.close(fd)


@pytest.fixture(params=[0, VNET_HEADER], ids=["plain", "vnet_header"])
def tun(request: pytest.FixtureRequest, namespace: Namespace, steering: Steering) -> Iterator[Tun]:
    opened = Tun(namespace, request.param)
    steering.attach_tun(opened.queues[0])
    yield opened
    opened.close()


def send(namespace: Namespace, destination: str, size: int = 20) -> None:
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    with namespace.socket(family, socket.SOCK_DGRAM) as sock:
        sock.sendto(bytes(size), (destination, 9))


def test_queue_by_inner_destination(steering: Steering, namespace: Namespace, tun: Tun) -> None:
    cases = [
        ("10.77.0.2", "10.77.0.2/32", 3, 1),
        ("fd77::2", "fd77::2/128", 3, 1),
        ("10.77.9.9", "10.77.9.0/24", 4, 2),
        ("fd77::9:1", "fd77::9:0/112", 4, 2),
    ]
    for _, prefix, slot, _ in cases:
        steering.put_prefix(prefix, slot)
    for destination, _, _, queue in cases:
        send(namespace, destination)
        assert tun.queue_of(destination) == queue, destination


def test_longest_prefix_wins(steering: Steering, namespace: Namespace, tun: Tun) -> None:
    steering.put_prefix("10.77.0.0/16", 4)
    steering.put_prefix("10.77.0.5/32", 3)
    send(namespace, "10.77.0.5")
    assert tun.queue_of("10.77.0.5") == 1
    assert steering.remove_prefix("10.77.0.5/32")
    send(namespace, "10.77.0.5")
    assert tun.queue_of("10.77.0.5") == 2


@pytest.mark.parametrize("destination", ["10.77.3.3", "fd77::3"])
def test_destination_of_no_session(
    steering: Steering, namespace: Namespace, tun: Tun, destination: str
) -> None:
    before = steering.counters()
    send(namespace, destination)
    assert tun.queue_of(destination) == 0
    assert counted(steering, before)["tun_default"] >= 1


def test_moving_the_slot_moves_return_traffic(steering: Steering, namespace: Namespace, tun: Tun) -> None:
    steering.put_prefix("10.77.0.2/32", 3)
    steering.set_slot(3, None, 3, 2)
    send(namespace, "10.77.0.2")
    assert tun.queue_of("10.77.0.2") == 2


def test_prefixes_are_listed_and_checked(steering: Steering) -> None:
    for prefix in ("10.77.0.2/32", "10.77.9.0/24", "fd77::/64"):
        steering.put_prefix(prefix, 2)
    assert set(steering.prefixes()) == {"10.77.0.2/32", "10.77.9.0/24", "fd77::/64"}
    with pytest.raises(ValueError, match="host bits"):
        steering.put_prefix("10.77.0.2/24", 2)
    assert not steering.remove_prefix("10.99.0.0/24")
