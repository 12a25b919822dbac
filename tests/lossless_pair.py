"""A client's and a gateway's pipelines over a network that loses what the test wants, and their reattach by hand."""

import struct
from collections.abc import Callable
from typing import Any

from workers.commands import AddSession, Binding, IndexReport, InstalledIndex, PhaseKeys, Rebind
from workers.fakes import FakeNetwork, FakeWorker

CLIENT, GATEWAY = ("::ffff:192.0.2.2", 5001), ("::ffff:192.0.2.1", 5000)
MS = 1_000_000
START_MS = 10_000
IDS = [InstalledIndex(n, bytes((n + 1,)) * 8) for n in range(6)]
RECORD = 0


def packet(up: bool, number: int, size: int = 100) -> bytes:
    """An IPv4 packet of `size` bytes that says its number."""
    ends = bytes((10, 8, 0, 2, 10, 8, 0, 1)) if up else bytes((10, 8, 0, 1, 10, 8, 0, 2))
    head = struct.pack(">BBHHHBBH", 0x45, 0, size, 7, 0, 64, 99, 0) + ends
    return head + number.to_bytes(4, "big") + bytes(size - 24)


def superpacket(up: bool, number: int, segments: int) -> bytes:
    """A UDP superpacket of `segments` × 1 000 bytes, with virtio_net_hdr; its payload begins with its number."""
    payload = number.to_bytes(4, "big") + bytes(segments * 1000 - 4)
    ends = packet(up, 0)[12:20]
    head = struct.pack(">BBHHHBBH", 0x45, 0, 28 + len(payload), 7, 0, 64, 17, 0) + ends
    udp = struct.pack(">HHHH", 1, 2, 8 + len(payload), 0)
    return struct.pack("=BBHHHH", 1, 5, 28, 1000, 20, 6) + head + udp + payload


class End(FakeWorker):
    """One end, with a session bound to its peer on index 0; its TUN is what users see."""

    def __init__(self, network: FakeNetwork, *, gateway: bool, **keep: Any) -> None:
        super().__init__(network, GATEWAY if gateway else CLIENT, gateway=gateway)
        self.up = not gateway
        self.peer = CLIENT if gateway else GATEWAY
        keys = PhaseKeys(0, b"d" * 32, b"u" * 32) if gateway else PhaseKeys(0, b"u" * 32, b"d" * 32)
        inner = ["10.8.0.2/32"] if gateway else ["0.0.0.0/0"]
        self.added = AddSession(1, RECORD, b"s" * 16, 1, 0, [keys], inner, inner, IDS, self.on(0), **keep)
        self.pipelines.add(self.added, 0)
        self.session = self.table.by_record[RECORD]

    def on(self, index: int) -> Binding:
        return self.path(index, self.peer)

    def rebind(self, now_ms: int, binding: Binding | None = None, **more: Any) -> list[IndexReport]:
        accept = [] if self.table.gateway else [0, 1, 2, 3, 4, 5]
        command = Rebind(2, RECORD, binding, None, 0, accept, **more)
        return self.pipelines.rebind(command, now_ms * MS)

    def numbers(self) -> list[int]:
        """Numbers of the packets that reached the TUN, in their order."""
        return [int.from_bytes(w[30:34] if w[19] == 99 else w[38:42], "big") for w in self.tun.written]

    def send(self, now_ms: int, *numbers: int, size: int = 100) -> None:
        """Users send these packets now."""
        self.tun.pending.extend(bytes(10) + packet(self.up, number, size) for number in numbers)
        self.turn(now_ms * MS)


class LossyPair:
    """`impair` says what arrives of the datagrams of one send. `keep` are AddSession's resend fields."""

    def __init__(self, **keep: Any) -> None:
        self.network = FakeNetwork()
        self.client = End(self.network, gateway=False, **keep)
        self.gateway = End(self.network, gateway=True, **keep)

    def impair(self, what: Callable[[list[bytes]], list[list[bytes]]]) -> None:
        self.network.impair = what

    def dead(self) -> None:
        self.impair(lambda datagrams: [])

    def alive(self) -> None:
        self.impair(lambda datagrams: [datagrams])

    def settle(self, now_ms: int) -> None:
        for _ in range(8):
            self.client.turn(now_ms * MS)
            self.gateway.turn(now_ms * MS)

    def lose(self, now_ms: int) -> list[IndexReport]:
        """The client finds its path dead; returns what it reports."""
        return self.client.rebind(now_ms, report=True)

    def bind_gateway(self, now_ms: int, index: int, reports: list[IndexReport] | None) -> list[IndexReport]:
        return self.gateway.rebind(now_ms, self.gateway.on(index), resend=reports, report=True)

    def reattach(self, now_ms: int, index: int, *, lost: bool = True) -> None:
        """Both ends bind `index` over a network that works again."""
        self.alive()
        ours = self.lose(now_ms)
        theirs = self.bind_gateway(now_ms, index, ours if lost else None)
        self.client.rebind(now_ms, self.client.on(index), resend=theirs if lost else None)
        self.settle(now_ms)
