"""REATTACH_REQUEST, _ACK and _FAIL as bytes: sizes, round trips, and what is refused."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpn.protocol import keys, reattach
from jvpn.protocol.constants import (
    MAX_REPORTS,
    REATTACH_ACK_MAX_SIZE,
    REATTACH_REQUEST_SIZE,
    PacketType,
    Transport,
)
from jvpn.protocol.keys import SessionSecrets, steering_id
from jvpn.protocol.reattach import Ack, Cause, Fail, Report, Request, Result
from jvpn.protocol.suites import suite
from jvpn.protocol.wire import Header, WireError
from jvpn.session.machine import LOSS_CAUSES, VOLUNTARY_CAUSES, Reason

SECRETS = SessionSecrets(suite(1), b"s" * 32, b"p" * 32)
SALT = b"0123456789abcdef"
ID = steering_id(SECRETS, 3)
U64, U32, U16 = (st.integers(0, 2**bits - 1) for bits in (64, 32, 16))
REPORTS = st.lists(
    st.builds(Report, U32, U64, st.binary(min_size=32, max_size=32)), max_size=MAX_REPORTS
).map(tuple)
REQUESTS = st.builds(
    Request,
    U64,
    U32,
    U64,
    st.sampled_from(Cause),
    st.sampled_from(Transport),
    U16,
    st.binary(min_size=16, max_size=16),
    REPORTS,
)
ACKS = st.builds(
    Ack,
    U64,
    st.sampled_from(Result),
    U32,
    U64,
    U32,
    st.binary(min_size=16, max_size=16),
    U16,
    st.binary(min_size=16, max_size=16),
    REPORTS,
)
WORDS = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_", max_size=60)
REQUEST = Request(7, 3, 9, Cause.TRANSPORT_DEAD, Transport.UDP, 0, b"c" * 16)
ACK = Ack(7, Result.BOUND, 3, 9, 8, bytes(16), 4500, b"c" * 16)


@given(REQUESTS, st.integers(0, 2**64 - 1), st.sampled_from((1, 2)))
def test_requests_come_back_and_have_one_size(request: Request, counter: int, number: int) -> None:
    secrets = SessionSecrets(suite(number), b"s" * 32, b"p" * 32)
    sid = steering_id(secrets, request.path_index)
    datagram = reattach.seal_request(secrets, sid, counter, request)
    assert len(datagram) == REATTACH_REQUEST_SIZE
    assert Header.decode(datagram) == Header(PacketType.REATTACH_REQUEST, sid, counter)
    assert reattach.open_request(secrets, request.path_index, datagram) == request


@given(ACKS)
def test_acks_come_back_and_are_no_longer_than_requests(ack: Ack) -> None:
    datagram = reattach.seal_ack(SECRETS, SALT, ID, ack)
    assert len(datagram) <= min(REATTACH_ACK_MAX_SIZE, REATTACH_REQUEST_SIZE)
    assert Header.decode(datagram) == Header(PacketType.REATTACH_ACK, ID)
    assert reattach.open_ack(SECRETS, datagram) == ack


@given(st.builds(Fail, U64, U64, U32, WORDS, WORDS))
def test_fails_come_back(fail: Fail) -> None:
    datagram = reattach.seal_fail(SECRETS, SALT, ID, fail)
    assert len(datagram) <= REATTACH_ACK_MAX_SIZE
    assert Header.decode(datagram).type is PacketType.REATTACH_FAIL
    assert reattach.open_fail(SECRETS, datagram) == fail


def test_a_fail_that_would_be_longer_than_its_request_is_not_made() -> None:
    with pytest.raises(ValueError, match="exceeds"):
        reattach.seal_fail(SECRETS, SALT, ID, Fail(1, 2, 3, "X" * 120, "Y" * 120))


def test_no_bit_of_any_of_them_can_be_changed() -> None:
    for datagram, opener in (
        (reattach.seal_request(SECRETS, ID, 5, REQUEST), lambda d: reattach.open_request(SECRETS, 3, d)),
        (reattach.seal_ack(SECRETS, SALT, ID, ACK), lambda d: reattach.open_ack(SECRETS, d)),
        (
            reattach.seal_fail(SECRETS, SALT, ID, Fail(1, 2, 3, "NO")),
            lambda d: reattach.open_fail(SECRETS, d),
        ),
    ):
        for at in range(len(datagram)):
            if len(datagram) == REATTACH_REQUEST_SIZE and 20 <= at < 64:
                continue  # the ticket is sealed by itself, for whoever does not know the session
            forged = datagram[:at] + bytes((datagram[at] ^ 4,)) + datagram[at + 1 :]
            with pytest.raises(WireError, match="bad_proof"):
                opener(forged)


def test_a_request_opens_on_its_index_only() -> None:
    datagram = reattach.seal_request(SECRETS, ID, 5, REQUEST)
    with pytest.raises(WireError, match="bad_proof"):
        reattach.open_request(SECRETS, 4, datagram)


def test_answers_do_not_open_as_each_other_nor_under_another_salt() -> None:
    ack = reattach.seal_ack(SECRETS, SALT, ID, ACK)
    with pytest.raises(WireError, match="bad_proof"):
        reattach.open_ack(SECRETS, ack[:20] + b"X" + ack[21:])
    fail = reattach.seal_fail(SECRETS, SALT, ID, Fail(1, 2, 3, "NO"))
    with pytest.raises(WireError):
        reattach.open_ack(SECRETS, fail)
    with pytest.raises(WireError):
        reattach.open_fail(SECRETS, ack)


@pytest.mark.parametrize("size", [0, 20, 36, 52, 257, 300])
def test_answers_of_impossible_length_are_refused(size: int) -> None:
    datagram = reattach.seal_ack(SECRETS, SALT, ID, ACK)
    data = (datagram + bytes(300))[:size]
    for opener in (reattach.open_ack, reattach.open_fail):
        with pytest.raises(WireError):
            opener(SECRETS, data)


def sealed_request(plaintext: bytes) -> bytes:
    """Proven nonsense: what only a key holder can send."""
    header = Header(PacketType.REATTACH_REQUEST, ID, 1).encode()
    key = keys.reattach_key(SECRETS)
    return header + bytes(44) + SECRETS.suite.aead(key).encrypt(keys.nonce(3, 1), plaintext, header)


def request_plaintext(
    index: int = 3, cause: int = 1, transport: int = 1, n: int = 0, tail: bytes = b""
) -> bytes:
    fixed = struct.pack(">QIQBBH16sB", 1, index, 1, cause, transport, 0, bytes(16), n)
    return (fixed + tail).ljust(REATTACH_REQUEST_SIZE - 64 - 16, b"\0")


@pytest.mark.parametrize(
    "plaintext",
    [
        request_plaintext(index=4),
        request_plaintext(cause=0),
        request_plaintext(cause=9),
        request_plaintext(transport=0),
        request_plaintext(transport=4),
        request_plaintext(n=4),
        request_plaintext(n=255),
        request_plaintext(tail=b"\1"),
        request_plaintext()[:-1] + b"\1",
    ],
)
def test_proven_nonsense_is_refused(plaintext: bytes) -> None:
    with pytest.raises(WireError, match="bad_reattach"):
        reattach.open_request(SECRETS, 3, sealed_request(plaintext))


def test_the_good_plaintext_of_the_test_before_is_good() -> None:
    assert reattach.open_request(SECRETS, 3, sealed_request(request_plaintext())).attempt == 1


@pytest.mark.parametrize(
    "plaintext", [b"", bytes(19), bytes(20) + b"\5abc\0", bytes(20) + b"\0\0x", bytes(20) + b"\1\xff\0"]
)
def test_a_proven_fail_of_nonsense_is_refused(plaintext: bytes) -> None:
    header = Header(PacketType.REATTACH_FAIL, ID).encode()
    key = keys.reply_key(SECRETS, SALT)
    datagram = header + SALT + SECRETS.suite.aead(key).encrypt(bytes(12), plaintext, header)
    with pytest.raises(WireError):
        reattach.open_fail(SECRETS, datagram)


def test_every_cause_is_a_reason_to_reattach() -> None:
    assert {Reason[cause.name] for cause in Cause} == LOSS_CAUSES | VOLUNTARY_CAUSES
