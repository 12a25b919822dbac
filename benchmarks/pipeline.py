"""CPU time of a worker's own code per superpacket and per small packet; fakes stand for TUN and UDP.

    .venv/bin/python benchmarks/pipeline.py [--rounds N] [--json FILE]

Process time, the least of several rounds, so that it can be read on a busy machine. The AEAD's part is measured by
itself on the same layout; what remains is Python.
"""

import argparse
import json
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measure import data_plane

from jvpn.protocol.constants import TUN_MTU
from jvpn.protocol.offload import longest_superpacket
from workers.bulk import find
from workers.commands import AddSession, InstalledIndex, PhaseKeys
from workers.decrypt import Decryptor
from workers.encrypt import Encryptor
from workers.fakes import FakeNetwork, FakeWorker
from workers.udp import SOL_UDP, UDP_GRO, UDP_SEGMENT, pktinfo

CLIENT, GATEWAY = ("::ffff:192.0.2.2", 5001), ("::ffff:192.0.2.1", 5000)
INNER_CLIENT, INNER_GATEWAY = bytes((10, 8, 0, 2)), bytes((10, 8, 0, 1))
HEADERS = 52
SLICE = TUN_MTU - HEADERS
#: The kernel keeps this much of gso_max_size for headers (MAX_TCP_HEADER).
RESERVE = 321
PER_ROUND = 64

Run = tuple[bytes, int]


def superpacket() -> bytes:
    """The longest that the kernel hands out, TCP with timestamps, virtio_net_hdr in front."""
    payload = (longest_superpacket(TUN_MTU) - RESERVE) // SLICE * SLICE
    ip = (
        struct.pack(">BBHHHBBH", 0x45, 0, HEADERS + payload, 1, 0x4000, 64, 6, 0)
        + INNER_CLIENT
        + INNER_GATEWAY
    )
    tcp = struct.pack(">HHIIBBHHH", 1000, 2000, 1, 1, 0x80, 0x10, 500, 0, 0) + bytes(12)
    return struct.pack("=BBHHHH", 1, 1, HEADERS, SLICE, 20, 16) + ip + tcp + bytes(payload)


def datagram(length: int) -> bytes:
    """A UDP packet with `length` bytes, its checksum left to the device."""
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 28 + length, 1, 0x4000, 64, 17, 0) + INNER_CLIENT + INNER_GATEWAY
    return (
        struct.pack("=BBHHHH", 1, 0, 0, 0, 20, 6)
        + ip
        + struct.pack(">HHHH", 1, 2, 8 + length, 0)
        + bytes(length)
    )


class Repeating:
    """A TUN with `left` times the same packet to read; only its front is copied, the rest lies there already."""

    uso = True

    def __init__(self, packet: bytes) -> None:
        self._front, self._size, self.left = packet[: 10 + HEADERS], len(packet), 0

    def readv(self, buffers: Sequence[memoryview]) -> int:
        if not self.left:
            raise BlockingIOError
        self.left -= 1
        buffers[0][: len(self._front)] = self._front
        return self._size

    def writev(self, _buffers: Sequence[Any]) -> int:
        return 0


class Wire:
    """A socket that keeps what is sent (when `keep`), and gives it out again."""

    def __init__(self) -> None:
        self.keep, self.runs = False, deque[Run]()

    def getsockname(self) -> tuple[str, int]:
        return CLIENT

    def sendmsg(self, buffers: Sequence[Any], ancillary: Sequence[Any], _flags: int, _address: Any, /) -> int:
        if self.keep:
            sizes = [struct.unpack("=H", value)[0] for level, kind, value in ancillary if kind == UDP_SEGMENT]
            self.runs.append((bytes(buffers[0]), sizes[0] if sizes else len(buffers[0])))
        return 0

    def recvmsg_into(self, buffers: Sequence[Any], _size: int, /) -> tuple[int, list[Any], int, Any]:
        if not self.runs:
            raise BlockingIOError
        data, segment = self.runs.popleft()
        buffers[0][: len(data)] = data
        ancillary = pktinfo(bytes(15) + b"\1")
        if segment < len(data):
            ancillary.append((SOL_UDP, UDP_GRO, struct.pack("=i", segment)))
        return len(data), ancillary, 0, (*CLIENT, 0, 0)


class Pair:
    """The encrypting and the decrypting worker of one session."""

    def __init__(self, suite: int) -> None:
        network = FakeNetwork()
        self.client = FakeWorker(network, CLIENT, gateway=False, bulk=find())
        self.gateway = FakeWorker(network, GATEWAY, gateway=True, bulk=find())
        ids = [InstalledIndex(n, bytes((n,)) * 8) for n in range(3)]
        for worker, keys, inner, remote in (
            (self.client, (b"u" * 32, b"d" * 32), ["0.0.0.0/0"], GATEWAY),
            (self.gateway, (b"d" * 32, b"u" * 32), ["10.8.0.2/32"], CLIENT),
        ):
            phases = [PhaseKeys(0, *keys)]
            path = worker.path(0, remote)
            worker.pipelines.add(
                AddSession(
                    1, 0, b"s" * 16, suite, 0, phases, inner, inner, ids, path,
                    resend_window_ms=500, resend_bytes=4 << 20,
                ),
                1,
            )  # fmt: skip
        assert self.client.pipelines.encryptor is not None
        assert self.gateway.pipelines.decryptor is not None
        self.encryptor: Encryptor = self.client.pipelines.encryptor
        self.decryptor: Decryptor = self.gateway.pipelines.decryptor
        self.wire = Wire()

    def prepare(self, packet: bytes) -> Repeating:
        """Let both ends see the shape once, then take the fakes that cost nothing."""
        for _ in range(2):
            self.client.tun.pending.extend([packet] * 2)
            self.client.turn()
            self.gateway.turn()
        tun = Repeating(packet)
        self.encryptor._tun = tun
        self.client.udp.opened = self.gateway.udp.opened = self.wire
        self.decryptor._delivery._tun = tun
        return tun


def least(rounds: int, each: Callable[[], None], count: int) -> float:
    """Microseconds of process time per one of `count`."""
    best = float("inf")
    for _ in range(rounds):
        before = time.process_time_ns()
        each()
        best = min(best, time.process_time_ns() - before)
    return best / count / 1000


def cost(suite: int, packet: bytes, at_once: int, rounds: int) -> dict[str, float]:
    """Microseconds per packet of sealing and opening, `at_once` packets per turn of the loop."""
    pair = Pair(suite)
    tun = pair.prepare(packet)

    def seal() -> None:
        for _ in range(PER_ROUND):
            tun.left = at_once
            pair.encryptor.turn(time.monotonic_ns())

    sealing = least(rounds, seal, PER_ROUND * at_once)
    opening = float("inf")
    for _ in range(rounds):
        pair.wire.keep = True
        seal()
        pair.wire.keep = False

        def open_all() -> None:
            while pair.wire.runs:
                pair.decryptor.turn(pair.gateway.udp, 1)

        opening = min(opening, least(1, open_all, PER_ROUND * at_once))
    return {"seal_us": round(sealing, 2), "open_us": round(opening, 2)}


def aead(suite: int, packet: bytes, rounds: int) -> float:
    """Microseconds that the AEAD's calls alone take for one superpacket."""
    pair = Pair(suite)
    pair.prepare(packet)
    layout = pair.encryptor._layout
    seal = pair.client.table.by_record[0].phase.sealer()
    full = (len(packet) - 10 - HEADERS) // SLICE

    def once() -> None:
        for _ in range(PER_ROUND):
            deque(map(seal, layout.nonces, layout.plaintexts[:full], layout.aads, layout.sealed), maxlen=0)

    return round(least(rounds, once, PER_ROUND), 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    os.nice(0)
    large = superpacket()
    found = data_plane()
    found |= {"superpacket_bytes": len(large) - 10, "segments": -(-(len(large) - 62) // SLICE)}
    for suite in (1, 2):
        found[f"suite_{suite}"] = {
            "superpacket": cost(suite, large, 1, given.rounds),
            "aead_of_a_superpacket_us": aead(suite, large, given.rounds),
            "udp_200_alone": cost(suite, datagram(200), 1, given.rounds),
            "udp_200_in_trains_of_32": cost(suite, datagram(200), 32, given.rounds),
        }
    print(json.dumps(found, indent=1))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
