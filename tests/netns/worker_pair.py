"""Two worker processes, each in its namespace, that a test gives commands to, and traffic through their tunnel."""

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import multiprocess
import pytest
from refusing import refuse

from jvpn.lab.links import Network, direct_links
from jvpn.lab.namespaces import Lab, Namespace
from jvpn.protocol.addresses import ANY, to_bytes
from jvpn.protocol.offload import fill_checksum
from workers import bulk, commands, offload
from workers.counters import Counter
from workers.main import worker_main
from workers.page import Page
from workers.tun import open_queue
from workers.udp import SOL_UDP, UDP_SEGMENT, open_socket

IDS = [commands.InstalledIndex(n, bytes((n,)) * 8) for n in range(6)]
UP, DOWN = b"u" * 32, b"d" * 32
GATEWAY_PORT, CLIENT_PORT = 5000, 5001
MTU = 1400
CLIENT_4, GATEWAY_4 = "10.8.0.2", "10.8.0.1"
CLIENT_6, GATEWAY_6 = "fd08::2", "fd08::1"
NOBODY = 65534
T = TypeVar("T")
#: Arguments of refusing.refuse: what an older kernel has not.
Refusal = tuple[str, int, int | None]


class Driven:
    """A worker process that the test gives commands to. `refused`: what its kernel has not; `wanted`: offloads.

    `library`: whether it finds libipsec-mb, if there is one.
    """

    def __init__(
        self,
        namespace: Namespace,
        *,
        gateway: bool,
        cpu: int,
        refused: tuple[Refusal, ...] = (),
        wanted: bool = True,
        library: bool = True,
    ) -> None:
        self.refused = refused
        self.wanted = wanted
        self.library = library
        self.found = offload.Offload()
        self.namespace = namespace
        self.gateway = gateway
        self.cpu = cpu
        self.seq = 0
        self.reports: list[commands.Report] = []
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        context: Any = multiprocess.get_context("spawn")
        self.process = context.Process(target=_refused_worker, args=(theirs, refused, library), daemon=True)
        self.process.start()
        theirs.close()
        self.wait_for(commands.Ready)
        self.descriptor = Page.create(4, b"c" * 32)
        self.page = Page(self.descriptor)

    def call(self, function: Callable[[], T]) -> T:
        """`function` in the namespace, on a kernel that lacks what this end's has not."""

        def limited() -> T:
            for refusal in self.refused:
                refuse(*refusal)
            return function()

        return self.namespace.call(limited)

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
        opened = self.call(lambda: open_socket("::", port, reuseport=True, offload=self.wanted))
        self.must(commands.AttachSocket, number, self.found.gro, self.found.gso, fd=opened.fileno())
        opened.close()

    def start(self, address4: str, address6: str, port: int) -> None:
        self.must(commands.AttachPage, fd=self.descriptor)
        tun = self.call(lambda: open_queue("jvpn0", offload=self.wanted))
        if self.wanted:
            with contextlib.nullcontext() if self.library else no_library():
                self.found = self.call(lambda: offload.find(tun))
        self.namespace.ip(
            f"link set jvpn0 mtu {MTU} up",
            f"addr add {address4}/24 dev jvpn0",
            f"addr add {address6}/64 dev jvpn0 nodad",
        )
        self.must(commands.AttachTun, self.found.vnet_header, MTU, fd=tun)
        os.close(tun)
        self.attach_socket(0, port)
        self.must(commands.Start, 2, self.cpu, self.gateway, NOBODY, NOBODY, self.found.bulk)

    def add(self, binding: commands.Binding | None, suite: int, behind: tuple[str, ...] = ()) -> None:
        """`behind`: networks behind the client."""
        up, down = (DOWN, UP) if self.gateway else (UP, DOWN)
        inner = [f"{CLIENT_4}/32", f"{CLIENT_6}/128", *behind] if self.gateway else ["0.0.0.0/0", "::/0"]
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


def _refused_worker(channel: socket.socket, refused: tuple[Refusal, ...], library: bool) -> None:
    for refusal in refused:
        refuse(*refusal)
    with contextlib.nullcontext() if library else no_library():
        worker_main(channel)


@contextlib.contextmanager
def no_library() -> Iterator[None]:
    """This process finds no libipsec-mb."""
    bulk.look.cache_clear()
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(bulk, "LIBRARY", "libIPSec_MB.so.absent")
            yield
    finally:
        bulk.look.cache_clear()


class Tunnel:
    """`client` and `gateway`: further arguments of Driven; `network`: instead of direct links A and B."""

    def __init__(
        self,
        lab: Lab,
        client: dict[str, Any] | None = None,
        gateway: dict[str, Any] | None = None,
        network: Network[Any] | None = None,
    ) -> None:
        self.network: Network[Any] = network or direct_links(lab, ("A", "B"))
        cpus = sorted(os.sched_getaffinity(0))
        self.client = Driven(self.network.client, gateway=False, cpu=cpus[0], **client or {})
        self.gateway = Driven(self.network.gateway, gateway=True, cpu=cpus[-1], **gateway or {})

    def open(self, *, outer_ipv6: bool = False, suite: int = 1, behind: tuple[str, ...] = ()) -> None:
        self.client.start(CLIENT_4, CLIENT_6, CLIENT_PORT)
        self.gateway.start(GATEWAY_4, GATEWAY_6, GATEWAY_PORT)
        self.client.add(self.client_path(0, "A", outer_ipv6), suite)
        self.gateway.add(self.gateway_path(0, "A", outer_ipv6), suite, behind)

    @staticmethod
    def client_path(index: int, link: str, outer_ipv6: bool = False) -> commands.Binding:
        gateway = outer(link, 1, outer_ipv6)
        local = commands.Endpoint(to_bytes(outer(link, 2, outer_ipv6)), CLIENT_PORT)
        return commands.Binding(index, 0, local, commands.Endpoint(to_bytes(gateway), GATEWAY_PORT))

    @staticmethod
    def gateway_path(index: int, link: str, outer_ipv6: bool = False) -> commands.Binding:
        client = outer(link, 2, outer_ipv6)
        local = commands.Endpoint(ANY, GATEWAY_PORT)
        return commands.Binding(index, 0, local, commands.Endpoint(to_bytes(client), CLIENT_PORT))


def outer(link: str, host: int, ipv6: bool) -> str:
    number = "AB".index(link) + 1
    return f"fd00:201:{number}::{host}" if ipv6 else f"10.201.{number}.{host}"


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
