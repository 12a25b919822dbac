"""Whatever happens to datagrams on the way, the batch pipelines deliver what the protocol's reference delivers.

Superpackets go through a whole client and a whole gateway (fakes for TUN and network); the test loses, repeats,
reorders and mixes datagrams in between, opens them itself, and takes what the gateway wrote apart as a kernel would.
"""

import random
import struct
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from jvpn.protocol import offload
from jvpn.protocol.keys import nonce
from jvpn.protocol.suites import suite
from workers import bulk
from workers.commands import AddSession, InstalledIndex, PhaseKeys, Rebind
from workers.fakes import FakeNetwork, FakeWorker

CLIENT, GATEWAY = ("::ffff:192.0.2.2", 5001), ("::ffff:192.0.2.1", 5000)
UP, DOWN = b"u" * 32, b"d" * 32
IDS = [InstalledIndex(n, bytes((n,)) * 8) for n in range(3)]
BYTES = random.Random(1).randbytes(1 << 17)
SOURCE_4, SOURCE_6 = bytes((10, 8, 0, 2)), bytes.fromhex("fd08" + "00" * 13 + "02")
FIN, PSH, ACK, ECE, CWR = 1, 8, 16, 64, 128
TCP, UDP, ICMP = 6, 17, 1


# --- what a kernel does, written without a look at the code under test ------------------------------------------


def checksum(data: bytes) -> int:
    total = 0
    for (word,) in struct.iter_unpack(">H", data + b"\0" * (len(data) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo(packet: bytes, protocol: int, length: int) -> bytes:
    addresses = packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]
    return addresses + struct.pack(">II", length, protocol)


def set_length(packet: bytearray) -> None:
    if packet[0] >> 4 == 4:
        packet[2:4] = struct.pack(">H", len(packet))
        packet[10:12] = b"\0\0"
        packet[10:12] = struct.pack(">H", checksum(packet[: (packet[0] & 15) * 4]))
    else:
        packet[4:6] = struct.pack(">H", len(packet) - 40)


def leave_checksum(packet: bytearray, start: int, protocol: int) -> None:
    """As CHECKSUM_PARTIAL: only the pseudo header's sum is in the field."""
    at = start + (16 if protocol == TCP else 6)
    packet[at : at + 2] = b"\0\0"
    packet[at : at + 2] = struct.pack(">H", ~checksum(pseudo(packet, protocol, len(packet) - start)) & 0xFFFF)


def finish_checksum(packet: bytearray, start: int, offset: int) -> None:
    value = checksum(packet[start:]) or 0xFFFF
    packet[start + offset : start + offset + 2] = struct.pack(">H", value)


def kernel_segments(superpacket: bytes) -> list[bytes]:
    """The packets, checksums filled in, that a kernel makes of one read from or write to a TUN."""
    flags, kind, _, size, start, offset = struct.unpack_from("=BBHHHH", superpacket)
    packet = bytearray(superpacket[10:])
    kind &= 0x7F
    if kind == 0:
        if flags & 1:
            finish_checksum(packet, start, offset)
        return [bytes(packet)]
    protocol = UDP if kind == 5 else TCP
    headers = start + (8 if protocol == UDP else packet[start + 12] // 16 * 4)
    payload = packet[headers:]
    out = []
    for number, at in enumerate(range(0, len(payload), size)):
        one = packet[:headers] + payload[at : at + size]
        set_length(one)
        if one[0] >> 4 == 4:
            one[4:6] = struct.pack(">H", (struct.unpack_from(">H", packet, 4)[0] + number) & 0xFFFF)
            set_length(one)
        if protocol == TCP:
            sequence = struct.unpack_from(">I", packet, start + 4)[0] + at
            one[start + 4 : start + 8] = struct.pack(">I", sequence & 0xFFFFFFFF)
            if at:
                one[start + 13] &= ~CWR
            if at + size < len(payload):
                one[start + 13] &= ~(FIN | PSH)
        else:
            one[start + 4 : start + 6] = struct.pack(">H", len(one) - start)
        leave_checksum(one, start, protocol)
        finish_checksum(one, start, offset)
        out.append(bytes(one))
    return out


def assert_fit_for_a_kernel(written: bytes) -> None:
    """A superpacket's own lengths and checksums, which a kernel believes instead of working them out."""
    _, kind, length, size, start, _ = struct.unpack_from("=BBHHHH", written)
    if not kind:
        return
    packet = bytearray(written[10:])
    protocol = UDP if kind == 5 else TCP
    headers = start + (8 if protocol == UDP else packet[start + 12] // 16 * 4)
    assert length == headers
    assert size < len(packet) - headers <= 65_535 - headers
    fixed = packet.copy()
    set_length(fixed)
    if protocol == UDP:
        fixed[start + 4 : start + 6] = struct.pack(">H", len(packet) - start)
    leave_checksum(fixed, start, protocol)
    assert packet == fixed


# --- superpackets ------------------------------------------------------------------------------------------------


class Superpacket(bytes):
    """Bytes whose report fits a screen."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes, {self[:90].hex()} …>"


@st.composite
def superpackets(draw: st.DrawFn) -> bytes:
    family = draw(st.sampled_from((4, 6)))
    protocol = draw(st.sampled_from((TCP, TCP, TCP, UDP, UDP, ICMP)))
    segmented = protocol != ICMP and draw(st.booleans())
    size = draw(st.sampled_from((20, 63, 64, 100, 255, 256, 400, 536, 1348)))
    at = draw(st.integers(0, 1000))
    count = draw(st.integers(1, 8)) if segmented and size < 536 else draw(st.integers(1, 47))
    length = min(size * count + draw(st.integers(1, size)), 65_000)
    payload = BYTES[at : at + (length if segmented else min(length, 1300))]
    if family == 4:
        options = b"\1" * 4 * draw(st.integers(0, 2))
        packet = bytearray(
            struct.pack(">BBHHHBB2x", 0x45 + len(options) // 4, 0, 0, at * 65, 0x4000, 64, protocol)
        )
        packet += SOURCE_4 + bytes((10, 8, 0, 1)) + options
    else:
        extension = draw(st.sampled_from((None, None, 0, 60)))
        first = protocol if extension is None else extension
        packet = bytearray(struct.pack(">IHBB", 6 << 28, 0, first, 64) + SOURCE_6 + SOURCE_6[:15] + b"\1")
        if extension is not None:
            packet += struct.pack(">BB6s", protocol, 0, b"\1\4\0\0\0\0")
    start = len(packet)
    if protocol == TCP:
        options = b"\1" * 4 * draw(st.integers(0, 4))
        flags = ACK | draw(st.sampled_from((0, PSH, FIN | PSH, CWR, CWR | ECE | PSH)))
        sequence = draw(st.sampled_from((0, 1, 2**32 - 3000)))
        packet += struct.pack(">HHIIBBHHH", 1, 2, sequence, 9, (5 + len(options) // 4) << 4, flags, 500, 0, 0)
        packet += options
    elif protocol == UDP:
        packet += struct.pack(">HHHH", 7, 9, 8 + len(payload), 0)
    headers = len(packet)
    packet += payload
    set_length(packet)
    if protocol == ICMP:
        return Superpacket(bytes(10) + packet)
    leave_checksum(packet, start, protocol)
    offset = 16 if protocol == TCP else 6
    kind = 0 if not segmented else 5 if protocol == UDP else 1 if family == 4 else 4
    if not segmented and draw(st.booleans()):
        finish_checksum(packet, start, offset)
        return Superpacket(bytes(10) + packet)
    front = struct.pack("=BBHHHH", 1, kind, headers, size if segmented else 0, start, offset)
    return Superpacket(front + packet)


@st.composite
def trains(draw: st.DrawFn) -> list[bytes]:
    """Datagrams of a UDP flow or two, sent one by one, mostly alike but for payload and IP id."""
    family = draw(st.sampled_from((4, 6)))
    size = draw(st.integers(1, 300))
    identification = draw(st.sampled_from((0, 7, 65_530)))
    packets = []
    for number in range(draw(st.integers(2, 70))):
        odd = draw(st.sampled_from((None,) * 30 + ("port", "ttl", "id", "shorter", "longer", "checksum")))
        payload = BYTES[number : number + size + {"shorter": -1, "longer": 1}.get(odd or "", 0)]
        ttl = 63 if odd == "ttl" else 64
        if family == 4:
            identification = (identification + (2 if odd == "id" else 1)) & 0xFFFF
            packet = bytearray(struct.pack(">BBHHHBB2x", 0x45, 0, 0, identification, 0x4000, ttl, UDP))
            packet += SOURCE_4 + bytes((10, 8, 0, 1))
        else:
            packet = bytearray(struct.pack(">IHBB", 6 << 28, 0, UDP, ttl) + SOURCE_6 + SOURCE_6[:15] + b"\1")
        start = len(packet)
        packet += struct.pack(">HHHH", 8 if odd == "port" else 7, 9, 8 + len(payload), 0) + payload
        set_length(packet)
        leave_checksum(packet, start, UDP)
        if odd == "checksum":
            finish_checksum(packet, start, 6)
            packets.append(Superpacket(bytes(10) + packet))
        else:
            packets.append(Superpacket(struct.pack("=BBHHHH", 1, 0, 0, 0, start, 6) + packet))
    return packets


@st.composite
def traffic(draw: st.DrawFn, least: int, most: int) -> list[bytes]:
    """Reads from a TUN: up to `most` superpackets, or a train of datagrams."""
    if draw(st.integers(0, 3)) == 0:
        return draw(trains())
    return draw(st.lists(superpackets(), min_size=least, max_size=most))


# --- two workers ----------------------------------------------------------------------------------------------------


class Setup(NamedTuple):
    """`suite`; whether client and gateway use libipsec-mb, where there is one; whether the gateway's TUN has USO."""

    suite: int
    client_bulk: bool
    gateway_bulk: bool
    uso: bool


setups = st.builds(Setup, st.sampled_from((1, 2)), st.booleans(), st.booleans(), st.booleans())


class Tunnel:
    """A client and a gateway; `arrive` decides what the gateway gets of what the client has sent."""

    def __init__(self, setup: Setup) -> None:
        self.suite = setup.suite
        self.network = FakeNetwork()
        library = bulk.find()
        self.client = FakeWorker(
            self.network, CLIENT, gateway=False, bulk=library if setup.client_bulk else None
        )
        self.gateway = FakeWorker(
            self.network, GATEWAY, gateway=True, uso=setup.uso, bulk=library if setup.gateway_bulk else None
        )
        self.network.impair = lambda datagrams: []
        everything = ["0.0.0.0/0", "::/0"]
        for worker, send, receive, remote in (
            (self.client, UP, DOWN, GATEWAY),
            (self.gateway, DOWN, UP, CLIENT),
        ):
            keys = [PhaseKeys(0, send, receive)]
            inner = ["10.8.0.2/32", "fd08::2/128"] if worker is self.gateway else everything
            worker.table.add(
                AddSession(
                    1, 0, b"s" * 16, setup.suite, 0, keys, inner, everything, IDS, worker.path(0, remote)
                )
            )

    def move(self) -> None:
        self.client.table.rebind(Rebind(2, 0, self.client.path(1, GATEWAY), 0, 10**18, []))
        self.gateway.table.rebind(Rebind(2, 0, self.gateway.path(1, CLIENT), 0, 10**18, []))

    def warm(self, packets: list[bytes]) -> None:
        """Let everything pass once, so that the gateway has layouts and takes the next run as a batch."""
        self.client.tun.pending.extend(packets)
        self.client.turn()
        self.arrive([self.sent()])
        self.network.sent.clear()
        self.gateway.tun.written.clear()

    def sent(self) -> list[bytes]:
        return [datagram for source, _, datagram in self.network.sent if source == CLIENT]

    def arrive(self, runs: list[list[bytes]]) -> list[bytes]:
        """What the gateway's TUN gets, one packet each."""
        for run in runs:
            self.network.deliver(run, CLIENT, GATEWAY)
        self.gateway.turn()
        for written in self.gateway.tun.written:
            assert_fit_for_a_kernel(written)
        return [packet for written in self.gateway.tun.written for packet in kernel_segments(written)]


def reference(suite_number: int, arrived: list[bytes]) -> list[bytes]:
    """The same by the protocol's reference: open each datagram, drop those seen before, deliver singly."""
    aead = suite(suite_number).aead(UP)
    seen = set()
    plaintexts = []
    for datagram in arrived:
        index, counter = datagram[4], int.from_bytes(datagram[12:20], "big")
        if (index, counter) not in seen:
            seen.add((index, counter))
            plaintexts.append(aead.decrypt(nonce(index, counter), datagram[20:], datagram[:20]))
    return [
        packet for virtio, whole in offload.deliver(plaintexts) for packet in kernel_segments(virtio + whole)
    ]


@settings(max_examples=150, deadline=None)
@given(traffic(1, 6), setups)
def test_an_undisturbed_path_delivers_exactly_what_the_senders_kernel_would_have_sent(
    packets: list[bytes], setup: Setup
) -> None:
    tunnel = Tunnel(setup)
    tunnel.client.tun.pending.extend(packets)
    tunnel.client.turn()
    expected = [segment for packet in packets for segment in kernel_segments(packet)]
    assert tunnel.arrive([[datagram] for datagram in tunnel.sent()]) == expected
    again = Tunnel(setup)
    again.warm(packets)
    again.client.tun.pending.extend(packets)
    again.client.turn()
    assert again.arrive([again.sent()]) == expected
    assert tunnel.gateway.dropped() == again.gateway.dropped() == {}


@settings(max_examples=150, deadline=None)
@given(
    traffic(1, 4),
    traffic(0, 3),
    st.randoms(use_true_random=False),
    setups,
)
def test_a_bad_path_delivers_what_the_reference_delivers(
    before: list[bytes], after: list[bytes], chance: random.Random, setup: Setup
) -> None:
    tunnel = Tunnel(setup)
    tunnel.warm(before + after)
    tunnel.client.tun.pending.extend(before)
    tunnel.client.turn()
    tunnel.move()
    tunnel.client.tun.pending.extend(after)
    tunnel.client.turn()
    arrived = [datagram for datagram in tunnel.sent() if chance.random() > 0.05]
    for _ in range(chance.randrange(6)):
        arrived.insert(chance.randrange(len(arrived) + 1), chance.choice(tunnel.sent()))
    for _ in range(chance.randrange(4)):
        if arrived:
            arrived.insert(chance.randrange(len(arrived)), arrived.pop(chance.randrange(len(arrived))))
    if chance.random() < 0.3:
        # Two superpackets side by side: everything from the middle on moves into the gaps of the first half.
        half = len(arrived) // 2
        arrived = [d for pair in zip(arrived[:half], arrived[half:], strict=False) for d in pair]
    runs: list[list[bytes]] = [[]]
    for datagram in arrived:
        if chance.random() < 0.05:
            runs.append([])
        runs[-1].append(datagram)
    assert tunnel.arrive(runs) == reference(setup.suite, arrived)
    assert tunnel.gateway.dropped().keys() <= {"REPLAYED"}


@settings(max_examples=100, deadline=None)
@given(traffic(1, 3), st.randoms(use_true_random=False), setups)
def test_forged_datagrams_in_a_run_cost_only_themselves(
    packets: list[bytes], chance: random.Random, setup: Setup
) -> None:
    tunnel = Tunnel(setup)
    tunnel.warm(packets)
    tunnel.client.tun.pending.extend(packets)
    tunnel.client.turn()
    sent = tunnel.sent()
    forged = set(chance.sample(range(len(sent)), k=min(len(sent), chance.randrange(1, 4))))
    arrived = []
    for number, datagram in enumerate(sent):
        changed = bytearray(datagram)
        if number in forged:
            # Any byte but the type, version and id, which decide who judges it: counter, ciphertext or tag.
            changed[chance.randrange(12, len(changed))] ^= 1 << chance.randrange(8)
        arrived.append(bytes(changed))
    genuine = [datagram for number, datagram in enumerate(sent) if number not in forged]
    assert tunnel.arrive([arrived]) == reference(setup.suite, genuine)
    assert tunnel.gateway.dropped() == {"BAD_TAG": len(forged)}
    # And they have not used up the counters of the genuine ones.
    assert len(tunnel.arrive([sent])) == len(reference(setup.suite, sent))


def test_a_train_of_udp_is_one_write_to_a_kernel_that_can_cut_it() -> None:
    for uso, writes in ((True, 1), (False, 40)):
        tunnel = Tunnel(Setup(1, client_bulk=True, gateway_bulk=True, uso=uso))
        packet = bytearray(struct.pack(">IHBB", 6 << 28, 0, UDP, 64) + SOURCE_6 + SOURCE_6[:15] + b"\1")
        packet += struct.pack(">HHHH", 7, 9, 208, 0) + bytes(200)
        set_length(packet)
        leave_checksum(packet, 40, UDP)
        train = [struct.pack("=BBHHHH", 1, 0, 0, 0, 40, 6) + bytes(packet)] * 40
        tunnel.warm(train)
        tunnel.client.tun.pending.extend(train)
        tunnel.client.turn()
        assert tunnel.arrive([tunnel.sent()]) == [kernel_segments(train[0])[0]] * 40
        assert len(tunnel.gateway.tun.written) == writes
