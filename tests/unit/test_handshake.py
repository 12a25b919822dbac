"""The handshake's datagrams: both ends agree, an independent Noise agrees, and nothing wild gets further."""

import struct
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise.connection import Keypair, NoiseConnection

from jvpn.protocol import handshake, keys
from jvpn.protocol.constants import MAX_CONTROL_DATAGRAM, PacketType
from jvpn.protocol.handshake import NO_PSK, HandshakeError, HandshakeResult, Initiator, InitOpened, Kem
from jvpn.protocol.noise import HandshakeState, LocalError
from jvpn.protocol.suites import suite, x25519_public
from jvpn.protocol.wire import Header

GATEWAY, CLIENT = bytes(range(32)), bytes(range(32, 64))
GATEWAY_PUBLIC, CLIENT_PUBLIC = x25519_public(GATEWAY), x25519_public(CLIENT)
SESSION_ID, RANDOM = b"S" * 16, b"R" * 8
PSK = b"k" * 32


def initiate(number: int = 1, psk: bytes = PSK, policy_name: str = "default", **changed: object) -> Initiator:
    arguments: dict[str, object] = {
        "static_private": CLIENT,
        "gateway_public": GATEWAY_PUBLIC,
        "ephemeral_private": b"e" * 32,
        "client_random": RANDOM,
        "timestamp_us": 1_700_000_000_000_001,
        "capabilities": 0x01020304,
    }
    return Initiator(suite(number), psk=psk, policy_name=policy_name, **(arguments | changed))  # type: ignore[arg-type]


def respond(opened: InitOpened, psk: bytes = PSK, **changed: object) -> tuple[bytes, HandshakeResult]:
    arguments: dict[str, object] = {
        "ephemeral_private": b"f" * 32,
        "session_id": SESSION_ID,
        "epoch": 0x010203,
        "kem": Kem.MLKEM768,
    }
    return opened.respond(psk, **(arguments | changed))  # type: ignore[arg-type]


def reason_of(call: Callable[[], object]) -> str:
    with pytest.raises(HandshakeError) as refused:
        call()
    return refused.value.reason


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("psk", [PSK, NO_PSK], ids=["psk", "none"])
@pytest.mark.parametrize("policy_name", ["", "default", "n" * 32])
def test_both_ends_agree(number: int, psk: bytes, policy_name: str) -> None:
    client = initiate(number, psk, policy_name)
    header = handshake.check_mac1(client.init_datagram, GATEWAY_PUBLIC)
    assert header == Header(PacketType.HANDSHAKE_INIT, RANDOM, suite=number)
    opened = handshake.read_init(client.init_datagram, GATEWAY)
    assert opened.client_public == CLIENT_PUBLIC
    assert (opened.timestamp_us, opened.capabilities) == (1_700_000_000_000_001, 0x01020304)
    assert (opened.policy_name, opened.client_random) == (policy_name, RANDOM)
    datagram, at_gateway = respond(opened, psk)
    at_client = client.read_response(datagram)
    assert at_client == at_gateway
    assert (at_client.session_id, at_client.epoch, at_client.kem) == (SESSION_ID, 0x010203, Kem.MLKEM768)
    assert keys.steering_id(at_client.secrets, 0) == keys.steering_id(at_gateway.secrets, 0)
    assert len(datagram) == 88 <= len(client.init_datagram) == 161 + len(policy_name)


def test_what_is_secret_is_in_no_datagram_and_no_repr() -> None:
    client = initiate(policy_name="internal")
    opened = handshake.read_init(client.init_datagram, GATEWAY)
    datagram, result = respond(opened)
    sent = client.init_datagram + datagram
    for hidden in (CLIENT_PUBLIC, GATEWAY_PUBLIC, b"internal", SESSION_ID):
        assert hidden not in sent
    shown = f"{client!r}{opened!r}{result!r}"
    for secret in (PSK, CLIENT, GATEWAY, result.secrets.session, result.secrets.phase):
        assert repr(secret)[2:-1] not in shown


@pytest.mark.parametrize("number", [1, 2])
def test_an_independent_noise_answers_and_agrees(number: int) -> None:
    client = initiate(number)
    init = client.init_datagram
    gateway = NoiseConnection.from_name(f"Noise_IKpsk2_25519_{suite(number).name}".encode())
    gateway.set_psks(PSK)
    gateway.set_prologue(b"JVP/1" + bytes((number,)) + init[:20])
    gateway.set_as_responder()
    gateway.set_keypair_from_private_bytes(Keypair.STATIC, GATEWAY)
    gateway.start_handshake()
    payload = bytes(gateway.read_message(init[20:-32]))
    assert payload == struct.pack(">QIB", 1_700_000_000_000_001, 0x01020304, 7) + b"default"
    message = bytes(gateway.write_message(SESSION_ID + bytes.fromhex("00002a 00")))
    response = bytes.fromhex("0210") + bytes((number, 0)) + RANDOM + bytes(8) + message
    result = client.read_response(response)
    assert (result.session_id, result.epoch, result.kem) == (SESSION_ID, 42, Kem.NONE)
    ours = keys.session_secrets(
        suite(number),
        gateway.get_handshake_hash(),
        gateway.noise_protocol.cipher_state_decrypt.k,
        gateway.noise_protocol.cipher_state_encrypt.k,
    )
    assert result.secrets == ours


def raw_init(payload: bytes, ephemeral: bytes = b"e" * 32, number: int = 1) -> bytes:
    """An INIT with any payload, as a client that does not keep the rules could make it."""
    header = Header(PacketType.HANDSHAKE_INIT, RANDOM, suite=number).encode()
    noise = HandshakeState(
        suite(number),
        "IKpsk2",
        initiator=True,
        static_private=CLIENT,
        remote_static=GATEWAY_PUBLIC,
        prologue=b"JVP/1" + bytes((number,)) + header,
        psk=PSK,
    )
    return header + noise.write_message(payload, ephemeral) + bytes(32)


def test_zeros_may_pad_an_init() -> None:
    payload = struct.pack(">QIB", 5, 6, 2) + b"ab"
    opened = handshake.read_init(raw_init(payload + bytes(500)), GATEWAY)
    assert (opened.timestamp_us, opened.capabilities, opened.policy_name) == (5, 6, "ab")


@pytest.mark.parametrize(
    "tail", [b"\x05abcd", b"\x21" + b"n" * 33, b"\x02a\xff", b"\x02a\n", b"\x02ab\0\1"], ids=repr
)
def test_payloads_that_break_the_rules(tail: bytes) -> None:
    init = raw_init(struct.pack(">QI", 5, 6) + tail)
    assert reason_of(lambda: handshake.read_init(init, GATEWAY)) == "bad_payload"


def changed(datagram: bytes, offset: int, value: int) -> bytes:
    return datagram[:offset] + bytes((value,)) + datagram[offset + 1 :]


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (0, 0x02, "wrong_type"),
        (0, 0x20, "reserved_bits"),
        (0, 0x77, "unknown_type"),
        (1, 0x20, "bad_version"),
        (1, 0x11, "reserved_bits"),
        (2, 0, "unknown_suite"),
        (2, 3, "unknown_suite"),
        (3, 1, "reserved_bits"),
        (19, 1, "reserved_bits"),
    ],
)
def test_headers_that_are_no_init(offset: int, value: int, reason: str) -> None:
    init = changed(initiate().init_datagram, offset, value)
    assert reason_of(lambda: handshake.check_mac1(init, GATEWAY_PUBLIC)) == reason
    assert reason_of(lambda: handshake.read_init(init, GATEWAY)) == reason


@pytest.mark.parametrize(
    ("size", "reason"),
    [(0, "truncated"), (19, "truncated"), (35, "bad_length"), (160, "bad_length"), (1233, "bad_length")],
)
def test_lengths_that_are_no_init(size: int, reason: str) -> None:
    init = initiate().init_datagram.ljust(size, b"\0")[:size]
    assert reason_of(lambda: handshake.check_mac1(init, GATEWAY_PUBLIC)) == reason
    assert reason_of(lambda: handshake.read_init(init, GATEWAY)) == reason


def test_mac1_covers_all_before_it_and_needs_the_gateways_key() -> None:
    init = initiate().init_datagram
    for offset in (4, 20, len(init) - 33, len(init) - 17):
        broken = changed(init, offset, init[offset] ^ 1)
        assert reason_of(partial(handshake.check_mac1, broken, GATEWAY_PUBLIC)) == "bad_mac1"
    assert reason_of(lambda: handshake.check_mac1(init, CLIENT_PUBLIC)) == "bad_mac1"


def test_a_random_that_was_changed_on_the_way_breaks_the_prologue() -> None:
    init = initiate().init_datagram
    assert reason_of(lambda: handshake.read_init(changed(init, 4, 0), GATEWAY)) == "authentication"


def test_a_low_order_ephemeral_is_refused() -> None:
    init = initiate().init_datagram
    assert reason_of(lambda: handshake.read_init(init[:20] + bytes(32) + init[52:], GATEWAY)) == "low_order"


def test_a_client_without_the_psk_gets_no_session() -> None:
    client = initiate(psk=NO_PSK)
    datagram, _ = respond(handshake.read_init(client.init_datagram, GATEWAY))
    assert reason_of(lambda: client.read_response(datagram)) == "authentication"


def test_forged_and_foreign_answers_do_not_spoil_the_genuine_one() -> None:
    client = initiate()
    genuine, at_gateway = respond(handshake.read_init(client.init_datagram, GATEWAY))
    foreign = initiate(client_random=b"Q" * 8, ephemeral_private=b"g" * 32)
    other, _ = respond(handshake.read_init(foreign.init_datagram, GATEWAY))
    assert reason_of(lambda: client.read_response(other)) == "not_an_answer"
    assert reason_of(lambda: client.read_response(changed(genuine, 2, 2))) == "not_an_answer"
    assert reason_of(lambda: client.read_response(genuine[:-1])) == "bad_length"
    assert reason_of(lambda: client.read_response(genuine + b"\0")) == "bad_length"
    assert reason_of(lambda: client.read_response(changed(genuine, 80, genuine[80] ^ 1))) == "authentication"
    assert reason_of(lambda: client.read_response(genuine[:20] + bytes(32) + genuine[52:])) == "low_order"
    assert client.read_response(genuine) == at_gateway
    assert reason_of(lambda: client.read_response(genuine)) == "answered"


def test_an_init_is_answered_once() -> None:
    opened = handshake.read_init(initiate().init_datagram, GATEWAY)
    respond(opened)
    with pytest.raises(LocalError):
        respond(opened, ephemeral_private=b"h" * 32)


def test_an_unknown_kem_is_refused() -> None:
    client = initiate()
    datagram, _ = respond(handshake.read_init(client.init_datagram, GATEWAY), kem=2)
    assert reason_of(lambda: client.read_response(datagram)) == "bad_payload"


@pytest.mark.parametrize("number", [1, 2])
def test_a_cookie_comes_back_as_mac2(number: int) -> None:
    client, cookie = initiate(number), b"c" * 16
    init = client.init_datagram
    assert not handshake.check_mac2(init, cookie)
    asked = handshake.cookie_datagram(init, GATEWAY_PUBLIC, cookie, b"s" * 16)
    assert len(asked) == 68 <= len(init)
    again = client.read_cookie(asked)
    assert again[:-16] == init[:-16]
    handshake.check_mac1(again, GATEWAY_PUBLIC)
    assert handshake.check_mac2(again, cookie)
    assert not handshake.check_mac2(again, b"d" * 16)
    datagram, at_gateway = respond(handshake.read_init(again, GATEWAY))
    assert client.read_response(datagram) == at_gateway


def test_a_cookie_for_another_init_is_refused() -> None:
    client, other = initiate(), initiate(timestamp_us=1)
    asked = handshake.cookie_datagram(other.init_datagram, GATEWAY_PUBLIC, b"c" * 16, b"s" * 16)
    assert reason_of(lambda: client.read_cookie(asked)) == "authentication"
    assert reason_of(lambda: client.read_cookie(asked[:-1])) == "bad_length"


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy_name": "n" * 33},
        {"policy_name": "naïve"},
        {"policy_name": "a\nb"},
        {"psk": b"short"},
        {"client_random": b"short"},
        {"timestamp_us": -1},
        {"capabilities": 2**32},
        {"static_private": b"short"},
        {"gateway_public": b"short"},
        {"gateway_public": bytes(32)},
        {"ephemeral_private": b"short"},
    ],
    ids=repr,
)
def test_a_callers_mistake_is_a_value_error(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each names its own argument
        initiate(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"psk": b""}, {"session_id": b""}, {"epoch": 2**24}, {"epoch": -1}], ids=repr
)
def test_a_gateways_mistake_is_a_value_error_and_changes_nothing(wrong: dict[str, object]) -> None:
    client = initiate()
    opened = handshake.read_init(client.init_datagram, GATEWAY)
    with pytest.raises(ValueError, match=r"bytes|bits"):
        respond(opened, **wrong)  # type: ignore[arg-type]
    client.read_response(respond(opened)[0])


def _survivors(datagram: bytes, client: Initiator) -> list[str]:
    """Which readers took the datagram; any exception but HandshakeError escapes."""
    readers: dict[str, Callable[[], object]] = {
        "check_mac1": lambda: handshake.check_mac1(datagram, GATEWAY_PUBLIC),
        "read_init": lambda: handshake.read_init(datagram, GATEWAY),
        "read_response": lambda: client.read_response(datagram),
        "read_cookie": lambda: client.read_cookie(datagram),
    }
    taken = []
    for name, read in readers.items():
        try:
            read()
        except HandshakeError:
            continue
        taken.append(name)
    return taken


@settings(max_examples=300, deadline=None)
@given(
    head=st.sampled_from(
        [b"", b"\x01\x10\x01\0", b"\x02\x10\x02\0" + RANDOM, b"\x03\x10\x01\0" + RANDOM + bytes(8)]
    ),
    body=st.one_of(
        st.binary(max_size=200),
        st.binary(min_size=141, max_size=MAX_CONTROL_DATAGRAM),
        st.sampled_from([48, 68, 72, 84]).map(bytes),
    ),
)
def test_wild_bytes_are_refused(head: bytes, body: bytes) -> None:
    assert _survivors(head + body, initiate()) == []


MUTATIONS = st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 255)), min_size=1, max_size=3)


@settings(max_examples=300, deadline=None)
@given(
    number=st.sampled_from([1, 2]),
    kind=st.sampled_from(["init", "response", "cookie"]),
    flips=MUTATIONS,
    cut=st.one_of(st.just(0), st.integers(-40, 40)),
)
def test_mutated_datagrams_are_refused(
    number: int, kind: str, flips: list[tuple[int, int]], cut: int
) -> None:
    client = initiate(number)
    init = client.init_datagram
    genuine = {
        "init": lambda: init,
        "response": lambda: respond(handshake.read_init(init, GATEWAY))[0],
        "cookie": lambda: handshake.cookie_datagram(init, GATEWAY_PUBLIC, b"c" * 16, b"s" * 16),
    }[kind]()
    mutated = bytearray(genuine)
    for offset, bits in flips:
        mutated[offset % len(mutated)] ^= bits
    wild = bytes(mutated[: len(mutated) + min(cut, 0)]) + bytes(max(cut, 0))
    taken = _survivors(wild, client)
    # The MACs are outside Noise, mac2 outside mac1; everything before them is authenticated.
    if kind == "init" and len(wild) == len(init):
        allowed = {"read_init"} if wild[:-32] == init[:-32] else set()
        allowed |= {"check_mac1"} if wild[:-16] == init[:-16] else set()
        assert set(taken) == allowed
    elif wild != genuine:
        assert taken == []
