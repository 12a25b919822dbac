"""PATH plaintexts byte by byte, and what a challenge depends on."""

import hmac

import pytest

from jvpn.protocol.paths import (
    PathError,
    Probe,
    ProbeAck,
    challenge,
    challenge_slot,
    challenge_valid,
    decode,
)

KEY = bytes(range(32))
PATH = {
    "session_id": b"s" * 16,
    "source": b"a" * 16,
    "port": 5001,
    "local": b"b" * 16,
    "local_port": 443,
    "transport": 1,
}


def test_probe_bytes() -> None:
    encoded = Probe(0x0102030405060708, 9, 10).encode()
    assert encoded.hex() == "01000000" + "0102030405060708" + f"{9:016x}" + f"{10:016x}" + "00" * 20
    assert decode(encoded) == Probe(0x0102030405060708, 9, 10)


def test_probe_ack_bytes() -> None:
    ack = ProbeAck(3, 0x0102030405060708, 9, 10, b"c" * 16, 77)
    encoded = ack.encode()
    assert encoded.hex() == (
        "02030000" + "0102030405060708" + f"{9:016x}" + f"{10:016x}" + "63" * 16 + f"{77:08x}"
    )
    assert decode(encoded) == ack
    assert len(encoded) == len(Probe(1, 2, 3).encode())


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        Probe(1, 2, 3).encode()[:-1],
        Probe(1, 2, 3).encode() + b"\0",
        b"\0" + Probe(1, 2, 3).encode()[1:],
        b"\5" + Probe(1, 2, 3).encode()[1:],
        b"\1\0\0\1" + Probe(1, 2, 3).encode()[4:],
        Probe(1, 2, 3).encode()[:-1] + b"\1",
    ],
)
def test_anything_else_is_refused(broken: bytes) -> None:
    with pytest.raises(PathError):
        decode(broken)


def test_a_challenge_is_the_mac_the_protocol_describes() -> None:
    message = b"s" * 16 + b"a" * 16 + b"\x13\x89" + b"b" * 16 + b"\x01\xbb" + b"\1" + bytes(7) + b"\7"
    assert challenge(KEY, **PATH, slot=7) == hmac.digest(KEY, message, "sha256")[:16]


def test_a_challenge_proves_one_path_for_two_slots() -> None:
    made = challenge(KEY, **PATH, slot=7)
    assert challenge_valid(made, KEY, **PATH, slot=7)
    assert challenge_valid(made, KEY, **PATH, slot=8)
    assert not challenge_valid(made, KEY, **PATH, slot=9)
    assert not challenge_valid(made, KEY, **PATH, slot=6)
    assert not challenge_valid(made, bytes(32), **PATH, slot=7)
    other = {
        "session_id": b"t" * 16,
        "source": b"c" * 16,
        "port": 5002,
        "local": b"d" * 16,
        "local_port": 444,
    }
    for name, value in {**other, "transport": 2}.items():
        assert not challenge_valid(made, KEY, **{**PATH, name: value}, slot=7), name
    assert not challenge_valid(b"", KEY, **PATH, slot=0)


def test_a_slot_is_a_minute() -> None:
    assert [challenge_slot(s * 10**9) for s in (0, 59, 60, 119, 120)] == [0, 0, 1, 1, 2]
