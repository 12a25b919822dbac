"""The steering program on a veth: attach, replace, refuse, detach, and real traffic across CPUs."""

import os
import select
import socket
from collections.abc import Iterator

import pytest
from bpf_support import (
    ID,
    OTHER_ID,
    PORT,
    counted,
    datagram,
    loaded_pins,
    remove_pins,
    run_loader,
    steering,
    workspace,
)

from jvpn.holder import bpf_syscall as bpf
from jvpn.holder import xdp
from jvpn.lab import foreign_xdp
from jvpn.lab.namespaces import Lab, Namespace
from jvpn.protocol.constants import PacketType, Role
from jvpn.supervisor.steering import Steering

__all__ = ["steering"]

pytestmark = pytest.mark.netns

T = PacketType
WAIT_S = 5.0
DEVICE = "wire0"
GATEWAY, CLIENT = "192.0.2.1", "192.0.2.2"
GATEWAY6, CLIENT6 = "2001:db8::1", "2001:db8::2"
SO_INCOMING_CPU = 49
DATAGRAMS = 64


@pytest.fixture
def gateway(lab: Lab) -> Namespace:
    """Namespace "gateway" with the veth wire0, whose other end is in the namespace "client".

    The lab's own conditions for XDP on a veth: no checksum offload on the sender, GRO on the receiver.
    """
    gateway, client = lab.namespace("gateway"), lab.namespace("client")
    gateway.ip(f"link add {DEVICE} type veth peer name {DEVICE} netns {client.name}")
    gateway.ip(
        f"addr add {GATEWAY}/24 dev {DEVICE}",
        f"addr add {GATEWAY6}/64 dev {DEVICE} nodad",
        f"link set {DEVICE} up",
    )
    client.ip(
        f"addr add {CLIENT}/24 dev {DEVICE}",
        f"addr add {CLIENT6}/64 dev {DEVICE} nodad",
        f"link set {DEVICE} up",
    )
    client.run(["ethtool", "-K", DEVICE, "tx", "off"])
    gateway.run(["ethtool", "-K", DEVICE, "gro", "on"])
    return gateway


@pytest.fixture
def foreign_fd() -> Iterator[int]:
    """An XDP program of somebody else: returns XDP_PASS."""
    fd = foreign_xdp.load()
    yield fd
    os.close(fd)


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_attach_and_detach(gateway: Namespace, steering: Steering, mode: str) -> None:
    assert gateway.call(lambda: xdp.current(DEVICE)) is None
    gateway.call(lambda: xdp.attach(DEVICE, steering.steer_fd, mode))
    program_id = bpf.prog_info(steering.steer_fd).id
    assert gateway.call(lambda: xdp.current(DEVICE)) == xdp.Attached(mode, program_id, xdp.PROGRAM_NAME)
    assert gateway.call(lambda: xdp.detach(DEVICE))
    assert gateway.call(lambda: xdp.current(DEVICE)) is None
    assert not gateway.call(lambda: xdp.detach(DEVICE)), "nothing left to take away"


def test_our_own_program_is_replaced(gateway: Namespace, steering: Steering) -> None:
    """Also by that of a later start, which is another program of the same name."""
    later = workspace() / "later"
    try:
        status, report = run_loader("--pin-dir", str(later), "--capacity", "16")
        assert status == 0, report
        fresh = bpf.obj_get(later / xdp.PROGRAM_NAME)
        gateway.call(lambda: xdp.attach(DEVICE, steering.steer_fd))
        gateway.call(lambda: xdp.attach(DEVICE, steering.steer_fd))
        gateway.call(lambda: xdp.attach(DEVICE, fresh))
        present = gateway.call(lambda: xdp.current(DEVICE))
        assert present is not None
        assert present.program_id == report["programs"]["jvp_steer"]
        gateway.call(lambda: xdp.attach(DEVICE, steering.steer_fd, "generic"))
        present = gateway.call(lambda: xdp.current(DEVICE))
        assert present == xdp.Attached("generic", bpf.prog_info(steering.steer_fd).id, xdp.PROGRAM_NAME)
        os.close(fresh)
    finally:
        remove_pins(later)


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_a_foreign_program_stays(gateway: Namespace, steering: Steering, foreign_fd: int, mode: str) -> None:
    index = gateway.call(lambda: xdp.index_of(DEVICE))
    flags = {"native": 4, "generic": 2}[mode]
    gateway.call(lambda: xdp._set_xdp(index, foreign_fd, flags))
    before = gateway.call(lambda: xdp.current(DEVICE))
    for attempt in (
        lambda: xdp.attach(DEVICE, steering.steer_fd, "native"),
        lambda: xdp.attach(DEVICE, steering.steer_fd, "generic"),
        lambda: xdp.attach_best(DEVICE, steering.steer_fd),
    ):
        with pytest.raises(xdp.ForeignProgram, match=rf"somebody_elses.*ip link show {DEVICE}") as refusal:
            gateway.call(attempt)
        assert str(bpf.prog_info(foreign_fd).id) in str(refusal.value)
    assert not gateway.call(lambda: xdp.detach(DEVICE))
    assert gateway.call(lambda: xdp.current(DEVICE)) == before


def test_ladder(gateway: Namespace, steering: Steering) -> None:
    assert gateway.call(lambda: xdp.attach_best(DEVICE, steering.steer_fd)) == ("native", [])
    mode, notes = gateway.call(lambda: xdp.attach_best("lo", steering.steer_fd))
    assert mode == "generic"
    assert len(notes) == 1
    assert notes[0].startswith("native XDP on lo: ")


def test_wrong_fd_is_not_attached(gateway: Namespace, steering: Steering) -> None:
    """The TUN program on a NIC: refused in every mode, said why, nothing attached."""
    wrong = bpf.obj_get(loaded_pins() / "jvp_tun_queue")
    mode, notes = gateway.call(lambda: xdp.attach_best(DEVICE, wrong))
    os.close(wrong)
    assert (mode, len(notes)) == ("none", 2)
    assert gateway.call(lambda: xdp.current(DEVICE)) is None


def test_interface_that_is_not_there(gateway: Namespace) -> None:
    with pytest.raises(OSError, match="nothere"):
        gateway.call(lambda: xdp.current("nothere"))


# --- real traffic -----------------------------------------------------------------------------------------------


def mapped(address: str) -> bytes:
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address)
    return bytes(10) + b"\xff\xff" + socket.inet_aton(address)


class Wire:
    """A client's socket and the gateway's, and what comes across."""

    def __init__(self, lab: Lab, six: bool) -> None:
        family = socket.AF_INET6 if six else socket.AF_INET
        self.client = lab["client"].socket(family, socket.SOCK_DGRAM)
        self.server = lab["gateway"].socket(family, socket.SOCK_DGRAM)
        self.source = CLIENT6 if six else CLIENT
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.server.bind((GATEWAY6 if six else GATEWAY, PORT))
        self.client.bind((self.source, 0))
        self.client.connect(self.server.getsockname()[:2])
        self.port = int(self.client.getsockname()[1])

    def exchange(self, payloads: list[bytes], expected: int) -> list[bytes]:
        """Send all, and a last one that every state lets pass, behind which nothing can still come."""
        last = datagram(T.HANDSHAKE_INIT, b"the last")
        for payload in [*payloads, last]:
            self.client.send(payload)
        received: list[bytes] = []
        while len(received) < expected or last not in received:
            ready, _, _ = select.select([self.server], [], [], WAIT_S)
            assert ready, f"{len(received)} of {expected} datagrams came"
            received.append(self.server.recv(2048))
            if received[-1] == last:
                expected += 1
        received.remove(last)
        return received

    def incoming_cpu(self) -> int:
        return self.server.getsockopt(socket.SOL_SOCKET, SO_INCOMING_CPU)

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture(params=[False, True], ids=["IPv4", "IPv6"])
def wire(request: pytest.FixtureRequest, lab: Lab, gateway: Namespace, steering: Steering) -> Iterator[Wire]:
    gateway.call(lambda: xdp.attach(DEVICE, steering.steer_fd))
    made = Wire(lab, request.param)
    made.exchange([], 0)  # neighbours know each other from here on
    yield made
    made.close()


def test_flood_does_not_reach_the_socket(steering: Steering, wire: Wire) -> None:
    steering.put_id(ID, 2, Role.ACTIVE, mapped(wire.source), wire.port)
    good = [datagram(T.DATA, counter=n) for n in range(8)]
    flood = [datagram(T.DATA, OTHER_ID) for _ in range(40)] + [b"\x77" * 40] * 5
    before = steering.counters()
    assert sorted(wire.exchange(flood + good, len(good))) == sorted(good)
    moved = counted(steering, before)
    assert (moved["drop_unknown_id"], moved["drop_unknown_type"], moved["owner_data"]) == (40, 5, 8)


def test_detaching_lets_everything_pass_again(steering: Steering, gateway: Namespace, wire: Wire) -> None:
    unknown = [datagram(T.DATA, OTHER_ID)]
    assert wire.exchange(unknown, 0) == []
    assert gateway.call(lambda: xdp.detach(DEVICE))
    assert wire.exchange(unknown, 1) == unknown


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
@pytest.mark.parametrize(("sender_cpu", "owner_cpu"), [(0, 1), (1, 0), (0, 0)])
def test_owners_cpu_does_the_work(steering: Steering, wire: Wire, sender_cpu: int, owner_cpu: int) -> None:
    """A veth's receive side runs on the sender's CPU; across a cpumap the stack runs on the owner's."""
    steering.set_cpu(owner_cpu)
    steering.set_slot(2, owner_cpu, 2, 0)
    steering.allow_cpumap(True)
    steering.put_id(ID, 2, Role.ACTIVE, mapped(wire.source), wire.port)
    payloads = [datagram(T.DATA, counter=n, size=1300) for n in range(DATAGRAMS)]
    wire.server.connect((wire.source, wire.port))  # the kernel notes the CPU for connected sockets only
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sender_cpu})
    before = steering.counters()
    try:
        for payload in payloads:
            wire.client.send(payload)
    finally:
        os.sched_setaffinity(0, affinity)
    received: list[bytes] = []
    while len(received) < DATAGRAMS:
        ready, _, _ = select.select([wire.server], [], [], WAIT_S)
        assert ready, f"{len(received)} of {DATAGRAMS} datagrams came"
        received.append(wire.server.recv(2048))
    assert received == payloads
    assert wire.incoming_cpu() == owner_cpu
    moved = counted(steering, before)
    assert moved["owner_data"] == DATAGRAMS
    assert moved.get("redirected", 0) == (DATAGRAMS if sender_cpu != owner_cpu else 0)
