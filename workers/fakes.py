"""In-memory TUN and network, so that whole pipelines run in a test without root, kernel or waiting.

They behave like the kernel where it matters: a TUN read scatters one packet, a UDP_SEGMENT send arrives as one GRO run.
"""

import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from jvpn.protocol.constants import MAX_SEGMENTS, MAX_UDP_PAYLOAD, TUN_MTU
from workers.bulk import Bulk
from workers.commands import Binding, Endpoint, Report
from workers.counters import Counter
from workers.page import Page
from workers.pipelines import Pipelines
from workers.table import SessionTable
from workers.udp import SOL_UDP, UDP_GRO, UDP_SEGMENT, Address, Ancillary, UdpSocket, pktinfo

Buffers = Sequence[bytes | bytearray | memoryview]


class FakeTun:
    """`pending`: superpackets to read. `written`: what was written, one item per write.

    `failure`: errno that writes fail with, 0 for none.
    """

    def __init__(self, *, uso: bool = True) -> None:
        self.uso = uso
        self.pending: deque[bytes] = deque()
        self.written: list[bytes] = []
        self.failure = 0

    def readv(self, buffers: Sequence[memoryview]) -> int:
        if not self.pending:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        packet = self.pending.popleft()
        at = 0
        for buffer in buffers:
            piece = packet[at : at + len(buffer)]
            buffer[: len(piece)] = piece
            at += len(piece)
        return at

    def writev(self, buffers: Buffers) -> int:
        if self.failure:
            raise OSError(self.failure, os.strerror(self.failure))
        self.written.append(b"".join(buffers))
        return len(self.written[-1])


class FakeSocket:
    """A bound UDP socket. Sends go to `network` (FakeNetwork.carry) as runs; `arrived` are runs to receive.

    `failure`: errno that sends fail with, 0 for none.
    """

    def __init__(self, network: "FakeNetwork", address: Address, local: bytes) -> None:
        self.address = address
        self.local = local
        self.arrived: deque[tuple[bytes, int, Address]] = deque()
        self.failure = 0
        self._network = network

    def getsockname(self) -> Address:
        return self.address

    def sendmsg(
        self, buffers: Sequence[Any], ancdata: Sequence[Ancillary], flags: int, address: Address, /
    ) -> int:
        if self.failure:
            raise OSError(self.failure, os.strerror(self.failure))
        data = b"".join(buffers)
        segment = len(data)
        for level, kind, value in ancdata:
            if (level, kind) == (SOL_UDP, UDP_SEGMENT):
                (segment,) = struct.unpack("=H", value)
        self._network.carry(data, segment, self.address, address)
        return len(data)

    def recvmsg_into(
        self, buffers: Sequence[Any], ancbufsize: int, /
    ) -> tuple[int, list[Ancillary], int, Any]:
        if not self.arrived:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        data, segment, source = self.arrived.popleft()
        buffers[0][: len(data)] = data
        ancillary = pktinfo(self.local)
        if segment < len(data):
            ancillary.append((SOL_UDP, UDP_GRO, struct.pack("=i", segment)))
        return len(data), ancillary, 0, (*source, 0, 0)


class FakeNetwork:
    """Joins FakeSockets by address. `sent` is every datagram (source, destination, bytes) in order.

    `impair` may change what a run becomes: it gets the run's datagrams and returns the runs that arrive.
    """

    def __init__(self) -> None:
        self.sockets: dict[Address, FakeSocket] = {}
        self.sent: list[tuple[Address, Address, bytes]] = []
        self.impair: Callable[[list[bytes]], list[list[bytes]]] = lambda datagrams: [datagrams]

    def socket(self, address: Address, local: bytes) -> FakeSocket:
        made = self.sockets[address] = FakeSocket(self, address, local)
        return made

    def carry(self, data: bytes, segment: int, source: Address, destination: Address) -> None:
        datagrams = [data[at : at + segment] for at in range(0, len(data), segment)]
        self.sent.extend((source, destination, datagram) for datagram in datagrams)
        for run in self.impair(datagrams):
            self.deliver(run, source, destination)

    def deliver(self, datagrams: list[bytes], source: Address, destination: Address) -> None:
        """Make datagrams arrive, joined as GRO joins: equal sizes, and one shorter at the end."""
        there = self.sockets.get(destination)
        run: list[bytes] = []
        for datagram in datagrams:
            if run and (
                len(run[-1]) < len(run[0])
                or len(datagram) > len(run[0])
                or len(run) == MAX_SEGMENTS
                or len(run) * len(run[0]) + len(datagram) > MAX_UDP_PAYLOAD
            ):
                self._arrive(there, run, source)
                run = []
            run.append(datagram)
        self._arrive(there, run, source)

    @staticmethod
    def _arrive(there: FakeSocket | None, run: list[bytes], source: Address) -> None:
        if there is not None and run:
            there.arrived.append((b"".join(run), len(run[0]), source))


class FakeWorker:
    """Both pipelines of a worker over fakes: one session table, one TUN, one socket (number 0) at `address`.

    `turn` lets it do everything there is to do; `reports` is what it told its supervisor.
    """

    def __init__(
        self,
        network: FakeNetwork,
        address: Address,
        *,
        gateway: bool,
        uso: bool = True,
        bulk: Bulk | None = None,
    ) -> None:
        descriptor = Page.create(8, b"c" * 32)
        self.page = Page(descriptor)
        os.close(descriptor)
        self.network = network
        self.address = address
        self.local = socket.inet_pton(socket.AF_INET6, address[0])
        self.tun = FakeTun(uso=uso)
        self.socket = network.socket(address, self.local)
        self.table = SessionTable(self.page, gateway=gateway, bulk=bulk)
        self.udp = self.table.sockets[0] = UdpSocket(0, self.socket, segment=True)
        self.counters = self.page.counters(2)
        self.reports: list[Report] = []
        self.pipelines = Pipelines(self.table, self.tun, TUN_MTU, self._report, self.counters)
        assert self.pipelines.encryptor is not None
        assert self.pipelines.decryptor is not None
        self.answers = self.pipelines.answers
        self.encryptor = self.pipelines.encryptor
        self.decryptor = self.pipelines.decryptor

    def path(self, index: int, remote: Address) -> Binding:
        """The binding from this worker's socket to `remote`."""
        there = socket.inet_pton(socket.AF_INET6, remote[0])
        return Binding(index, 0, Endpoint(self.local, self.address[1]), Endpoint(there, remote[1]))

    def turn(self, now_ns: int = 1) -> None:
        while self.tun.pending:
            self.encryptor.turn(now_ns)
        while self.socket.arrived:
            self.decryptor.turn(self.udp, now_ns)
        self.pipelines.tick(now_ns)

    def dropped(self) -> dict[str, int]:
        """Every reason to drop that has counted anything."""
        return {c.name: self.counters[c] for c in Counter if c >= Counter.NO_SESSION and self.counters[c]}

    def _report(self, report: Report) -> bool:
        self.reports.append(report)
        return True
