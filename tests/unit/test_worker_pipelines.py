"""Who may send what through a worker, and what becomes of everything else: dropped, counted, answered, forwarded."""

import errno
import struct

import pytest

from jvpn.protocol.constants import PacketType
from jvpn.protocol.keys import nonce
from jvpn.protocol.paths import INDEX_ACTIVE, SOURCE_BOUND, Probe, ProbeAck, challenge_slot, challenge_valid
from jvpn.protocol.paths import decode as decode_path
from jvpn.protocol.suites import suite
from jvpn.protocol.wire import Header
from workers.commands import (
    AddSession,
    Datagram,
    Endpoint,
    IndexSeen,
    InstalledIndex,
    InstallIndexes,
    PhaseKeys,
    ProbeAnswered,
    Rebind,
    SendProbe,
)
from workers.counters import Counter
from workers.fakes import FakeNetwork, FakeWorker
from workers.table import TableError

CLIENT, ELSEWHERE, GATEWAY = ("::ffff:192.0.2.2", 5001), ("2001:db8::2", 5001), ("::ffff:192.0.2.1", 5000)
UP, DOWN = b"u" * 32, b"d" * 32
IDS = [InstalledIndex(n, bytes((n + 1,)) * 8) for n in range(5)]
FAR = 10**18


def packet(source: int = 2, payload: bytes = b"payload", destination: int = 1) -> bytes:
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 7, 0, 64, 99, 0)
    return head + bytes((10, 8, 0, source, 10, 8, 0, destination)) + payload


def data(payload: bytes = b"payload", source: int = 2) -> bytes:
    return bytes(8) + packet(source, payload)


def datagram(
    plaintext: bytes,
    counter: int,
    *,
    index: int = 0,
    kind: PacketType = PacketType.DATA,
    phase: int = 0,
    key: bytes = UP,
    suite_number: int = 1,
) -> bytes:
    header = Header(kind, IDS[index].steering_id, counter, phase).encode()
    return header + suite(suite_number).aead(key).encrypt(nonce(index, counter), plaintext, header)


def opened(sealed: bytes, index: int = 0, key: bytes = DOWN) -> bytes:
    counter = int.from_bytes(sealed[12:20], "big")
    return suite(1).aead(key).decrypt(nonce(index, counter), sealed[20:], sealed[:20])


class Worker(FakeWorker):
    """With one session in record 3, bound to its peer on index 0."""

    def __init__(self, *, gateway: bool = True) -> None:
        super().__init__(FakeNetwork(), GATEWAY if gateway else CLIENT, gateway=gateway)
        self.peer = CLIENT if gateway else GATEWAY
        self.add()

    def add(self, phases: list[PhaseKeys] | None = None) -> None:
        gateway = self.table.gateway
        keys = phases or [PhaseKeys(0, DOWN if gateway else UP, UP if gateway else DOWN)]
        inner = ["10.8.0.2/32"] if gateway else ["0.0.0.0/0"]
        binding = self.path(0, self.peer)
        self.table.add(AddSession(1, 3, b"s" * 16, 1, 0, keys, inner, inner, IDS, binding))

    def get(self, *datagrams: bytes, source: tuple[str, int] | None = None, now_ns: int = 1) -> list[bytes]:
        """Let datagrams arrive as one run; returns the packets that reached the TUN."""
        self.tun.written.clear()
        self.network.deliver(list(datagrams), source or self.peer, self.address)
        self.turn(now_ns)
        return [written[10:] for written in self.tun.written]

    def take_sent(self) -> list[tuple[tuple[str, int], bytes]]:
        sent = [(to, sealed) for _, to, sealed in self.network.sent]
        self.network.sent.clear()
        return sent


@pytest.fixture(params=["one by one", "batch"])
def gateway(request: pytest.FixtureRequest) -> Worker:
    """A gateway that meets datagrams of this size for the first time, or one that has a layout for them."""
    worker = Worker()
    if request.param == "batch":
        high = [datagram(data(), n, index=4) for n in (1, 2, 3, 4)]
        worker.table.rebind(Rebind(1, 3, worker.path(4, CLIENT), None, 0, []))
        assert len(worker.get(*high)) == 4
        assert worker.decryptor.layouts.get(len(high[0])) is not None
        worker.table.rebind(Rebind(1, 3, worker.path(0, CLIENT), None, 0, []))
        worker.reports.clear()
    return worker


def test_packets_of_many_sizes_leave_the_layouts_to_those_that_come_in_runs() -> None:
    worker = Worker()
    long = datagram(data(bytes(999)), 0)
    assert len(worker.get(*(datagram(data(bytes(999)), n) for n in range(1, 9)))) == 8
    for size in range(100, 400):
        # One UDP_SEGMENT send ends with the first packet that is shorter.
        sizes = size, size, size - 1
        run = [datagram(data(bytes(each)), 3 * size + at) for at, each in enumerate(sizes)]
        assert len(worker.get(*run)) == 3
    assert len(worker.decryptor.layouts) == 1
    assert worker.decryptor.layouts.get(len(long)) is not None


def test_data_from_the_bound_source_is_delivered_once(gateway: Worker) -> None:
    run = [datagram(data(bytes((n,)) * 7), n) for n in range(5)]
    assert gateway.get(*run) == [packet(payload=bytes((n,)) * 7) for n in range(5)]
    assert gateway.get(*run) == []
    assert gateway.dropped() == {"REPLAYED": 5}
    assert gateway.page.read_highest(3, 0) == 4


def test_a_window_starts_above_what_the_page_remembers(gateway: Worker) -> None:
    gateway.page.write_highest(3, 0, 2)
    assert len(gateway.get(*(datagram(data(), n) for n in range(5)))) == 2
    assert gateway.dropped() == {"REPLAYED": 3}


def test_the_page_knows_the_highest_counter_before_the_tun_gets_the_packet(gateway: Worker) -> None:
    seen = []
    gateway.tun.writev = lambda buffers: seen.append(gateway.page.read_highest(3, 0)) or 1  # type: ignore[method-assign]
    gateway.get(*(datagram(data(), n) for n in range(3)))
    assert seen == [2, 2, 2]


def test_inner_sources_of_others_are_dropped_singly(gateway: Worker) -> None:
    run = [datagram(data(source=2 if n % 2 else 3), n) for n in range(4)]
    assert len(gateway.get(*run)) == 2
    assert gateway.dropped() == {"INNER_SOURCE": 2}


def test_what_was_not_sealed_for_this_index_is_dropped(gateway: Worker) -> None:
    unknown = bytearray(datagram(data(), 1))
    unknown[4:12] = b"nobody's"
    run = [datagram(data(), 0), bytes(unknown), datagram(data(), 2, phase=5), datagram(data(), 3, key=DOWN)]
    assert len(gateway.get(*run, datagram(data(), 4))) == 2
    assert gateway.dropped() == {"UNKNOWN_ID": 1, "UNKNOWN_PHASE": 1, "BAD_TAG": 1}


def test_headers_that_break_the_format_are_counted_by_what_is_wrong(gateway: Worker) -> None:
    good = datagram(data(), 0)
    run = [bytes((0x3F,)) + good[1:], good[:1] + b"\x20" + good[2:], good[:3] + b"\1" + good[4:], good]
    assert len(gateway.get(*run)) == 1
    gateway.get(good[:35])
    gateway.get(good[:19])
    assert gateway.dropped() == {
        "UNKNOWN_TYPE": 1,
        "BAD_VERSION": 1,
        "RESERVED_BITS": 1,
        "BAD_LENGTH": 1,
        "TRUNCATED": 1,
    }


def test_data_on_an_installed_index_is_not_delivered(gateway: Worker) -> None:
    assert gateway.get(*(datagram(data(), n, index=1) for n in range(3))) == []
    gateway.turn(10**9)
    assert gateway.dropped() == {"NOT_BOUND": 3}
    assert gateway.page.read_highest(3, 1) is None


def test_the_draining_index_is_heard_from_its_old_source_until_its_time(gateway: Worker) -> None:
    gateway.table.rebind(Rebind(2, 3, gateway.path(1, ELSEWHERE), 0, 1000, []))
    assert len(gateway.get(datagram(data(), 0), now_ns=999)) == 1
    assert len(gateway.get(datagram(data(), 0, index=1), source=ELSEWHERE)) == 1
    assert gateway.get(datagram(data(), 1), source=ELSEWHERE, now_ns=999) == []
    assert gateway.get(datagram(data(), 2), now_ns=1000) == []
    assert gateway.dropped() == {"WRONG_SOURCE": 1, "NOT_BOUND": 1}
    assert gateway.take_sent() == []


def test_data_from_elsewhere_is_answered_once_a_second_and_never_delivered(gateway: Worker) -> None:
    second = 10**9
    for number, now_ns in enumerate((second, second + 1, 2 * second - 1, 2 * second)):
        assert gateway.get(datagram(data(), number), source=ELSEWHERE, now_ns=now_ns) == []
    answers = gateway.take_sent()
    assert [to for to, _ in answers] == [ELSEWHERE, ELSEWHERE]
    ack = decode_path(opened(answers[0][1]))
    assert isinstance(ack, ProbeAck)
    assert (ack.timestamp_us, ack.flags, ack.highest_installed) == (0, INDEX_ACTIVE, 4)
    source = bytes.fromhex("20010db8" + "00" * 11 + "02")
    assert challenge_valid(
        ack.challenge, b"c" * 32, b"s" * 16, source, 5001, gateway.local, 5000, 1, challenge_slot(second)
    )
    # The window was not touched: the same datagram from the bound source still counts.
    assert len(gateway.get(datagram(data(), 0))) == 1


def test_forged_data_from_elsewhere_does_not_use_up_the_sample(gateway: Worker) -> None:
    forged = [datagram(data(), n, key=DOWN) for n in range(5)]
    gateway.get(*forged, source=ELSEWHERE, now_ns=10**9)
    assert gateway.take_sent() == []
    gateway.get(datagram(data(), 9), source=ELSEWHERE, now_ns=10**9 + 1)
    assert len(gateway.take_sent()) == 1


def probe(timestamp_us: int, counter: int, index: int = 0) -> bytes:
    return datagram(Probe(timestamp_us, 0, 0).encode(), counter, index=index, kind=PacketType.PATH)


def test_a_probe_is_answered_where_it_came_from(gateway: Worker) -> None:
    gateway.get(datagram(data(), 0), datagram(data(), 7))
    gateway.get(probe(11, 8))
    gateway.get(probe(12, 9), source=ELSEWHERE)
    gateway.get(probe(13, 0, index=2), source=ELSEWHERE)
    answers = gateway.take_sent()
    assert [to for to, _ in answers] == [CLIENT, ELSEWHERE, ELSEWHERE]
    acks = [decode_path(opened(sealed, index)) for (_, sealed), index in zip(answers, (0, 0, 2), strict=True)]
    assert [ack[:4] for ack in acks] == [
        (INDEX_ACTIVE | SOURCE_BOUND, 11, 3, 8),
        (INDEX_ACTIVE, 12, 4, 9),
        (0, 13, 1, 0),
    ]
    # No PATH packet is activity of the session.
    assert gateway.page.read_activity(3).received_packets >= 2
    assert all(len(sealed) == len(probe(1, 1)) for _, sealed in answers)


def test_probes_do_not_count_as_activity_or_fill_the_window(gateway: Worker) -> None:
    before = gateway.page.read_activity(3)
    gateway.get(probe(11, 5000), now_ns=77)
    assert gateway.page.read_activity(3)._replace(heard_ns=before.heard_ns) == before
    assert len(gateway.get(datagram(data(), 1))) == 1


def test_a_bucket_bounds_the_answers_of_one_id(gateway: Worker) -> None:
    now_ns = 100 * 10**9
    for number in range(60):
        gateway.get(probe(1, number), now_ns=now_ns)
    assert len(gateway.take_sent()) == 20
    for number in range(60, 120):
        gateway.get(probe(1, number), now_ns=now_ns + 10**9 // 4)
    assert len(gateway.take_sent()) == 10
    gateway.get(probe(1, 0, index=1), now_ns=now_ns)
    assert len(gateway.take_sent()) == 1
    assert gateway.counters[Counter.PROBE_LIMITED] == 90


def test_probes_again_use_up_nothing_that_new_ones_need(gateway: Worker) -> None:
    """From the bound source they may be genuine, overtaken by somebody's copies; from elsewhere few are answered."""
    now_ns = 100 * 10**9
    gateway.get(probe(1, 0), now_ns=now_ns)
    gateway.take_sent()
    for _ in range(60):
        gateway.get(probe(1, 0), source=ELSEWHERE, now_ns=now_ns)
    assert len(gateway.take_sent()) == 3
    for _ in range(60):
        gateway.get(probe(1, 0), now_ns=now_ns)
    assert len(gateway.take_sent()) == 20
    for number in range(1, 60):
        gateway.get(probe(1, number), now_ns=now_ns)
    assert len(gateway.take_sent()) == 19


def resent(old_index: int, old_counter: int, counter: int, index: int = 1) -> bytes:
    head = bytes((index - old_index,)) + (old_counter & 0xFFFFFF).to_bytes(3, "big")
    return datagram(head + data(bytes((old_counter & 0xFF,))), counter, index=index, kind=PacketType.RESENT)


def test_resent_data_is_delivered_unless_it_had_arrived(gateway: Worker) -> None:
    gateway.get(datagram(data(), 0), datagram(data(), 2))
    gateway.table.rebind(Rebind(2, 3, gateway.path(1, CLIENT), 0, FAR, []))
    assert len(gateway.get(*(resent(0, old, 10 + old) for old in range(4)))) == 2  # 1 and 3
    assert gateway.get(resent(0, 1, 20)) == []
    assert gateway.get(datagram(data(), 3)) == []  # late on its own index: it was delivered already
    assert gateway.dropped() == {"REPLAYED": 4}
    bad = datagram(b"\2\0\0\0" + data(), 30, index=1, kind=PacketType.RESENT)
    assert gateway.get(bad, datagram(b"\1", 31, index=1, kind=PacketType.RESENT)) == []
    assert gateway.counters[Counter.BAD_RESENT] == 2


def test_resent_counters_are_read_near_what_has_arrived() -> None:
    gateway = Worker()
    high = 3 << 24
    gateway.get(datagram(data(), high + 1))
    gateway.table.rebind(Rebind(2, 3, gateway.path(1, CLIENT), 0, FAR, []))
    assert len(gateway.get(resent(0, high - 5, 0))) == 1
    assert gateway.get(datagram(data(), high - 5)) == []
    assert len(gateway.get(datagram(data(), high - 6))) == 1


def test_both_phases_are_heard_and_the_last_is_spoken(gateway: Worker) -> None:
    new = PhaseKeys(17, b"D" * 32, b"U" * 32)
    gateway.add(phases=[PhaseKeys(0, DOWN, UP), new])
    assert len(gateway.get(datagram(data(), 0), datagram(data(), 1, phase=1, key=b"U" * 32))) == 2
    gateway.tun.pending.append(bytes(10) + packet(1, destination=2))
    gateway.turn()
    ((_, sealed),) = gateway.take_sent()
    assert sealed[1] == 0x11
    assert opened(sealed, key=b"D" * 32) == bytes(8) + packet(1, destination=2)
    gateway.add(phases=[new])
    assert gateway.get(datagram(data(), 2)) == []
    assert gateway.counters[Counter.UNKNOWN_PHASE] == 1


def test_a_tun_that_refuses_costs_the_packet_only(gateway: Worker) -> None:
    gateway.tun.failure = errno.EIO
    assert gateway.get(datagram(data(), 0)) == []
    gateway.tun.failure = 0
    assert len(gateway.get(datagram(data(), 1))) == 1
    assert gateway.dropped() == {"TUN_WRITE_ERROR": 1}


@pytest.mark.parametrize(
    ("failure", "counter"),
    [
        (errno.EAGAIN, "SEND_FULL"),
        (errno.ENOBUFS, "SEND_FULL"),
        (errno.ENETUNREACH, "SEND_ERROR"),
        (errno.EPERM, "SEND_ERROR"),
        (errno.EMSGSIZE, "SEND_TOO_BIG"),
    ],
)
def test_a_network_that_refuses_costs_the_datagrams_only(failure: int, counter: str) -> None:
    client = Worker(gateway=False)
    client.tun.pending.extend([bytes(10) + packet()] * 3)
    client.socket.failure = failure
    client.turn()
    assert client.dropped() == {counter: 3}
    client.socket.failure = 0
    client.tun.pending.append(bytes(10) + packet())
    client.turn()
    assert [sealed[12:20] for _, sealed in client.take_sent()] == [(3).to_bytes(8, "big")]


def test_what_has_no_destination_or_no_path_is_counted() -> None:
    gateway = Worker()
    gateway.tun.pending.append(bytes(10) + packet(destination=77))
    gateway.turn()
    gateway.table.rebind(Rebind(2, 3, None, None, 0, []))
    gateway.tun.pending.append(bytes(10) + packet(destination=2))
    gateway.tun.pending.append(b"short")
    gateway.turn()
    assert "NO_PATH" not in gateway.dropped()  # it waits first
    gateway.turn(10**9)
    assert gateway.dropped() == {"NO_SESSION": 1, "NO_PATH": 1, "BAD_TUN_PACKET": 1}
    assert gateway.take_sent() == []


def test_small_packets_of_one_size_share_a_send_in_their_order() -> None:
    client = Worker(gateway=False)
    sizes = [50] * 70 + [40, 50, 60, 60]
    client.tun.pending.extend(bytes(10) + packet(payload=bytes((n,)) * size) for n, size in enumerate(sizes))
    client.turn()
    sent = client.take_sent()
    assert [opened(sealed, key=UP)[28] for _, sealed in sent] == list(range(len(sizes)))
    # 64 in the first turn; then 6 and the shorter one; then 50; then both of 60.
    assert client.counters[Counter.UDP_WRITES] == 4


def test_no_nonce_is_used_twice_when_a_session_goes_back_to_an_old_index() -> None:
    client = Worker(gateway=False)
    seen = []
    for index in (0, 1, 0, 2, 1):
        client.table.rebind(Rebind(2, 3, client.path(index, GATEWAY), None, 0, []))
        client.answers.send_probe(SendProbe(3, 3, client.path(index, GATEWAY), 1))
        client.tun.pending.extend([bytes(10) + packet()] * 2)
        client.turn()
    for _, sealed in client.take_sent():
        seen.append((sealed[4:12], sealed[12:20]))
    assert len(seen) == len(set(seen)) == 15
    assert {counter for steering_id, counter in seen if steering_id == IDS[0].steering_id} == {
        number.to_bytes(8, "big") for number in range(6)
    }


def test_the_client_hears_every_index_it_has_asked_for_from_its_gateway() -> None:
    client = Worker(gateway=False)
    client.table.rebind(Rebind(2, 3, client.path(1, GATEWAY), 0, 1000, [2]))
    for index in (0, 1, 2):
        assert len(client.get(datagram(data(), 0, index=index, key=DOWN))) == 1
        assert client.get(datagram(data(), 1, index=index, key=DOWN), source=ELSEWHERE) == []
    assert client.get(datagram(data(), 2, key=DOWN), now_ns=1000) == []
    assert client.get(datagram(data(), 0, index=3, key=DOWN)) == []
    assert client.dropped() == {"WRONG_SOURCE": 3, "NOT_BOUND": 2}


def test_a_client_probes_any_installed_path_and_reports_the_answer() -> None:
    client = Worker(gateway=False)
    client.get(datagram(data(), 5, key=DOWN))
    client.answers.send_probe(SendProbe(1, 3, client.path(2, ELSEWHERE), 4711))
    ((to, sealed),) = client.take_sent()
    assert to == ELSEWHERE
    assert sealed[4:12] == IDS[2].steering_id
    assert decode_path(opened(sealed, 2, key=UP)) == Probe(4711, 0, 0)
    ack = ProbeAck(3, 4711, 1, 0, b"C" * 16, 4)
    answer = datagram(ack.encode(), 0, index=2, kind=PacketType.PATH, key=DOWN)
    client.get(answer, source=ELSEWHERE)
    remote = Endpoint(bytes.fromhex("20010db8" + "00" * 11 + "02"), 5001)
    assert client.reports == [ProbeAnswered(3, 2, 0, 4711, 3, b"C" * 16, 4, 1, 0, remote, 1, 0)]
    # And DATA may come from there now, once the index is accepted.
    client.table.rebind(Rebind(2, 3, client.path(0, GATEWAY), None, 0, [2]))
    assert len(client.get(datagram(data(), 1, index=2, key=DOWN), source=ELSEWHERE)) == 1


def test_an_unsolicited_answer_counts_once_and_a_forged_one_never() -> None:
    client = Worker(gateway=False)
    ack = ProbeAck(1, 0, 1, 0, b"C" * 16, 4).encode()
    genuine = datagram(ack, 9, kind=PacketType.PATH, key=DOWN)
    client.get(genuine)
    client.get(genuine)
    client.get(datagram(ack, 10, kind=PacketType.PATH, key=UP))
    client.get(datagram(ack[:-1], 11, kind=PacketType.PATH, key=DOWN))
    assert len(client.reports) == 1
    assert client.dropped() == {"REPLAYED": 1, "BAD_TAG": 1, "BAD_PATH": 1}


def test_control_and_handshake_are_forwarded_as_they_came(gateway: Worker) -> None:
    control = Header(PacketType.CONTROL, b"whatever", 5, 3).encode() + b"x" * 40
    request = Header(PacketType.REATTACH_REQUEST, b"whatever").encode() + b"x" * 236
    assert len(gateway.get(datagram(data(), 0), control, datagram(data(), 1))) == 2
    gateway.get(request, source=ELSEWHERE)
    local = Endpoint(gateway.local, 5000)
    near = Endpoint(bytes(10) + b"\xff\xff" + bytes((192, 0, 2, 2)), 5001)
    far = Endpoint(bytes.fromhex("20010db8" + "00" * 11 + "02"), 5001)
    assert gateway.reports == [Datagram(0, local, near, control), Datagram(0, local, far, request)]
    assert gateway.dropped() == {}


def test_installed_indexes_can_be_replaced_but_not_from_under_a_binding(gateway: Worker) -> None:
    with pytest.raises(TableError):
        gateway.table.install(InstallIndexes(1, 3, IDS[1:]))
    assert len(gateway.get(datagram(data(), 0))) == 1
    gateway.table.install(InstallIndexes(1, 3, IDS[:2]))
    assert len(gateway.get(datagram(data(), 1))) == 1
    gateway.get(probe(1, 0, index=1), probe(1, 0, index=3))
    assert len(gateway.take_sent()) == 1
    assert gateway.dropped() == {"UNKNOWN_ID": 1}


def test_small_packets_of_two_sessions_go_to_their_own_peers() -> None:
    gateway = Worker()
    keys = [PhaseKeys(0, b"D" * 32, b"U" * 32)]
    ids = [InstalledIndex(0, b"\x77" * 8)]
    other = AddSession(1, 4, b"t" * 16, 1, 0, keys, [], ["10.8.0.3/32"], ids, gateway.path(0, ELSEWHERE))
    gateway.table.add(other)
    gateway.tun.pending.extend(bytes(10) + packet(1, destination=n) for n in (2, 3, 3, 2))
    gateway.turn()
    assert [(to, sealed[4:12]) for to, sealed in gateway.take_sent()] == [
        (CLIENT, IDS[0].steering_id),
        (CLIENT, IDS[0].steering_id),
        (ELSEWHERE, b"\x77" * 8),
        (ELSEWHERE, b"\x77" * 8),
    ]
    assert gateway.counters[Counter.UDP_WRITES] == 2


def segments(source: int, *numbers: tuple[int, int]) -> list[bytes]:
    """UDP segments of 64 bytes: (flags, segment index) each, all with the same inner headers."""
    head = packet(source)[:9] + b"\x11" + packet(source)[10:20] + struct.pack(">HHHH", 1, 2, 200, 0)
    return [struct.pack(">BBHHH", flags, 5, 64, 20, index) + head + bytes(64) for flags, index in numbers]


def test_a_run_from_a_strangers_inner_source_is_dropped_whole(gateway: Worker) -> None:
    plain = segments(2, (1, 0), (1, 1), (1, 2))
    foreign = segments(3, (1, 0), (1, 1), (1, 2))
    gateway.get(*(datagram(plaintext, n) for n, plaintext in enumerate(plain)))
    assert [len(p) for p in gateway.get(*(datagram(p, n + 3) for n, p in enumerate(plain)))] == [28 + 3 * 64]
    assert gateway.get(*(datagram(p, n + 6) for n, p in enumerate(foreign))) == []
    assert gateway.dropped() == {"INNER_SOURCE": 3}


def test_nothing_joins_a_run_behind_its_last_segment(gateway: Worker) -> None:
    for first in (0, 3):
        run = segments(2, (1, 0), (3, 1), (1, 2))
        packets = gateway.get(*(datagram(p, first + n) for n, p in enumerate(run)))
        assert [len(p) for p in packets] == [28 + 2 * 64, 28 + 64]


def test_the_supervisor_hears_of_each_higher_index_once_and_the_page_of_everything_authentic(
    gateway: Worker,
) -> None:
    gateway.table.by_record[3].highest_seen = 0
    gateway.get(*(datagram(data(), n) for n in range(3)), now_ns=11)
    assert gateway.page.read_activity(3).heard_ns == 11
    gateway.get(datagram(Probe(1, 0, 0).encode(), 0, index=2, kind=PacketType.PATH, key=DOWN), now_ns=12)
    gateway.get(probe(1, 0, index=2), probe(1, 1, index=1), probe(1, 1, index=2), now_ns=13)
    assert gateway.reports == [IndexSeen(3, 2)]
    activity = gateway.page.read_activity(3)
    assert (activity.heard_ns, activity.received_ns) == (13, 11)
