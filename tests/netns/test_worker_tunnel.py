"""Two real workers, each in its namespace, joined by a veth: what users send through the tunnel arrives."""

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import multiprocess
import pytest

from jvpn.lab.links import direct_links
from jvpn.lab.namespaces import Lab, Namespace
from jvpn.protocol.addresses import ANY, to_bytes
from jvpn.protocol.constants import PacketType, Transport
from jvpn.protocol.offload import fill_checksum
from jvpn.protocol.paths import INDEX_ACTIVE, SOURCE_BOUND, challenge_slot, challenge_valid
from jvpn.protocol.wire import Header
from workers import commands
from workers.counters import Counter
from workers.main import worker_main
from workers.page import Page
from workers.tun import open_queue
from workers.udp import SOL_UDP, UDP_SEGMENT, open_socket

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

IDS = [commands.InstalledIndex(n, bytes((n,)) * 8) for n in range(6)]
UP, DOWN = b"u" * 32, b"d" * 32
GATEWAY_PORT, CLIENT_PORT = 5000, 5001
MTU = 1400
CLIENT_4, GATEWAY_4 = "10.8.0.2", "10.8.0.1"
CLIENT_6, GATEWAY_6 = "fd08::2", "fd08::1"
NOBODY = 65534


class Driven:
    """A worker process that the test gives commands to."""

    def __init__(self, namespace: Namespace, *, gateway: bool, cpu: int) -> None:
        self.namespace = namespace
        self.gateway = gateway
        self.cpu = cpu
        self.seq = 0
        self.reports: list[commands.Report] = []
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        context: Any = multiprocess.get_context("spawn")
        self.process = context.Process(target=worker_main, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.wait_for(commands.Ready)
        self.descriptor = Page.create(4, b"c" * 32)
        self.page = Page(self.descriptor)

    def wait_for(self, kind: type[Any], **fields: Any) -> Any:
        """The first report of that kind with these fields, waiting for it if need be."""
        deadline = time.monotonic() + 20
        while True:
            for report in self.reports:
                if isinstance(report, kind) and all(getattr(report, k) == v for k, v in fields.items()):
                    self.reports.remove(report)
                    return report
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.channel], [], [], left)[0]:
                raise AssertionError(f"no {kind.__name__} with {fields} came, only {self.reports}")
            data = self.channel.recv(commands.MAX_MESSAGE)
            assert data, "the worker has ended"
            self.reports.append(commands.decode_report(data))

    def tell(self, kind: type[Any], *values: Any, fd: int | None = None) -> commands.Done:
        self.seq += 1
        message = commands.encode(kind(self.seq, *values))
        socket.send_fds(self.channel, [message], [] if fd is None else [fd])
        done: commands.Done = self.wait_for(commands.Done, seq=self.seq)
        return done

    def must(self, kind: type[Any], *values: Any, fd: int | None = None) -> None:
        assert self.tell(kind, *values, fd=fd).error == ""

    def attach_socket(self, number: int, port: int) -> None:
        opened = self.namespace.call(lambda: open_socket("::", port, reuseport=True))
        self.must(commands.AttachSocket, number, True, True, fd=opened.fileno())
        opened.close()

    def start(self, address4: str, address6: str, port: int) -> None:
        self.must(commands.AttachPage, fd=self.descriptor)
        tun = self.namespace.call(lambda: open_queue("jvpn0"))
        self.namespace.ip(
            f"link set jvpn0 mtu {MTU} up",
            f"addr add {address4}/24 dev jvpn0",
            f"addr add {address6}/64 dev jvpn0 nodad",
        )
        self.must(commands.AttachTun, True, MTU, fd=tun)
        os.close(tun)
        self.attach_socket(0, port)
        self.must(commands.Start, 2, self.cpu, self.gateway, NOBODY, NOBODY)

    def add(self, binding: commands.Binding | None, suite: int) -> None:
        up, down = (DOWN, UP) if self.gateway else (UP, DOWN)
        inner = [f"{CLIENT_4}/32", f"{CLIENT_6}/128"] if self.gateway else ["0.0.0.0/0", "::/0"]
        phases = [commands.PhaseKeys(0, up, down)]
        self.must(commands.AddSession, 0, b"s" * 16, suite, 0, phases, inner, inner, IDS, binding)

    def counted(self, counter: Counter) -> int:
        return self.page.counters(2)[counter]

    def dropped(self) -> dict[str, int]:
        counters = self.page.counters(2)
        return {c.name: counters[c] for c in Counter if c >= Counter.NO_SESSION and counters[c]}

    def end(self) -> None:
        self.channel.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        os.close(self.descriptor)


class Tunnel:
    def __init__(self, lab: Lab) -> None:
        self.network = direct_links(lab, ("A", "B"))
        cpus = sorted(os.sched_getaffinity(0))
        self.client = Driven(self.network.client, gateway=False, cpu=cpus[0])
        self.gateway = Driven(self.network.gateway, gateway=True, cpu=cpus[-1])

    def open(self, *, outer_ipv6: bool = False, suite: int = 1) -> None:
        self.client.start(CLIENT_4, CLIENT_6, CLIENT_PORT)
        self.gateway.start(GATEWAY_4, GATEWAY_6, GATEWAY_PORT)
        self.client.add(self.client_path(0, "A", outer_ipv6), suite)
        self.gateway.add(self.gateway_path(0, "A", outer_ipv6), suite)

    @staticmethod
    def client_path(index: int, link: str, outer_ipv6: bool = False) -> commands.Binding:
        gateway = _outer(link, 1, outer_ipv6)
        local = commands.Endpoint(to_bytes(_outer(link, 2, outer_ipv6)), CLIENT_PORT)
        return commands.Binding(index, 0, local, commands.Endpoint(to_bytes(gateway), GATEWAY_PORT))

    @staticmethod
    def gateway_path(index: int, link: str, outer_ipv6: bool = False) -> commands.Binding:
        client = _outer(link, 2, outer_ipv6)
        local = commands.Endpoint(ANY, GATEWAY_PORT)
        return commands.Binding(index, 0, local, commands.Endpoint(to_bytes(client), CLIENT_PORT))


def _outer(link: str, host: int, ipv6: bool) -> str:
    number = "AB".index(link) + 1
    return f"fd00:201:{number}::{host}" if ipv6 else f"10.201.{number}.{host}"


@pytest.fixture
def tunnel() -> Iterator[Tunnel]:
    with Lab("worker") as lab, contextlib.ExitStack() as stack:
        made = Tunnel(lab)
        stack.callback(made.client.end)
        stack.callback(made.gateway.end)
        yield made


def echo(namespace: Namespace, address: str, size: int) -> None:
    """One ICMP echo of `size` bytes; fails when the same bytes do not come back (RFC 792, RFC 4443)."""
    ipv6 = ":" in address
    family, protocol = (
        (socket.AF_INET6, socket.IPPROTO_ICMPV6) if ipv6 else (socket.AF_INET, socket.IPPROTO_ICMP)
    )
    request, reply, at = (128, 129, 0) if ipv6 else (8, 0, 20)
    with namespace.socket(family, socket.SOCK_RAW, protocol) as raw:
        raw.settimeout(10)
        body = os.urandom(4) + os.urandom(size)
        message = bytes((request, 0, 0, 0)) + body
        if not ipv6:
            message = fill_checksum(message, 0, 2)
        raw.sendto(message, (address, 0))
        while True:
            answer = raw.recv(65_536)[at:]
            if answer[0] == reply and answer[4:] == body:
                return


def stream(source: Namespace, sink: Namespace, address: str, size: int) -> None:
    """`size` random bytes over one TCP connection; fails when they do not arrive as they were."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    block = os.urandom(1 << 20)
    with (
        sink.socket(family, socket.SOCK_STREAM) as listening,
        source.socket(family, socket.SOCK_STREAM) as sender,
    ):
        listening.settimeout(30)
        sender.settimeout(30)
        listening.bind((address, 0))
        listening.listen()
        sender.connect(listening.getsockname()[:2])
        receiver, _ = listening.accept()

        def send() -> None:
            with contextlib.suppress(OSError):
                for at in range(0, size, len(block)):
                    sender.sendall(block[: size - at])
                sender.shutdown(socket.SHUT_WR)

        sending = threading.Thread(target=send)
        sending.start()
        try:
            with receiver:
                receiver.settimeout(30)
                got = 0
                while data := receiver.recv(len(block) - got % len(block)):
                    at = got % len(block)
                    assert data == block[at : at + len(data)]
                    got += len(data)
        finally:
            sender.close()
            sending.join()
        assert got == size


def datagrams(source: Namespace, sink: Namespace, address: str) -> None:
    """UDP of many sizes, singly and by UDP_SEGMENT; fails when one is lost or changed."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        sink.socket(family, socket.SOCK_DGRAM) as receiver,
        source.socket(family, socket.SOCK_DGRAM) as sender,
    ):
        receiver.settimeout(10)
        receiver.bind((address, 0))
        sender.connect(receiver.getsockname()[:2])
        for size in (1, 63, 64, 200, 255, 256, 1000, 1352):
            data = os.urandom(size * 20 + 1)
            segment = (SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))
            sent = [data[at : at + size] for at in range(0, len(data), size)]
            if size > 1:
                sender.sendmsg([data], [segment])
                assert [receiver.recv(2000) for _ in sent] == sent
            for datagram in sent:
                sender.send(datagram)
            assert [receiver.recv(2000) for _ in sent] == sent


@pytest.mark.parametrize("outer_ipv6", [False, True])
@pytest.mark.parametrize("suite", [1, 2])
def test_icmp_tcp_and_udp_pass_whole_in_both_families(tunnel: Tunnel, outer_ipv6: bool, suite: int) -> None:
    tunnel.open(outer_ipv6=outer_ipv6, suite=suite)
    ends = tunnel.network.client, tunnel.network.gateway
    for address in (GATEWAY_4, GATEWAY_6):
        for size in (0, 56, 1300, 4000, 20_000):  # the last two are fragments inside
            echo(tunnel.network.client, address, size)
        stream(*ends, address, 48 << 20)
        datagrams(*ends, address)
    for address in (CLIENT_4, CLIENT_6):
        stream(*reversed(ends), address, 48 << 20)
        datagrams(*reversed(ends), address)
    for worker in (tunnel.client, tunnel.gateway):
        assert worker.counted(Counter.DELIVERED_BYTES) > 96 << 20
        assert worker.dropped().keys() <= {"SEND_FULL"}
        assert worker.counted(Counter.TUN_WRITES) < worker.counted(Counter.DELIVERED_PACKETS) / 2


def test_a_session_moves_between_uplinks_without_losing_a_packet(tunnel: Tunnel) -> None:
    tunnel.open()
    client, gateway = tunnel.client, tunnel.gateway
    ends = tunnel.network.client, tunnel.network.gateway
    stream(*ends, GATEWAY_4, 1 << 20)
    far = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 60 * 10**9
    for index, link, before in ((1, "B", 0), (2, "A", 1)):
        # The client delivers on the new index before it is told that the bind is done.
        path = tunnel.client_path(index, link)
        client.must(commands.SendProbe, 0, path, 4711 + index)
        answer = client.wait_for(commands.ProbeAnswered, timestamp_us=4711 + index)
        assert (answer.index, answer.flags & INDEX_ACTIVE, answer.highest_installed) == (index, 0, 5)
        client.must(commands.Rebind, 0, tunnel.client_path(before, "AB"[before % 2]), None, 0, [index])
        gateway.must(commands.Rebind, 0, tunnel.gateway_path(index, link), before, far, [])
        stream(*ends, GATEWAY_4, 1 << 20)  # up on the draining index, down on the new one
        client.must(commands.Rebind, 0, path, before, far, [])
        stream(*ends, GATEWAY_4, 1 << 20)
        assert gateway.page.read_highest(0, index) is not None
    assert client.dropped() == gateway.dropped() == {}


def test_data_from_an_unbound_address_is_not_delivered_but_answered(tunnel: Tunnel) -> None:
    tunnel.open()
    client, gateway = tunnel.client, tunnel.gateway
    echo(tunnel.network.client, GATEWAY_4, 56)
    delivered = gateway.counted(Counter.DELIVERED_PACKETS)
    # The same index from uplink B: what a NAT rebinding looks like from the gateway.
    client.must(commands.Rebind, 0, tunnel.client_path(0, "B"), None, 0, [])
    with tunnel.network.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"hello", (GATEWAY_4, 9))
        answer = client.wait_for(commands.ProbeAnswered, timestamp_us=0)
    assert answer.flags & INDEX_ACTIVE
    assert not answer.flags & SOURCE_BOUND
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert challenge_valid(
        answer.challenge,
        b"c" * 32,
        b"s" * 16,
        to_bytes(_outer("B", 2, False)),
        CLIENT_PORT,
        to_bytes(_outer("B", 1, False)),
        GATEWAY_PORT,
        Transport.UDP,
        challenge_slot(now),
    )
    assert gateway.counted(Counter.DELIVERED_PACKETS) == delivered
    assert gateway.dropped().keys() == {"WRONG_SOURCE"}


def test_what_is_not_for_the_data_plane_reaches_the_supervisor_unread(tunnel: Tunnel) -> None:
    tunnel.open()
    init = Header(PacketType.HANDSHAKE_INIT, b"c" * 8, suite=1).encode() + os.urandom(200)
    with tunnel.network.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((_outer("A", 1, False), GATEWAY_PORT))
        sender.send(init)
        source, port = sender.getsockname()
    report = tunnel.gateway.wait_for(commands.Datagram)
    assert report.data == init
    assert (report.remote.address, report.remote.port) == (to_bytes(source), port)
    assert (report.local.address, report.local.port) == (to_bytes(_outer("A", 1, False)), GATEWAY_PORT)


def test_a_worker_gives_up_its_privileges_and_ends_when_told_or_left_alone(tunnel: Tunnel) -> None:
    tunnel.open()
    status = Path(f"/proc/{tunnel.gateway.process.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert fields["Uid"].split() == fields["Gid"].split() == [str(NOBODY)] * 4
    assert {int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert fields["NoNewPrivs"] == "1"
    assert fields["Groups"].split() == []
    tunnel.gateway.must(commands.Stop)
    tunnel.gateway.process.join(10)
    assert tunnel.gateway.process.exitcode == 0
    tunnel.client.channel.shutdown(socket.SHUT_RDWR)
    tunnel.client.process.join(10)
    assert tunnel.client.process.exitcode == 0
