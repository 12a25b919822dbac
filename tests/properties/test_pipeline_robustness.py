"""No datagram, sealed or not, and no TUN read stops a worker; what comes out of it is always a valid packet."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from jvpn.protocol.constants import PacketType
from jvpn.protocol.keys import nonce
from jvpn.protocol.suites import suite
from jvpn.protocol.wire import Header
from workers import bulk
from workers.commands import AddSession, InstalledIndex, PhaseKeys
from workers.counters import Counter
from workers.fakes import FakeNetwork, FakeWorker

CLIENT, GATEWAY = ("::ffff:192.0.2.2", 5001), ("::ffff:192.0.2.1", 5000)
UP, DOWN = b"u" * 32, b"d" * 32
IDS = [InstalledIndex(n, bytes((n,)) * 8) for n in range(3)]


#: Whether libipsec-mb is used, where there is one, and the suite.
libraries, suites = st.booleans(), st.sampled_from((1, 2))


def worker(*, gateway: bool, library: bool, suite_number: int = 1) -> FakeWorker:
    network = FakeNetwork()
    address = GATEWAY if gateway else CLIENT
    made = FakeWorker(network, address, gateway=gateway, bulk=bulk.find() if library else None)
    keys = PhaseKeys(0, DOWN, UP) if gateway else PhaseKeys(0, UP, DOWN)
    inner = ["0.0.0.0/0", "::/0"]
    path = made.path(0, CLIENT if gateway else GATEWAY)
    made.table.add(AddSession(1, 0, b"s" * 16, suite_number, 0, [keys], inner, inner, IDS, path))
    return made


#: Mostly plausible: real IP versions, protocols and lengths, in all the wrong combinations.
plausible = st.builds(
    lambda flags, kind, size, start, index, version, length, protocol, tail: (
        struct.pack(">BBHHH", flags, kind, size, start, index)
        + struct.pack(">BBHHHBB", version, 0, length, 0, 0, protocol, protocol)
        + tail
    ),
    st.integers(0, 4),
    st.integers(0, 6),
    st.sampled_from((0, 1, 63, 64, 100, 1400, 65535)),
    st.sampled_from((0, 20, 24, 40, 48, 60, 65535)),
    st.sampled_from((0, 1, 6, 16, 700, 65535)),
    st.sampled_from((0x45, 0x46, 0x4F, 0x44, 0x60, 0x6F, 0x00)),
    st.integers(0, 200),
    st.sampled_from((0, 1, 6, 17, 43, 44, 58, 60)),
    st.binary(max_size=180),
)
plaintexts = st.one_of(st.binary(max_size=200), plausible)
kinds = st.sampled_from(
    (PacketType.DATA, PacketType.DATA, PacketType.RESENT, PacketType.FRAGMENT, PacketType.PATH)
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(kinds, plaintexts, st.integers(0, 2**64 - 1), st.integers(1, 70)), max_size=5),
    libraries,
    suites,
)
def test_sealed_nonsense_is_dropped_and_counted(
    items: list[tuple[PacketType, bytes, int, int]], library: bool, suite_number: int
) -> None:
    gateway = worker(gateway=True, library=library, suite_number=suite_number)
    aead = suite(suite_number).aead(UP)
    for kind, plaintext, first, count in items:
        run = []
        for counter in range(first, min(first + count, 2**64)):
            header = Header(kind, IDS[0].steering_id, counter).encode()
            run.append(header + aead.encrypt(nonce(0, counter), plaintext, header))
        # In two, so that the second finds a layout and is taken as a batch.
        for half in (run[: len(run) // 2], run[len(run) // 2 :]):
            if half:
                gateway.socket.arrived.append((b"".join(half)[:65_536], len(run[0]), CLIENT))
    gateway.turn()
    for written in gateway.tun.written:
        packet = written[10:]
        length = struct.unpack_from(">H", packet, 2 if packet[0] >> 4 == 4 else 4)[0]
        assert len(packet) == length + (0 if packet[0] >> 4 == 4 else 40)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=300), st.integers(1, 400)), max_size=5), libraries)
def test_nonsense_from_the_network_changes_nothing(runs: list[tuple[bytes, int]], library: bool) -> None:
    gateway = worker(gateway=True, library=library)
    gateway.socket.arrived.extend((data, segment, CLIENT) for data, segment in runs)
    gateway.turn()
    assert gateway.tun.written == []
    assert gateway.counters[Counter.DATAGRAMS_SENT] == 0
    assert gateway.page.read_activity(0).received_packets == 0


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=10, max_size=10), plaintexts), max_size=5), libraries, suites)
def test_nonsense_from_the_tun_is_dropped_or_sent_as_valid_data(
    reads: list[tuple[bytes, bytes]], library: bool, suite_number: int
) -> None:
    client = worker(gateway=False, library=library, suite_number=suite_number)
    gateway = worker(gateway=True, library=not library, suite_number=suite_number)
    # `plausible` begins with an offload header; behind a virtio header there is none.
    for front, packet in reads:
        client.tun.pending.append(front + packet[8:])
        if len(packet) > 8:
            segmented = struct.pack("=BBHHHH", packet[0], packet[1], 0, 300, 20, 16)
            client.tun.pending.append(segmented + packet[8:] * 9)
    client.turn()
    gateway.socket.arrived.extend((datagram, len(datagram), CLIENT) for _, _, datagram in client.network.sent)
    gateway.turn()
    assert gateway.dropped().keys() <= {"BAD_OFFLOAD", "BAD_INNER"}
    refused = sum(gateway.dropped().values())
    assert gateway.counters[Counter.DELIVERED_PACKETS] == len(client.network.sent) - refused
