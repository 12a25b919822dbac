"""Two sessions on one worker, one floods: what the other sends, modestly, arrives. Judged by counts, on fakes whose
queues are as short as the kernel's."""

import struct
from collections.abc import Callable

import pytest

from jvpn.protocol.constants import PacketType
from jvpn.protocol.keys import nonce
from jvpn.protocol.offload import PARTIAL, VIRTIO, Segmentation
from jvpn.protocol.suites import suite
from jvpn.protocol.wire import Header
from workers.commands import AddSession, InstalledIndex, PhaseKeys
from workers.counters import Counter
from workers.fair import QUEUE_BYTES
from workers.fakes import FakeNetwork, FakeWorker
from workers.udp import Address

GATEWAY = ("::ffff:192.0.2.1", 5000)
FLOOD, MODEST = 2, 3
#: A TUN's queue holds so many packets (tx_queue_len), a socket's buffer is taken to.
ROOM = 500
ROUNDS = 300
STEP_NS = 1_000_000


def client(number: int) -> Address:
    return f"::ffff:192.0.2.{number}", 5001


def key(number: int, up: bool) -> bytes:
    return bytes((number + (0x80 if up else 0),)) * 32


def steering_id(number: int) -> bytes:
    return bytes((number,)) * 8


class Gateway(FakeWorker):
    """With a session for each of `numbers`; `lost` is what did not fit the kernel's queues, by session."""

    def __init__(self, *numbers: int) -> None:
        super().__init__(FakeNetwork(), GATEWAY, gateway=True)
        self.now_ns = STEP_NS
        self.next: dict[int, int] = dict.fromkeys(numbers, 0)
        for number in numbers:
            inner = [f"10.8.0.{number}/32"]
            keys = [PhaseKeys(0, key(number, False), key(number, True))]
            ids = [InstalledIndex(0, steering_id(number))]
            binding = self.path(0, client(number))
            self.table.add(
                AddSession(1, number, bytes((number,)) * 16, 1, 0, keys, inner, inner, ids, binding)
            )

    def number(self, session: int) -> int:
        self.next[session] += 1
        return self.next[session]

    # From the TUN

    def read(self, session: int, size: int = 0) -> None:
        """A packet to `session`, or a superpacket of `size` bytes, comes to the TUN's queue."""
        body = self.number(session).to_bytes(8, "big")
        if size:
            tcp = struct.pack(">HHIIBBHHH", 1, 2, 0, 0, 5 << 4, 16, 0, 0, 0)
            body = tcp + body + bytes(size)
        protocol = 6 if size else 99
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 7, 0, 64, protocol, 0)
        packet = head + bytes((10, 8, 0, 1, 10, 8, 0, session)) + body
        front = VIRTIO.pack(PARTIAL, Segmentation.TCPV4, 40, 1348, 20, 16) if size else bytes(10)
        if len(self.tun.pending) < ROOM:
            self.tun.pending.append(front + packet)

    def sent(self, session: int) -> list[int]:
        """The numbers of the packets that `session` was sent, in their order."""
        aead = suite(1).aead(key(session, False))
        plain = [
            aead.decrypt(nonce(0, int.from_bytes(sealed[12:20], "big")), sealed[20:], sealed[:20])
            for _, to, sealed in self.network.sent
            if to == client(session)
        ]
        return [int.from_bytes(body[28:36], "big") for body in plain]

    # From the network

    def receive(self, session: int, genuine: bool = True) -> None:
        """A datagram of `session`, or of nobody's from a stranger, comes to the socket."""
        count = self.number(session)
        head = struct.pack(">BBHHHBBH", 0x45, 0, 28, 7, 0, 64, 99, 0)
        packet = head + bytes((10, 8, 0, session, 10, 8, 0, 1)) + count.to_bytes(8, "big")
        header = Header(PacketType.DATA, steering_id(session if genuine else 99), count, 0).encode()
        sealed = suite(1).aead(key(session, True)).encrypt(nonce(0, count), bytes(8) + packet, header)
        # GRO does not join what comes alone.
        if len(self.socket.arrived) < ROOM:
            self.socket.arrived.append((header + sealed, len(header + sealed), client(session)))

    def delivered(self, session: int) -> list[int]:
        written = [packet[10:] for packet in self.tun.written]
        return [int.from_bytes(packet[20:28], "big") for packet in written if packet[15] == session]

    # Turns

    def one_turn(self) -> None:
        self.now_ns += STEP_NS
        self.pipelines.tick(self.now_ns)
        if self.tun.pending:
            self.encryptor.turn(self.now_ns)
        if self.socket.arrived:
            self.decryptor.turn(self.udp, self.now_ns)

    def drain(self) -> None:
        while self.tun.pending or self.socket.arrived or self.pipelines.timeout_s() == 0.0:
            self.one_turn()

    def flood(self, flooding: Callable[[], None], modest: Callable[[], None], times: int) -> None:
        for _ in range(ROUNDS):
            for at in range(times):
                flooding()
                if at % (times // 2) == 7:
                    modest()
            self.one_turn()
        self.drain()


@pytest.mark.parametrize(("size", "times"), [(0, 230), (40_000, 40)], ids=["packets", "superpackets"])
def test_a_flood_to_one_session_does_not_push_out_what_another_is_sent(size: int, times: int) -> None:
    worker = Gateway(FLOOD, MODEST)
    worker.flood(lambda: worker.read(FLOOD, size), lambda: worker.read(MODEST), times)
    offered, sent = worker.next[MODEST], worker.sent(MODEST)
    assert offered == 2 * ROUNDS
    assert sent == sorted(set(sent))
    # What is lost is lost before the flood is recognised as one.
    assert len(sent) > 0.95 * offered
    flooded = worker.sent(FLOOD) if not size else []
    assert flooded == sorted(set(flooded))
    assert worker.counters[Counter.SENT_CROWDED_OUT] > ROUNDS
    assert worker.counters[Counter.SENT_BYTES] > ROUNDS * 32 * 28
    assert worker.dropped().keys() == {"SENT_CROWDED_OUT"}


@pytest.mark.parametrize("genuine", [True, False], ids=["session", "strangers"])
def test_a_flood_from_one_source_does_not_push_out_what_another_sends(genuine: bool) -> None:
    worker = Gateway(FLOOD, MODEST)
    worker.flood(lambda: worker.receive(FLOOD, genuine), lambda: worker.receive(MODEST), 230)
    delivered = worker.delivered(MODEST)
    assert delivered == sorted(set(delivered))
    assert len(delivered) > 0.95 * worker.next[MODEST]
    assert worker.counters[Counter.RECEIVED_CROWDED_OUT] > ROUNDS
    flooded = worker.delivered(FLOOD)
    assert flooded == sorted(set(flooded))
    assert bool(flooded) is genuine
    assert worker.dropped().keys() <= {"RECEIVED_CROWDED_OUT", "UNKNOWN_ID"}


def test_after_a_flood_everything_is_as_before() -> None:
    worker = Gateway(FLOOD, MODEST)
    worker.flood(lambda: worker.read(FLOOD), lambda: worker.read(MODEST), 150)
    for _ in range(100):
        worker.read(FLOOD)
        worker.read(MODEST)
        worker.one_turn()
    assert not worker.encryptor.crowd.active
    assert worker.sent(FLOOD)[-1] == worker.next[FLOOD]
    assert worker.sent(MODEST)[-1] == worker.next[MODEST]


def test_a_session_alone_is_never_held_back() -> None:
    worker = Gateway(FLOOD, MODEST)
    for _ in range(ROUNDS):
        for _ in range(150):
            worker.read(FLOOD)
            worker.receive(FLOOD)
        worker.one_turn()
        assert not worker.encryptor.crowd.active
        assert not worker.decryptor.crowd.active
    assert worker.dropped() == {}


def test_sessions_that_send_alike_are_not_held_back() -> None:
    worker = Gateway(FLOOD, MODEST)
    for _ in range(ROUNDS):
        for number in range(150):
            worker.read((FLOOD, MODEST)[number % 2])
        worker.one_turn()
    assert worker.dropped() == {}


def test_what_waits_since_a_flood_is_bounded() -> None:
    worker = Gateway(FLOOD, MODEST)
    crowd = worker.encryptor.crowd
    session = worker.table.by_record[FLOOD]
    other = worker.table.by_record[MODEST]
    while crowd.has_room(session, 60_000):
        crowd.add(session, bytes(60_000), 8, 60_000)
    while crowd.has_room(other, 60_000):
        crowd.add(other, bytes(60_000), 8, 60_000)
    held = 0
    counts = {session: 0, other: 0}
    while taken := crowd.take():
        for owner, packet, _cost in taken:
            held += len(packet)
            counts[owner] += 1
    assert QUEUE_BYTES - 2 * 61_000 < held <= QUEUE_BYTES
    # The long queue made room for the other.
    assert abs(counts[session] - counts[other]) <= 2
