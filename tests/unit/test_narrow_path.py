"""A path that carries less than the TUN's MTU: fragments, Packet Too Big, MSS; and what PATH says about it."""

import random
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lossless_pair import START_MS, LossyPair, packet, superpacket

from jvpn.protocol.constants import PacketType
from jvpn.protocol.offload import ones_sum
from jvpn.protocol.paths import MtuAck, MtuProbe, PathError, decode
from workers.commands import MtuAnswered, SendMtuProbe, SetPathMtu
from workers.counters import Counter
from workers.fragments import IN_PROGRESS, FragmentError, Reassembly, fragments
from workers.narrow import clamp_mss, packet_too_big

NOW = START_MS
L4 = 1280 - 72


def narrow(pair: LossyPair, *, settled: bool) -> None:
    for end in (pair.client, pair.gateway):
        index = end.session.path.index if end.session.path else 0
        end.table.set_path_mtu(SetPathMtu(1, 0, index, 1280, settled))


def longest(pair: LossyPair) -> int:
    return max(len(datagram) for _, _, datagram in pair.network.sent) + 28


@pytest.mark.parametrize("size", [L4, L4 + 1, 1280, 1400])
def test_long_packets_arrive_whole_in_datagrams_that_fit(size: int) -> None:
    pair = LossyPair()
    narrow(pair, settled=False)
    for sender, receiver in ((pair.client, pair.gateway), (pair.gateway, pair.client)):
        sender.send(NOW, 1, 2, size=size)
        pair.settle(NOW)
        assert [w[10:] for w in receiver.tun.written] == [packet(sender.up, n, size) for n in (1, 2)]
        assert receiver.counters[Counter.REASSEMBLED_PACKETS] == (2 if size > L4 else 0)
        assert receiver.dropped() == {}
    assert longest(pair) <= 1280


def test_udp_superpackets_with_long_segments_arrive_too() -> None:
    pair = LossyPair()
    narrow(pair, settled=True)
    whole = bytearray(superpacket(True, 1, 6))
    struct.pack_into("=H", whole, 4, 1300)
    pair.client.tun.pending.append(bytes(whole))
    pair.settle(NOW)
    assert sum(len(w) - 38 for w in pair.gateway.tun.written) == 6000
    assert longest(pair) <= 1280


def test_fragments_that_were_lost_go_again_as_the_packet_they_were_part_of() -> None:
    for lost in ((0, 1), (0,), (1,), (0, 1, 2, 3), (1, 2)):
        pair = LossyPair()
        narrow(pair, settled=False)
        count = iter(range(100))
        pair.impair(
            lambda datagrams, lost=lost, count=count: [[d] for d in datagrams if next(count) not in lost]
        )
        pair.client.send(NOW, 1, 2, size=1400)
        pair.settle(NOW)
        late = [datagram for _, _, datagram in pair.network.sent]
        pair.alive()
        ours = pair.lose(NOW)
        theirs = pair.bind_gateway(NOW, 1, ours)
        pair.client.rebind(NOW, pair.client.on(1))
        narrow(pair, settled=False)
        pair.client.rebind(NOW, pair.client.on(1), resend=theirs)
        pair.settle(NOW)
        assert sorted(pair.gateway.numbers()) == [1, 2]
        assert longest(pair) <= 1280
        pair.gateway.rebind(NOW, pair.gateway.on(0))
        pair.network.deliver(late, pair.client.address, pair.gateway.address)
        pair.settle(NOW)
        assert sorted(pair.gateway.numbers()) == [1, 2]


# Packet Too Big


def df(up: bool, number: int, size: int) -> bytes:
    made = bytearray(packet(up, number, size))
    made[6] |= 0x40
    return bytes(made)


def test_what_must_not_be_fragmented_is_answered_once_that_is_certain() -> None:
    pair = LossyPair()
    narrow(pair, settled=True)
    client = pair.client
    client.tun.pending.append(bytes(10) + df(True, 1, 1400))
    pair.settle(NOW)
    (answer,) = (written[10:] for written in client.tun.written)
    assert answer[9] == 1
    assert answer[12:20] == bytes((10, 8, 0, 1, 10, 8, 0, 2))
    assert ones_sum(answer[:20]) == ones_sum(answer[20:]) == 0xFFFF
    assert struct.unpack_from(">BBxxxxH", answer, 20) == (3, 4, 1280)
    assert answer[28:] == df(True, 1, 1400)[:28]
    assert pair.gateway.numbers() == []
    # A flood is not answered packet by packet, and loses nothing.
    client.tun.pending.extend(bytes(10) + df(True, n, 1400) for n in (2, 3))
    pair.settle(NOW)
    assert len(client.tun.written) == 1
    assert pair.gateway.numbers() == [2, 3]
    # What every IPv6 path carries is never refused, and what may be fragmented neither.
    client.tun.pending.append(bytes(10) + df(True, 4, 1280))
    client.send(NOW + 20, 5, size=1400)
    pair.settle(NOW + 20)
    assert len(client.tun.written) == 1
    assert pair.gateway.numbers() == [2, 3, 4, 5]


def test_ipv6_is_answered_with_as_much_as_fits() -> None:
    ends = bytes.fromhex("fd08" + "00" * 13 + "02" + "fd08" + "00" * 13 + "01")
    long = struct.pack(">IHBB", 6 << 28, 1360, 17, 64) + ends + random.Random(1).randbytes(1360)
    answer = packet_too_big(memoryview(long), 1280)
    assert answer is not None
    assert len(answer) == 1280
    assert answer[8:40] == ends[16:] + ends[:16]
    assert struct.unpack_from(">BBxxI", answer, 40) == (2, 0, 1280)
    pseudo = answer[8:40] + struct.pack(">II", len(answer) - 40, 58)
    assert ones_sum(pseudo + answer[40:]) == 0xFFFF
    error = bytearray(long)
    error[6], error[40] = 58, 1
    assert packet_too_big(memoryview(error), 1280) is None


# MSS


def syn(options: bytes, flags: int = 2) -> bytearray:
    size = 20 + len(options)
    tcp = struct.pack(">HHIIBBHHH", 1, 2, 3, 4, size // 4 << 4, flags, 100, 0, 0) + options
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + size, 7, 0x4000, 64, 6, 0) + bytes(
        (10, 8, 0, 2, 10, 8, 0, 1)
    )
    made = bytearray(head + tcp)
    struct.pack_into(">H", made, 36, 0xFFFF - tcp_sum(made))
    return made


def tcp_sum(made: bytearray) -> int:
    return ones_sum(made[12:20] + struct.pack(">II", len(made) - 20, 6) + made[20:])


@given(
    mss=st.integers(0, 65_535),
    mtu=st.integers(1188, 1400),
    before=st.lists(st.sampled_from((b"\1", b"\3\3\7", b"\4\2")), max_size=3),
)
def test_syns_ask_for_no_more_than_fits_and_stay_valid(mss: int, mtu: int, before: list[bytes]) -> None:
    options = b"".join(before) + struct.pack(">BBH", 2, 4, mss)
    made = syn(options.ljust(-(-len(options) // 4) * 4, b"\0"))
    at = 40 + len(b"".join(before)) + 2
    clamp_mss(memoryview(made), mtu, partial=False)
    assert struct.unpack_from(">H", made, at)[0] == min(mss, mtu - 40)
    assert tcp_sum(made) == 0xFFFF


@given(options=st.binary(max_size=40), flags=st.integers(0, 255), partial=st.booleans())
def test_any_options_do_no_harm(options: bytes, flags: int, partial: bool) -> None:
    made = syn(options.ljust(-(-len(options) // 4) * 4, b"\1"), flags)
    before = bytes(made)
    clamp_mss(memoryview(made), 1208, partial)
    assert len(made) == len(before)
    assert flags & 2 or made == before


# Reassembly


@given(
    body=st.binary(min_size=1, max_size=3000),
    room=st.integers(100, 1400),
    order=st.randoms(use_true_random=False),
    resent=st.booleans(),
)
def test_fragments_in_any_order_make_the_whole(
    body: bytes, room: int, order: random.Random, resent: bool
) -> None:
    parts = list(fragments(body, room, 7, resent))
    assert all(len(part) <= room for part in parts)
    order.shuffle(parts)
    reassembly = Reassembly()
    results = [reassembly.add(3, 0, memoryview(part)) for part in parts]
    assert results[:-1] == [None] * (len(parts) - 1)
    assert results[-1] == (PacketType.RESENT if resent else PacketType.DATA, memoryview(body))


@given(st.lists(st.binary(max_size=40), max_size=60))
def test_garbage_is_refused_and_bounded(parts: list[bytes]) -> None:
    reassembly = Reassembly()
    for part in parts:
        try:
            reassembly.add(0, 0, memoryview(part))
        except FragmentError:
            continue
    assert len(reassembly._packets) <= IN_PROGRESS


def test_parts_of_two_senders_generations_do_not_make_one_packet() -> None:
    """A worker that replaces another counts its packets anew, and what was lost of the old one's stays open."""
    reassembly = Reassembly()
    (lost, _), (first, second) = (list(fragments(bytes((n,)) * 100, 60, 1, False)) for n in (1, 2))
    assert reassembly.add(0, 0, memoryview(lost)) is None
    assert reassembly.add(0, 1, memoryview(second)) is None
    assert reassembly.add(0, 1, memoryview(first)) == (PacketType.DATA, memoryview(bytes((2,)) * 100))


def test_packets_that_stay_incomplete_make_room() -> None:
    reassembly = Reassembly()
    for number in range(IN_PROGRESS + 5):
        part, *_ = fragments(bytes(100), 60, number, False)
        assert reassembly.add(0, 0, memoryview(part)) is None
    assert reassembly.take_dropped() == 5


# PATH


def test_a_probe_is_answered_in_its_own_length_and_teaches_the_gateway() -> None:
    pair = LossyPair()
    client, gateway = pair.client, pair.gateway
    for settled in (False, True):
        path = msgspec.structs.replace(client.on(0), mtu=1400, settled=settled)
        client.answers.send_mtu_probe(SendMtuProbe(1, 0, path, 1450, 77))
        assert client.session.path is not None
        pair.settle(NOW)
        assert gateway.session.path is not None
        assert (gateway.session.path.mtu, gateway.session.path.settled) == (1400 - 72, settled)
    assert {len(datagram) + 28 for _, _, datagram in pair.network.sent} == {1450}
    assert client.reports == [MtuAnswered(0, 0, 0, 77)] * 2
    # It stays known when the same path is bound again, and is forgotten with the path.
    gateway.rebind(NOW, gateway.on(0))
    assert gateway.session.path.mtu == 1400 - 72
    gateway.rebind(NOW, gateway.on(1))
    assert gateway.session.path.mtu == 65_535


def test_only_the_bound_path_teaches() -> None:
    pair = LossyPair()
    path = msgspec.structs.replace(pair.client.on(1), mtu=1280)
    pair.client.answers.send_mtu_probe(SendMtuProbe(1, 0, path, 1300, 77))
    pair.settle(NOW)
    assert pair.gateway.session.path is not None
    assert pair.gateway.session.path.mtu == 65_535
    assert pair.client.reports == [MtuAnswered(0, 1, 0, 77)]


@pytest.mark.parametrize("message", [MtuProbe(5, 1500, 1400, True), MtuAck(5, 1400, 0, False)])
def test_its_plaintext_survives_and_padding_must_be_zero(message: MtuProbe | MtuAck) -> None:
    encoded = message.encode(1000)
    assert len(encoded) == 1000
    assert decode(encoded) == message
    assert type(decode(encoded)) is type(message)
    with pytest.raises(PathError):
        decode(encoded[:-1] + b"\1")
    assert len(message.encode(3)) == 48
