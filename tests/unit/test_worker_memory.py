"""A worker's memory does not grow: not with packets, not with sizes that change, not with sessions that come and go."""

import gc
import os
import struct
import sys
from pathlib import Path

import pytest

from jvpn.protocol.offload import PARTIAL, VIRTIO, Segmentation
from workers import bulk
from workers.commands import AddSession, InstalledIndex, PhaseKeys
from workers.counters import Counter
from workers.fakes import FakeNetwork, FakeWorker
from workers.layouts import LAYOUTS

CLIENT, GATEWAY = ("::ffff:192.0.2.2", 5001), ("::ffff:192.0.2.1", 5000)
STEP_NS = 1_000_000
#: 64 segments each; more sizes than layouts are kept.
SIZES = range(256, 256 + 4 * 3 * LAYOUTS // 2, 4)
#: What grows with packets or sessions has grown enough by then to be seen; whoever wants it more exactly sets more.
PACKETS = int(os.environ.get("JVPN_PACKETS", "200000"))
#: Pages come and go: far less than 16 bytes a packet, or 64 KiB a session.
GROWTH_BYTES = max(2 << 20, 8 * PACKETS)
#: Objects of Python: with each session that ends, digests of the keys that it may not use again, up to a bound.
GROWTH_BLOCKS_PER_SESSION = 8


class Tunnel:
    """A client and a gateway over fakes, with one session at a time; 50 ms of what was sent are kept.

    The client seals and opens by libipsec-mb where there is one, the gateway without; sessions take turns in suites.
    """

    def __init__(self) -> None:
        self.network = FakeNetwork()
        self.client = FakeWorker(self.network, CLIENT, gateway=False, bulk=bulk.find())
        self.gateway = FakeWorker(self.network, GATEWAY, gateway=True)
        self.now_ns = STEP_NS
        self.sessions = 0
        self.packets = 0

    def new_session(self) -> None:
        number = self.sessions = self.sessions + 1
        up, down = struct.pack(">Q24x", number), struct.pack(">Q24s", number, b"down")
        ids = [InstalledIndex(index, struct.pack(">II", number, index)) for index in range(6)]
        for worker, peer in ((self.client, GATEWAY), (self.gateway, CLIENT)):
            keys = [PhaseKeys(0, up, down) if worker is self.client else PhaseKeys(0, down, up)]
            inner = ["0.0.0.0/0"] if worker is self.client else ["10.8.0.2/32"]
            worker.table.remove(0)
            worker.page.clear_record(0)
            worker.pipelines.add(
                AddSession(
                    1,
                    0,
                    struct.pack(">16s", up),
                    1 + number % 2,
                    0,
                    keys,
                    inner,
                    inner,
                    ids,
                    worker.path(0, peer),
                    50,
                    1 << 20,
                ),
                self.now_ns,
            )

    def superpackets(self, size: int) -> None:
        """One each way, and a small packet."""
        for worker, addresses in (
            (self.client, bytes((10, 8, 0, 2, 10, 8, 0, 1))),
            (self.gateway, bytes((10, 8, 0, 1, 10, 8, 0, 2))),
        ):
            count = min(64, 65_000 // size)
            payload = bytes(size * count)
            tcp = struct.pack(">HHIIBBHHH", 1, 2, self.packets, 0, 5 << 4, 16, 0, 0, 0)
            ip = struct.pack(">BBHHHBBH", 0x45, 0, 40 + len(payload), 7, 0, 64, 6, 0) + addresses
            front = VIRTIO.pack(PARTIAL, Segmentation.TCPV4, 40, size, 20, 16)
            small = struct.pack(">BBHHHBBH", 0x45, 0, 28, 7, 0, 64, 99, 0) + addresses + bytes(8)
            worker.tun.pending += [front + ip + tcp + payload, bytes(10) + small]
            self.packets += count + 1
        self.now_ns += STEP_NS
        for worker in (self.client, self.gateway, self.client):
            worker.turn(self.now_ns)
        for worker in (self.client, self.gateway):
            worker.tun.written.clear()
        self.network.sent.clear()

    def round(self) -> None:
        """A session's life: every size once."""
        self.new_session()
        for size in SIZES:
            self.superpackets(size)


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.timeout(600)  # for those who set a million: half a minute of CPU, and more on a busy machine
def test_packets_and_sessions_leave_nothing_behind() -> None:
    tunnel = Tunnel()
    # Until what is kept has reached its bounds.
    while tunnel.packets < PACKETS // 4:
        tunnel.round()
    resident, blocks = resident_bytes(), sys.getallocatedblocks()
    packets, sessions = tunnel.packets, tunnel.sessions
    while tunnel.packets - packets < PACKETS:
        tunnel.round()
    assert resident_bytes() - resident < GROWTH_BYTES
    assert sys.getallocatedblocks() - blocks < GROWTH_BLOCKS_PER_SESSION * (tunnel.sessions - sessions)
    assert tunnel.sessions - sessions > PACKETS // 10_000
    for worker in (tunnel.client, tunnel.gateway):
        assert len(worker.decryptor.layouts) == LAYOUTS
        assert worker.counters[Counter.DELIVERED_PACKETS] == tunnel.packets // 2
        assert worker.dropped() == {}
