"""Noise against published vectors and against an independent implementation, and its refusals."""

import json
import os
from pathlib import Path

import pytest
from noise.connection import Keypair, NoiseConnection

from jvpn.protocol.noise import HandshakeState, LocalError, NoiseError, RemoteError
from jvpn.protocol.suites import SUITES, Suite, suite, x25519_public

VECTORS = Path(__file__).parents[2] / "../shared/vectors/noise_ik_25519.json"
SUITE_IDS = [s.name for s in SUITES.values()]
#: Points of low order on Curve25519 (RFC 7748 section 6.1 gives an all-zero result for each).
LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    (2**255 - 19 - 1).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 19 + 1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]


def pair(
    suite: Suite, pattern: str = "IKpsk2", psks: tuple[bytes, bytes] = (b"p" * 32, b"p" * 32)
) -> tuple[HandshakeState, HandshakeState]:
    gateway = os.urandom(32)
    return (
        HandshakeState(
            suite,
            pattern,
            initiator=True,
            static_private=os.urandom(32),
            remote_static=x25519_public(gateway),
            prologue=b"same",
            psk=psks[0],
        ),
        HandshakeState(
            suite, pattern, initiator=False, static_private=gateway, prologue=b"same", psk=psks[1]
        ),
    )


def published_vectors() -> list[dict[str, object]]:
    if not VECTORS.exists():
        return []
    vectors = json.loads(VECTORS.read_text())
    return [v for v in vectors if v["protocol_name"].split("_")[1] in ("IK", "IKpsk2")]


@pytest.mark.skipif(not VECTORS.exists(), reason="published Noise vectors are not beside the checkout")
def test_both_roles_give_the_published_bytes() -> None:
    vectors = published_vectors()
    assert {v["protocol_name"] for v in vectors} == {
        f"Noise_{p}_25519_{s.name}" for p in ("IK", "IKpsk2") for s in SUITES.values()
    }
    for vector in vectors:
        check_vector(vector)


def check_vector(vector: dict[str, object]) -> None:
    def raw(name: str) -> bytes:
        return bytes.fromhex(str(vector[name]))

    _, pattern, _, *names = str(vector["protocol_name"]).split("_")
    which = next(s for s in SUITES.values() if s.name == "_".join(names))
    psks = vector.get("init_psks") or [None]
    psk = bytes.fromhex(psks[0]) if psks[0] else None  # type: ignore[index]
    client = HandshakeState(
        which,
        pattern,
        initiator=True,
        static_private=raw("init_static"),
        remote_static=raw("init_remote_static"),
        prologue=raw("init_prologue"),
        psk=psk,
    )
    gateway = HandshakeState(
        which,
        pattern,
        initiator=False,
        static_private=raw("resp_static"),
        prologue=raw("resp_prologue"),
        psk=psk,
    )
    first, second, *transport = [
        (bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"]))
        for m in vector["messages"]  # type: ignore[attr-defined]
    ]
    assert client.write_message(first[0], raw("init_ephemeral")) == first[1]
    assert gateway.read_message(first[1]) == first[0]
    assert gateway.write_message(second[0], raw("resp_ephemeral")) == second[1]
    assert client.read_message(second[1]) == second[0]
    assert gateway.remote_static == x25519_public(raw("init_static"))
    assert client.split() == gateway.split()
    if "handshake_hash" in vector:
        assert client.split().handshake_hash == raw("handshake_hash")
    keys = [which.aead(client.split().k1), which.aead(client.split().k2)]
    for i, (payload, ciphertext) in enumerate(transport):
        assert keys[i % 2].encrypt(which.noise_nonce(i // 2), payload, b"") == ciphertext


def other_implementation(
    name: str, psk: bytes, prologue: bytes, *, initiator: bool, static: bytes, ephemeral: bytes, peer: bytes
) -> NoiseConnection:
    other = NoiseConnection.from_name(name.encode())
    if "psk" in name:
        other.set_psks(psk)
    other.set_prologue(prologue)
    if initiator:
        other.set_as_initiator()
        other.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, peer)
    else:
        other.set_as_responder()
    other.set_keypair_from_private_bytes(Keypair.STATIC, static)
    other.set_keypair_from_private_bytes(Keypair.EPHEMERAL, ephemeral)
    other.start_handshake()
    return other


@pytest.mark.filterwarnings("ignore:One of ephemeral keypairs")
@pytest.mark.parametrize("number", SUITES, ids=SUITE_IDS)
@pytest.mark.parametrize("pattern", ["IK", "IKpsk2"])
@pytest.mark.parametrize("ours_initiates", [True, False], ids=["initiator", "responder"])
def test_shakes_hands_with_an_independent_implementation(
    number: int, pattern: str, ours_initiates: bool
) -> None:
    which = suite(number)
    prologue, psk = os.urandom(20), os.urandom(32)
    client, gateway, client_e, gateway_e = (os.urandom(32) for _ in range(4))
    ours_static, theirs_static = (client, gateway) if ours_initiates else (gateway, client)
    ours_e, theirs_e = (client_e, gateway_e) if ours_initiates else (gateway_e, client_e)
    other = other_implementation(
        f"Noise_{pattern}_25519_{which.name}",
        psk,
        prologue,
        initiator=not ours_initiates,
        static=theirs_static,
        ephemeral=theirs_e,
        peer=x25519_public(gateway),
    )
    ours = HandshakeState(
        which,
        pattern,
        initiator=ours_initiates,
        static_private=ours_static,
        remote_static=x25519_public(gateway) if ours_initiates else None,
        prologue=prologue,
        psk=psk,
    )
    for initiator_writes in (True, False):
        if initiator_writes == ours_initiates:
            assert bytes(other.read_message(ours.write_message(b"from us", ours_e))) == b"from us"
        else:
            assert ours.read_message(bytes(other.write_message(b"from them"))) == b"from them"
    assert other.handshake_finished
    split = ours.split()
    assert split.handshake_hash == other.get_handshake_hash()
    sending, receiving = (split.k1, split.k2) if ours_initiates else (split.k2, split.k1)
    sealed = bytes(other.encrypt(b"to us"))
    assert which.aead(receiving).decrypt(which.noise_nonce(0), sealed, b"") == b"to us"
    assert bytes(other.decrypt(which.aead(sending).encrypt(which.noise_nonce(0), b"back", b""))) == b"back"


@pytest.mark.parametrize("number", SUITES, ids=SUITE_IDS)
@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda p: p.hex()[:8])
def test_a_point_of_low_order_is_refused_and_changes_nothing(number: int, point: bytes) -> None:
    client, gateway = pair(suite(number))
    genuine = client.write_message(b"", os.urandom(32))
    with pytest.raises(RemoteError) as refused:
        gateway.read_message(point + genuine[32:])
    assert refused.value.reason == "low_order"
    assert gateway.read_message(genuine) == b""


def test_a_gateway_key_of_low_order_is_refused() -> None:
    client = HandshakeState(
        suite(1), "IK", initiator=True, static_private=os.urandom(32), remote_static=bytes(32)
    )
    with pytest.raises(RemoteError):
        client.write_message(b"", os.urandom(32))


def test_a_forged_answer_leaves_room_for_the_genuine_one() -> None:
    client, gateway = pair(suite(1))
    gateway.read_message(client.write_message(b"hello", os.urandom(32)))
    genuine = gateway.write_message(b"answer", os.urandom(32))
    for position in (0, 32, len(genuine) - 1):
        forged = bytearray(genuine)
        forged[position] ^= 1
        with pytest.raises(RemoteError):
            client.read_message(bytes(forged))
    assert client.read_message(genuine) == b"answer"
    assert client.split() == gateway.split()


@pytest.mark.parametrize("size", [0, 31, 32, 79, 80, 95, 65_536])
def test_messages_too_short_or_too_long_are_refused(size: int) -> None:
    _, gateway = pair(suite(2))
    with pytest.raises(RemoteError):
        gateway.read_message(b"\x09" * size)


def test_different_psks_do_not_meet() -> None:
    client, gateway = pair(suite(1), psks=(b"a" * 32, b"b" * 32))
    gateway.read_message(client.write_message(b"", os.urandom(32)))
    with pytest.raises(RemoteError) as refused:
        client.read_message(gateway.write_message(b"", os.urandom(32)))
    assert refused.value.reason == "authentication"


def test_messages_out_of_turn_are_the_callers_fault() -> None:
    client, gateway = pair(suite(1))
    with pytest.raises(LocalError):
        gateway.write_message(b"", os.urandom(32))
    with pytest.raises(LocalError):
        client.read_message(b"x" * 96)
    with pytest.raises(LocalError):
        client.split()
    gateway.read_message(client.write_message(b"", os.urandom(32)))
    gateway.psk = None
    with pytest.raises(LocalError):
        gateway.write_message(b"", os.urandom(32))
    gateway.psk = b"p" * 32
    client.read_message(gateway.write_message(b"", os.urandom(32)))
    with pytest.raises(NoiseError):
        client.write_message(b"", os.urandom(32))


def test_nothing_printable_holds_a_key() -> None:
    client, gateway = pair(suite(1))
    gateway.read_message(client.write_message(b"", os.urandom(32)))
    client.read_message(gateway.write_message(b"", os.urandom(32)))
    split = client.split()
    shown = f"{split} {client!r} {client._keys!r} {client._symmetric!r}"
    assert repr(split.k1) not in shown
    assert "b'" not in shown
    assert 'b"' not in shown
