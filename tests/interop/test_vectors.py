"""The independent client's bytes against the published vectors, tests/vectors/*.json."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from . import wire
from .fragments import Fragments, cut
from .inner import packet_of
from .messages import Inbox, Outbox
from .primitives import SUITES, NoiseInitiator, dh, mac1, open_cookie, public_of
from .session import DOWN, UP, ReplayWindow, Session

VECTORS = Path(__file__).parents[1] / "vectors"


def vectors(area: str, prefix: str = "") -> list[Any]:
    found = json.loads((VECTORS / f"{area}.json").read_text())["vectors"]
    return [pytest.param(v, id=v["name"]) for v in found if v["name"].startswith(prefix)]


def unhex(text: str) -> bytes:
    return bytes.fromhex(text)


def session_of(vector: dict[str, Any]) -> Session:
    given = vector["in"]
    session = Session(SUITES[vector["suite"]], bytes(16), given.get("epoch", 1), b"", b"", b"")
    session.secret = unhex(given["session"])
    session._reattach = session.suite.aead(session.suite.expand(session.secret, b"jvp1 reattach"))
    session.phase = given["phase_number"]
    session.phases = {session.phase: unhex(given["phase"])}
    for index in range(16):
        session.steering_id(index)
    return session


@pytest.mark.parametrize("vector", vectors("keys", "key schedule"))
def test_key_schedule(vector: dict[str, Any]) -> None:
    given, out = vector["in"], vector["out"]
    suite = SUITES[vector["suite"]]
    handshake = [unhex(given[name]) for name in ("handshake_hash", "k1", "k2")]
    for kem, wanted in (("kem_secret", "phase_1_hybrid"), ("", "phase_1_classical")):
        session = Session(suite, bytes(16), given["epoch"], *handshake)
        assert session.secret.hex() == out["session"]
        assert session.phases[0].hex() == out["phase_0"]
        for index, steering_id in out["steering_ids"].items():
            assert session.steering_id(int(index)).hex() == steering_id
        secret = unhex(given[kem]) if kem else b""
        session.next_phase(
            unhex(given["dh"]), secret, unhex(given["rekey_init"]), unhex(given["rekey_response"])
        )
        assert session.phases[1].hex() == out[wanted]


@pytest.mark.parametrize("vector", vectors("handshake"))
def test_handshake(vector: dict[str, Any]) -> None:
    given, out = vector["in"], vector["out"]
    suite, gateway = SUITES[vector["suite"]], unhex(out["gateway_static_public"])
    header = wire.Header(wire.Type.INIT, unhex(given["client_random"]), suite=suite.number).pack()
    static, ephemeral, psk = (
        unhex(given[name]) for name in ("client_static_private", "client_ephemeral_private", "psk")
    )
    noise = NoiseInitiator(suite, header, static, ephemeral, gateway, psk)
    name = given["policy_name"].encode()
    payload = given["timestamp_us"].to_bytes(8, "big") + given["capabilities"].to_bytes(4, "big")
    init = header + noise.message_1(payload + bytes([len(name)]) + name)
    first = mac1(suite, gateway, init)
    assert (init + first).hex() + "00" * 16 == out["init"]
    cookie = open_cookie(suite, gateway, unhex(out["cookie_datagram"]), first)
    assert cookie.hex() == given["cookie"]
    assert (init + first + suite.mac(cookie, init + first)[:16]).hex() == out["init_with_mac2"]
    answer, hash_, k1, k2 = noise.message_2(unhex(out["response"])[20:])
    assert answer.hex() == given["session_id"] + f"{given['epoch']:06x}{given['kem']:02x}"
    session = Session(suite, answer[:16], given["epoch"], hash_, k1, k2)
    assert (session.secret.hex(), session.phases[0].hex()) == (out["session"], out["phase_0"])


@pytest.mark.parametrize("vector", vectors("header"))
def test_header(vector: dict[str, Any]) -> None:
    given, out = vector["in"], vector["out"]
    if "datagram" in given:
        with pytest.raises(wire.Refused, match=out["reason"]):
            wire.parse_header(unhex(given["datagram"]))
        return
    kind = wire.Type(given["type"])
    fields = unhex(given["steering_id"]), given["counter"], given["phase_number"] & 15
    header = wire.Header(kind, *fields, given["suite"] if kind in wire.HANDSHAKE_TYPES else 0)
    assert header.pack().hex() == out["header"]


@pytest.mark.parametrize("vector", vectors("control", "CONTROL"))
def test_control(vector: dict[str, Any]) -> None:
    given, session = vector["in"], session_of(vector)
    for number, text in enumerate(vector["out"]["datagrams"]):
        datagram = unhex(text)
        plaintext = session.open(wire.parse_header(datagram), datagram, given["direction"])
        assert plaintext == (given["index"], unhex(given["plaintext"]))
        if given["direction"] == UP:
            assert session.seal(wire.Type.CONTROL, given["index"], plaintext[1]) == datagram
        else:
            with pytest.raises(wire.Refused, match="replay"):
                session.open(wire.parse_header(datagram), datagram, DOWN)
        assert wire.parse_header(datagram).counter & 0xFFFF == number
        assert wire.parse_frames(plaintext[1])


@pytest.mark.parametrize("vector", [*vectors("control", "chunks"), *vectors("control", "small chunks")])
def test_chunks(vector: dict[str, Any]) -> None:
    given, out, inbox = vector["in"], vector["out"], Inbox()
    values = []
    for chunk, wanted in zip(given["arrive"], out["acks"], strict=True):
        (frame,) = wire.parse_frames(unhex(out["plaintexts"][chunk]))
        value, ack = inbox.take(frame)
        values.append(value)
        assert ack is not None
        assert ack.pack().hex() == wanted
    assert [value for value in values if value is not None] == [unhex(given["value"])]
    outbox = Outbox()
    frames = outbox.reliable(wire.Control.REKEY_INIT, unhex(given["value"]), 0.0)
    outbox.acknowledged(unhex(out["acks"][-1])[10:])
    wanted_id = given["message_id"] == 0 and len(frames) <= len(out["plaintexts"])
    assert bool(outbox.due(1.0, 0.0)) is not wanted_id


@pytest.mark.parametrize("vector", vectors("rekey"))
def test_rekey(vector: dict[str, Any]) -> None:
    given, out, session = vector["in"], vector["out"], session_of(vector)
    init, response = unhex(out["rekey_init"]), unhex(out["rekey_response"])
    private, secret = unhex(given["client_private"]), b""
    assert public_of(private) == init[5:37]
    if given["kem"]:
        key = MLKEM768PrivateKey.from_seed_bytes(unhex(given["kem_seed"]))
        assert key.public_key().public_bytes_raw() == init[37:]
        secret = key.decapsulate(response[37:])
    session.next_phase(dh(private, response[5:37]), secret, init, response)
    assert session.phases[session.phase].hex() == out["phase"]


@pytest.mark.parametrize("vector", vectors("path", "PROBE") + vectors("path", "unsolicited"))
def test_path(vector: dict[str, Any]) -> None:
    given, session = vector["in"], session_of(vector)
    datagram = unhex(vector["out"]["datagram"])
    index, plaintext = session.open(wire.parse_header(datagram), datagram, given["direction"])
    assert index == given["index"]
    ack = wire.parse_probe_ack(plaintext)
    if ack is None:
        wanted = given["timestamp_us"], given["received"], given["highest"]
        assert wire.pack_probe(*wanted) == plaintext
        return
    assert ack == wire.ProbeAck(
        given["flags"],
        given["timestamp_us"],
        given["received"],
        given["highest"],
        unhex(given["challenge"]),
        given["highest_installed"],
    )


@pytest.mark.parametrize("vector", vectors("reattach", "REQUEST"))
def test_request(vector: dict[str, Any]) -> None:
    given, session = vector["in"], session_of(vector)
    session._request_counts[given["index"]] = given["counter"]
    fields = given["attempt"], given["index"], given["state_version"], given["cause"]
    reports = tuple(
        number.to_bytes(4, "big") + following.to_bytes(8, "big") + unhex(bitmap)
        for number, following, bitmap in given["reports"]
    )
    made = session.request(*fields, unhex(given["challenge"]), unhex(given["ticket"]), reports)
    assert made.hex() == vector["out"]["datagram"]


@pytest.mark.parametrize("vector", [*vectors("reattach", "ACK"), *vectors("reattach", "FAIL")])
def test_reply(vector: dict[str, Any]) -> None:
    given, session = vector["in"], session_of(vector)
    datagram = unhex(vector["out"]["datagram"])
    header = wire.parse_header(datagram)
    assert session.index_of(header.steering_id) == given["index"]
    plaintext = session.open_reply(datagram)
    if header.type == wire.Type.FAIL:
        fail = wire.parse_fail(plaintext)
        wanted = given["attempt"], given["state_version"], given["retry_after_ms"], given["reason"]
        assert (fail.attempt, fail.version, fail.retry_after_ms, fail.reason) == wanted
        return
    ack = wire.parse_ack(plaintext)
    assert (ack.attempt, ack.bound, ack.bound_index) == (
        given["attempt"],
        given["result"] == 0,
        given["bound_index"],
    )
    assert (ack.version, ack.highest_installed) == (given["state_version"], given["highest_installed"])
    assert (ack.address.hex(), ack.port) == (given["observed_address"], given["observed_port"])
    assert ack.challenge.hex() == given["challenge"]


@pytest.mark.parametrize("vector", [*vectors("data", "DATA"), *vectors("data", "RESENT")])
def test_data(vector: dict[str, Any]) -> None:
    given, session = vector["in"], session_of(vector)
    session._data_counts[given["index"]] = given["first_counter"]
    for text, plain in zip(vector["out"]["datagrams"], given["plaintexts"], strict=True):
        datagram = unhex(text)
        header = wire.parse_header(datagram)
        index, plaintext = session.open(header, datagram, UP)
        assert (index, plaintext) == (given["index"], unhex(plain))
        assert session.seal(header.type, index, plaintext) == datagram
        if header.type == wire.Type.RESENT:
            window = session._data_windows.of(index - plaintext[0])
            assert window is not None
            if "highest_on_old_index" in given:
                window.take(given["highest_on_old_index"])
            assert packet_of(session.open_resent(index, header.counter, plaintext))
            with pytest.raises(wire.Refused, match="replay"):
                session.open_resent(index, header.counter, plaintext)
            assert not window.take(given.get("old_counter", 5))


@pytest.mark.parametrize("vector", vectors("data", "FRAGMENT"))
def test_fragments(vector: dict[str, Any]) -> None:
    given, session, fragments = vector["in"], session_of(vector), Fragments()
    session._data_counts[given["index"]] = given["first_counter"]
    wholes = []
    for text in vector["out"]["datagrams"]:
        datagram = unhex(text)
        header = wire.parse_header(datagram)
        index, plaintext = session.open(header, datagram, UP)
        assert session.seal(wire.Type.FRAGMENT, index, plaintext) == datagram
        wholes.append(fragments.take(index, header.counter, plaintext))
    resent = "RESENT" in vector["name"]
    assert wholes == [None, None, (unhex(given["plaintext"]), resent)]
    if not resent:
        first = unhex(given["plaintexts"][0])
        made = cut(unhex(given["plaintext"]), int.from_bytes(first[:4], "big"), len(first) - 8)
        assert [part.hex() for part in made] == given["plaintexts"]


@pytest.mark.parametrize("vector", vectors("data", "packets"))
def test_packets(vector: dict[str, Any]) -> None:
    made = [packet_of(unhex(plaintext)).hex() for plaintext in vector["in"]["plaintexts"]]
    assert made == vector["out"]["packets"]


def test_window_takes_each_counter_once() -> None:
    window = ReplayWindow()
    assert [window.take(counter) for counter in (0, 0, 5, 3, 3, 8196, 4, 5, 6)] == [
        True,
        False,
        True,
        True,
        False,
        True,
        False,
        False,
        True,
    ]
