"""The validity rules of a DATA plaintext, each broken by itself, and what the reference makes of valid ones."""

import struct

import pytest

from jvpn.protocol import offload
from jvpn.protocol.offload import (
    LAST,
    OFFLOAD,
    PARTIAL,
    OffloadError,
    check,
    deliver,
    fill_checksum,
    ones_sum,
    segment,
)

PAYLOAD = bytes(range(256)) * 2


def ipv4(
    protocol: int, body: bytes, *, fragment: int = 0, options: bytes = b"", length: int | None = None
) -> bytes:
    size = 20 + len(options) + len(body)
    head = struct.pack(">BBHHHBBH", 0x45 + len(options) // 4, 0, length or size, 7, fragment, 64, protocol, 0)
    return head + bytes((10, 8, 0, 2, 10, 8, 0, 1)) + options + body


def ipv6(following: int, body: bytes) -> bytes:
    return struct.pack(">IHBB", 6 << 28, len(body), following, 64) + b"\xfd" * 16 + b"\xfe" * 16 + body


def tcp(flags: int = 0x18, words: int = 5, payload: bytes = PAYLOAD) -> bytes:
    head = struct.pack(">HHIIBBHHH", 1, 2, 1000, 5, words << 4, flags, 500, 0, 0)
    return head + b"\1" * max(words * 4 - 20, 0) + payload


def udp(payload: bytes = PAYLOAD) -> bytes:
    return struct.pack(">HHHH", 1, 2, 8 + len(payload), 0) + payload


def plaintext(flags: int, kind: int, size: int, start: int, last_field: int, packet: bytes) -> bytes:
    return OFFLOAD.pack(flags, kind, size, start, last_field) + packet


@pytest.mark.parametrize(
    "valid",
    [
        plaintext(0, 0, 0, 0, 0, ipv4(1, b"ping")),
        plaintext(0, 0, 0, 0, 0, ipv4(6, b"abc", fragment=0x2000)),
        plaintext(1, 0, 0, 20, 16, ipv4(6, tcp())),
        plaintext(1, 0, 0, 24, 6, ipv4(17, udp(), options=b"\1" * 4)),
        plaintext(1, 0, 0, 40, 16, ipv6(6, tcp())),
        plaintext(1, 0, 0, 48, 6, ipv6(60, b"\x11\0\1\4\0\0\0\0" + udp())),
        plaintext(1, 1, 512, 20, 3, ipv4(6, tcp())),
        plaintext(3, 1, 600, 20, 0, ipv4(6, tcp())),
        plaintext(1, 4, 512, 40, 0, ipv6(6, tcp(words=8))),
        plaintext(1, 5, 512, 20, 9, ipv4(17, udp())),
        plaintext(3, 5, 513, 40, 9, ipv6(17, udp())),
        # The last index whose slice still ends within a packet of 65 535 bytes.
        plaintext(1, 1, 512, 20, 126, ipv4(6, tcp())),
    ],
)
def test_valid(valid: bytes) -> None:
    inner = check(valid)
    assert inner[:5] == OFFLOAD.unpack_from(valid)
    assert inner.source == (bytes((10, 8, 0, 2)) if valid[8] >> 4 == 4 else b"\xfd" * 16)


@pytest.mark.parametrize(
    ("invalid", "reason"),
    [
        (b"", "bad_inner"),
        (plaintext(0, 0, 0, 0, 0, b"\x45" * 19), "bad_inner"),
        (plaintext(4, 0, 0, 0, 0, ipv4(1, b"ping")), "bad_offload"),
        (plaintext(0, 0, 0, 0, 0, b"\x55" + ipv4(1, b"ping")[1:]), "bad_inner"),
        (plaintext(0, 0, 0, 0, 0, b"\x44" + ipv4(1, b"ping")[1:]), "bad_inner"),
        (plaintext(0, 0, 0, 0, 0, ipv4(1, b"ping")[:-1]), "bad_inner"),
        (plaintext(0, 0, 0, 0, 0, ipv4(1, b"ping") + b"x"), "bad_inner"),
        (plaintext(0, 0, 0, 0, 0, ipv6(58, b"ping")[:-1]), "bad_inner"),
        (plaintext(0, 0, 0, 0, 0, ipv6(0, b"\x11\xff")), "bad_inner"),
        (plaintext(1, 0, 0, 24, 16, ipv4(6, tcp())), "bad_offload"),
        (plaintext(1, 0, 0, 20, 6, ipv4(6, tcp())), "bad_offload"),
        (plaintext(1, 0, 0, 20, 2, ipv4(1, b"ping")), "bad_offload"),
        (plaintext(1, 0, 0, 20, 16, ipv4(6, tcp(), fragment=1)), "bad_offload"),
        (plaintext(1, 0, 0, 20, 16, ipv4(6, tcp()[:18])), "bad_inner"),
        (plaintext(0, 1, 512, 20, 0, ipv4(6, tcp())), "bad_offload"),
        (plaintext(1, 2, 512, 20, 0, ipv4(6, tcp())), "bad_offload"),
        (plaintext(1, 3, 512, 20, 0, ipv4(17, udp())), "bad_offload"),
        (plaintext(1, 4, 512, 20, 0, ipv4(6, tcp())), "bad_offload"),
        (plaintext(1, 1, 512, 40, 0, ipv6(6, tcp())), "bad_offload"),
        (plaintext(1, 5, 512, 20, 0, ipv4(6, tcp())), "bad_offload"),
        (plaintext(1, 1, 512, 20, 0, ipv4(17, udp())), "bad_offload"),
        (plaintext(1, 1, 512, 21, 0, ipv4(6, tcp())), "bad_offload"),
        (plaintext(1, 1, 512, 20, 0, ipv4(6, tcp(), fragment=0x2000)), "bad_offload"),
        (plaintext(1, 1, 512, 20, 0, ipv4(6, tcp(flags=0x12))), "bad_inner"),
        (plaintext(1, 1, 512, 20, 0, ipv4(6, tcp(flags=0x14))), "bad_inner"),
        (plaintext(1, 1, 512, 20, 0, ipv4(6, tcp(flags=0x30))), "bad_inner"),
        (plaintext(1, 1, 512, 20, 0, ipv4(6, tcp(words=4))), "bad_inner"),
        (plaintext(1, 1, 512, 20, 0, ipv4(6, tcp(words=15, payload=b""))[:60]), "bad_inner"),
        (plaintext(1, 1, 511, 20, 0, ipv4(6, tcp())), "bad_offload"),
        (plaintext(1, 1, 513, 20, 0, ipv4(6, tcp())), "bad_offload"),
        (plaintext(3, 1, 511, 20, 0, ipv4(6, tcp())), "bad_offload"),
        (plaintext(3, 1, 64, 20, 0, ipv4(6, tcp(payload=b""))), "bad_offload"),
        (plaintext(1, 1, 63, 20, 0, ipv4(6, tcp(payload=bytes(63)))), "bad_offload"),
        (plaintext(1, 1, 512, 20, 127, ipv4(6, tcp())), "bad_offload"),
        (plaintext(1, 4, 512, 48, 0, ipv6(43, b"\6\0\0\0\0\0\0\0" + tcp())), "bad_inner"),
    ],
)
def test_invalid(invalid: bytes, reason: str) -> None:
    with pytest.raises(OffloadError) as caught:
        check(invalid)
    assert caught.value.reason == reason
    with pytest.raises(OffloadError):
        deliver([invalid])


def superpacket(kind: int, size: int, packet: bytes, start: int, offset: int, flags: int = 1) -> bytes:
    return struct.pack("=BBHHHH", flags, kind, 0, size, start, offset) + packet


def test_a_superpacket_is_cut_with_unchanged_headers_and_the_last_marked() -> None:
    packet = ipv4(6, tcp(flags=0x99))
    pieces = segment(superpacket(1, 200, packet, 20, 16))
    assert [OFFLOAD.unpack_from(piece) for piece in pieces] == [
        (PARTIAL, 1, 200, 20, 0),
        (PARTIAL, 1, 200, 20, 1),
        (PARTIAL | LAST, 1, 200, 20, 2),
    ]
    assert {piece[8:48] for piece in pieces} == {packet[:40]}
    assert b"".join(piece[48:] for piece in pieces) == PAYLOAD


def test_a_narrow_path_cuts_tcp_finer_but_never_udp() -> None:
    assert [len(p) - 8 for p in segment(superpacket(1, 400, ipv4(6, tcp()), 20, 16), 240)] == [240, 240, 152]
    assert [len(p) - 8 for p in segment(superpacket(5, 400, ipv4(17, udp()), 20, 6), 240)] == [428, 140]


def test_segments_delivered_alone_carry_what_belongs_to_them() -> None:
    packets = [
        packet for _, packet in deliver(segment(superpacket(1, 200, ipv4(6, tcp(flags=0x99)), 20, 16)))
    ]
    assert [len(packet) for packet in packets] == [240, 240, 152]
    assert [struct.unpack_from(">H", packet, 2)[0] for packet in packets] == [240, 240, 152]
    assert [struct.unpack_from(">H", packet, 4)[0] for packet in packets] == [7, 8, 9]
    assert [struct.unpack_from(">I", packet, 24)[0] for packet in packets] == [1000, 1200, 1400]
    # CWR 0x80 on the first only, PSH 8 and FIN 1 on the last only.
    assert [packet[33] for packet in packets] == [0x90, 0x10, 0x19]
    assert {ones_sum(packet[:20]) for packet in packets} == {0xFFFF}


def test_what_cannot_be_said_as_segments_goes_as_whole_packets() -> None:
    for odd in (
        superpacket(1, 50, ipv4(6, tcp()), 20, 16),
        superpacket(1, 200, ipv4(6, tcp(flags=0x30)), 20, 16),
    ):
        pieces = segment(odd)
        assert {piece[1] for piece in pieces} == {0}
        assert b"".join(packet[40:] for _, packet in deliver(pieces)) == PAYLOAD


def test_a_checksum_at_an_unknown_place_is_filled_in() -> None:
    packet = ipv4(132, bytes(12) + PAYLOAD)
    (piece,) = segment(superpacket(0, 0, packet, 20, 8))
    assert piece[:8] == bytes(8)
    assert ones_sum(piece[28:]) == 0xFFFF
    assert piece[8:36] == packet[:28]


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        superpacket(3, 200, ipv4(17, udp()), 20, 6),
        superpacket(1, 200, ipv4(6, tcp()), 20, 16, flags=0),
        superpacket(1, 0, ipv4(6, tcp()), 20, 16),
        superpacket(1, 200, ipv4(6, tcp(words=4)), 20, 16),
        superpacket(1, 200, ipv4(6, tcp()), 600, 16),
        superpacket(0, 0, ipv4(6, tcp()), 600, 16),
    ],
)
def test_a_broken_superpacket_is_refused(broken: bytes) -> None:
    with pytest.raises(OffloadError):
        segment(broken)


def test_checksum_of_rfc_1071() -> None:
    # The example of RFC 1071, section 3.
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert ones_sum(data) == 0xDDF2
    assert ones_sum(data + b"\1") == ones_sum(data + b"\1\0")
    assert ones_sum(bytes(6)) == 0
    assert ones_sum(b"\xff" * 6) == 0xFFFF
    assert fill_checksum(data + bytes(2), 0, 8)[8:] == bytes.fromhex("220d")
    # A sum of zero is written as its other form.
    assert fill_checksum(b"\xff\xff\0\0", 0, 2) == b"\xff\xff\xff\xff"
    assert offload.Segmentation(5).name == "UDP"
