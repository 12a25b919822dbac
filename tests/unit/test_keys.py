"""The key schedule, written a second time below with `cryptography`'s HKDF, and what must differ."""

import hashlib
import hmac
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.hashes import SHA256, BLAKE2s
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from jvpn.protocol import keys
from jvpn.protocol.constants import Direction
from jvpn.protocol.keys import SessionSecrets
from jvpn.protocol.suites import hkdf_expand_each, suite

UP, DOWN = Direction.CLIENT_TO_GATEWAY, Direction.GATEWAY_TO_CLIENT
HASHES = {1: SHA256(), 2: BLAKE2s(32)}
DIGEST_NAMES = {1: "sha256", 2: "blake2s"}
HANDSHAKE_HASH, K1, K2 = bytes(range(32)), b"1" * 32, b"2" * 32


def expand(number: int, prk: bytes, info: bytes, n: int = 32) -> bytes:
    return HKDFExpand(HASHES[number], n, info).derive(prk)


def both(number: int, salt: bytes, ikm: bytes, info: bytes) -> bytes:
    return HKDF(HASHES[number], 32, salt, info).derive(ikm)


@pytest.fixture(params=[1, 2], ids=["AESGCM", "ChaChaPoly"])
def secrets(request: pytest.FixtureRequest) -> SessionSecrets:
    return keys.session_secrets(suite(request.param), HANDSHAKE_HASH, K1, K2)


def test_session_and_first_phase(secrets: SessionSecrets) -> None:
    number = secrets.suite.number
    assert secrets.session == both(number, HANDSHAKE_HASH, K1 + K2, b"jvp1 session")
    assert secrets.phase == both(number, HANDSHAKE_HASH, K1 + K2, b"jvp1 phase")
    assert secrets.phase_number == 0


@pytest.mark.parametrize("kem", [b"", b"k" * 32], ids=["dh", "hybrid"])
def test_next_phase_depends_on_secret_and_transcript(secrets: SessionSecrets, kem: bytes) -> None:
    number = secrets.suite.number
    after = keys.next_phase(secrets, dh=b"d" * 32, kem_secret=kem, rekey_init=b"init", rekey_response=b"resp")
    transcript = hashlib.new(DIGEST_NAMES[number], b"initresp").digest()
    assert after.phase == both(number, secrets.phase, b"d" * 32 + kem, b"jvp1 phase" + transcript)
    assert after.phase_number == 1
    assert after.session == secrets.session
    other = keys.next_phase(secrets, dh=b"d" * 32, kem_secret=kem, rekey_init=b"init", rekey_response=b"x")
    assert other.phase != after.phase


@pytest.mark.parametrize(("dh", "kem"), [(b"", b""), (b"d" * 31, b""), (b"d" * 32, b"k" * 31)])
def test_next_phase_refuses_odd_secrets(secrets: SessionSecrets, dh: bytes, kem: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        keys.next_phase(secrets, dh=dh, kem_secret=kem, rekey_init=b"", rekey_response=b"")


def test_packet_keys(secrets: SessionSecrets) -> None:
    number, phase, session = secrets.suite.number, secrets.phase, secrets.session
    assert keys.data_key(secrets, UP, 0) == expand(number, phase, b"jvp1 data\0\0\0\0")
    assert keys.data_key(secrets, DOWN, 0x010203) == expand(number, phase, b"jvp1 data\1\1\2\3")
    assert keys.control_key(secrets, DOWN, 1) == expand(number, phase, b"jvp1 control\1\0\0\1")
    assert keys.reattach_key(secrets) == expand(number, session, b"jvp1 reattach")
    salt = b"s" * 16
    assert keys.reply_key(secrets, salt) == expand(number, session, b"jvp1 reply" + salt)
    assert keys.steering_id(secrets, 0x01020304) == expand(number, session, b"jvp1 id\1\2\3\4", 8)


def test_no_two_uses_share_a_key(secrets: SessionSecrets) -> None:
    later = keys.next_phase(secrets, dh=b"d" * 32, rekey_init=b"", rekey_response=b"")
    made = [
        make(phase, direction, epoch)
        for make in (keys.data_key, keys.control_key)
        for phase in (secrets, later)
        for direction in Direction
        for epoch in (0, 1, 2**24 - 1)
    ]
    made += [
        keys.reattach_key(secrets),
        keys.reply_key(secrets, b"a" * 16),
        keys.reply_key(secrets, b"b" * 16),
    ]
    assert len(set(made)) == len(made)
    assert keys.reattach_key(later) == keys.reattach_key(secrets)
    assert keys.steering_id(later, 7) == keys.steering_id(secrets, 7) != keys.steering_id(secrets, 8)


def test_steering_ids_together_are_those_one_by_one(secrets: SessionSecrets) -> None:
    indexes = [0, 7, (1 << 32) - 1]
    found = keys.steering_ids(secrets, indexes)
    assert found == {n: keys.steering_id(secrets, n) for n in indexes}
    number = secrets.suite.number
    assert found[7] == expand(number, secrets.session, b"jvp1 id" + bytes((0, 0, 0, 7)), 8)


@pytest.mark.parametrize("key_size", [0, 1, 32, 63, 64, 65, 200])
def test_hmac_of_keys_shorter_and_longer_than_a_block(secrets: SessionSecrets, key_size: int) -> None:
    key, many = bytes(range(key_size)), [b"", b"data", b"d" * 500]
    expected = [hmac.new(key, data, DIGEST_NAMES[secrets.suite.number]).digest() for data in many]
    assert [secrets.suite.hmac(key, data) for data in many] == expected
    assert secrets.suite.hmacs(key, many) == expected


def test_expanding_several_takes_one_block_each(secrets: SessionSecrets) -> None:
    with pytest.raises(ValueError, match="32 bytes, not 33"):
        hkdf_expand_each(secrets.suite, secrets.session, [b"info"], 33)


def test_nonce_layout() -> None:
    assert keys.nonce(1, 2) == bytes.fromhex("00000001 0000000000000002")
    assert keys.nonce(2**32 - 1, 2**64 - 1) == b"\xff" * 12


def test_macs(secrets: SessionSecrets) -> None:
    which = secrets.suite
    hashed = DIGEST_NAMES[which.number]
    key = hashlib.new(hashed, b"jvp1 mac1" + b"G" * 32).digest()
    assert keys.mac1(which, b"G" * 32, b"INIT") == hmac.new(key, b"INIT", hashed).digest()[:16]
    assert keys.mac2(which, b"c" * 16, b"INIT") == hmac.new(b"c" * 16, b"INIT", hashed).digest()[:16]
    expected = both(which.number, b"", b"G" * 32, b"cookie" + b"r" * 16)
    assert keys.cookie_key(which, b"G" * 32, b"r" * 16) == expected


def test_numbers_that_do_not_fit_are_refused(secrets: SessionSecrets) -> None:
    for epoch in (-1, 2**24):
        with pytest.raises(ValueError, match="24 bits"):
            keys.data_key(secrets, UP, epoch)
    for index in (-1, 2**32):
        with pytest.raises(ValueError, match="32 bits"):
            keys.steering_id(secrets, index)
    with pytest.raises(ValueError, match="salt"):
        keys.reply_key(secrets, b"short")
    with pytest.raises(ValueError, match="32 bytes"):
        replace(secrets, phase=b"short")


def test_repr_shows_no_key(secrets: SessionSecrets) -> None:
    shown = f"{secrets!r} {secrets}"
    for secret in (secrets.session, secrets.phase):
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown
    assert "b'" not in shown
    assert 'b"' not in shown
