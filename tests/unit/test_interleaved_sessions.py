"""Small packets of many sessions, read in any order: each session's share sends, in their order, and none is lost."""

import random
import struct

import pytest

from jvpn.protocol.keys import nonce
from jvpn.protocol.offload import PARTIAL, VIRTIO, Segmentation
from jvpn.protocol.suites import suite
from workers.commands import AddSession, InstalledIndex, PhaseKeys
from workers.counters import Counter
from workers.fakes import FakeNetwork, FakeWorker
from workers.gather import Gathering
from workers.udp import Address

SESSIONS = range(1, 9)
SUITES = {number: 1 + number % 2 for number in SESSIONS}


def client(number: int) -> Address:
    return f"::ffff:192.0.2.{number}", 5001


def key(number: int) -> bytes:
    return bytes((number,)) * 32


class Gateway(FakeWorker):
    """A session for each of SESSIONS, both suites among them; `sends` are (destination, datagrams) as they went."""

    def __init__(self) -> None:
        super().__init__(FakeNetwork(), ("::ffff:192.0.2.200", 5000), gateway=True)
        for number in SESSIONS:
            keys = [PhaseKeys(0, key(number), key(number + 100))]
            inner, ids = [f"10.8.0.{number}/32"], [InstalledIndex(0, bytes((number,)) * 8)]
            session_id, binding = bytes((number,)) * 16, self.path(0, client(number))
            self.table.add(
                AddSession(1, number - 1, session_id, SUITES[number], 0, keys, inner, inner, ids, binding)
            )
        self._count = 0

    def read(self, session: int, size: int = 50, segments: int = 0) -> int:
        """A packet to `session`, or a superpacket of TCP, comes to the TUN; returns the number that it carries."""
        self._count += 1
        body = struct.pack(">I", self._count) + bytes(size - 4)
        if segments:
            tcp = struct.pack(">HHIIBBHHH", 1, 2, 0, 0, 5 << 4, 16, 0, 0, 0)
            body = tcp + body * segments
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 7, 0, 64, 6 if segments else 99, 0)
        front = VIRTIO.pack(PARTIAL, Segmentation.TCPV4, 40, size, 20, 16) if segments else bytes(10)
        self.tun.pending.append(front + head + bytes((10, 8, 0, 250, 10, 8, 0, session)) + body)
        return self._count

    def sent(self, session: int) -> list[int]:
        """The numbers in what `session` was sent, a superpacket's in each of its segments."""
        aead = suite(SUITES[session]).aead(key(session))
        plain = [
            aead.decrypt(nonce(0, int.from_bytes(sealed[12:20], "big")), sealed[20:], sealed[:20])
            for _, to, sealed in self.network.sent
            if to == client(session)
        ]
        return [int.from_bytes(body[48:52] if body[17] == 6 else body[28:32], "big") for body in plain]


def test_each_session_has_its_own_sends_however_the_packets_are_interleaved() -> None:
    gateway = Gateway()
    expected: dict[int, list[int]] = {number: [] for number in SESSIONS}
    for _ in range(8):
        for number in SESSIONS:
            expected[number].append(gateway.read(number))
    gateway.turn()
    assert {number: gateway.sent(number) for number in SESSIONS} == expected
    assert gateway.counters[Counter.UDP_WRITES] == len(SESSIONS)
    # And nobody waits for a batch to fill.
    one = gateway.read(3)
    gateway.turn()
    assert gateway.sent(3) == [*expected[3], one]


def test_a_superpacket_stays_behind_what_its_session_was_sent_before() -> None:
    gateway = Gateway()
    first, other = gateway.read(1), gateway.read(2)
    long = gateway.read(1, size=300, segments=5)
    last, another = gateway.read(1), gateway.read(2)
    gateway.turn()
    assert gateway.sent(1) == [first, *[long] * 5, last]
    assert gateway.sent(2) == [other, another]
    # The other session's two share a send all the same.
    assert gateway.counters[Counter.UDP_WRITES] == 4


@pytest.mark.parametrize("seed", range(5))
def test_more_sessions_than_batches_lose_nothing_and_keep_their_order(seed: int) -> None:
    gateway, chance = Gateway(), random.Random(seed)
    gateway.encryptor._small = Gathering(gateway.counters, at_once=3)
    expected: dict[int, list[int]] = {number: [] for number in SESSIONS}
    for _ in range(500):
        session, size = chance.choice(SESSIONS), chance.choice((40, 40, 40, 41, 700, 1500))
        number = gateway.read(session, size, segments=chance.choice((0, 0, 0, 3)) if size == 700 else 0)
        expected[session] += [number] * (3 if size == 700 and gateway.tun.pending[-1][1] else 1)
    gateway.turn()
    assert {number: gateway.sent(number) for number in SESSIONS} == expected
    assert gateway.dropped() == {}
