"""The checked-in vectors: the code still makes them, and a second implementation (plain_jvp.py) opens each of them."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import plain_jvp as plain
import pytest
from cryptography.exceptions import InvalidTag

ROOT = Path(__file__).parent.parent.parent
VECTORS = ROOT / "tests" / "vectors"
AREAS = sorted(path.stem for path in VECTORS.glob("*.json") if path.stem != "mlkem768")


def load(area: str, prefix: str = "") -> list[dict[str, Any]]:
    found = json.loads((VECTORS / f"{area}.json").read_text())["vectors"]
    return [v for v in found if v["name"].startswith(prefix)]


def cases(area: str, prefix: str = "") -> pytest.MarkDecorator:
    """Parametrize with the vectors of an area whose name begins so; an empty choice would hide a lost vector."""
    found = load(area, prefix)
    assert found, f"no vector {prefix!r} in {area}"
    return pytest.mark.parametrize("v", found, ids=[v["name"] for v in found])


def raw(value: str) -> bytes:
    return bytes.fromhex(value)


def secrets_of(v: dict[str, Any]) -> plain.Secrets:
    given = v["in"]
    return plain.Secrets(v["suite"], raw(given["session"]), raw(given["phase"]), given["phase_number"])


def test_the_code_makes_the_vectors_that_are_checked_in(tmp_path: Path) -> None:
    command = [sys.executable, str(VECTORS / "generate.py"), str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120)
    made = {path.stem: path.read_text() for path in tmp_path.glob("*.json")}
    assert sorted(made) == AREAS
    for area, text in made.items():
        assert text == (VECTORS / f"{area}.json").read_text(), f"{area}.json: run tests/vectors/generate.py"


# --- keys, header ---------------------------------------------------------------------------------------------------


@cases("keys", "key schedule")
def test_key_schedule(v: dict[str, Any]) -> None:
    given, out = v["in"], v["out"]
    secrets = plain.first_secrets(
        v["suite"], raw(given["handshake_hash"]), raw(given["k1"]), raw(given["k2"])
    )
    assert secrets.session.hex() == out["session"]
    assert secrets.phase.hex() == out["phase_0"]
    values = raw(given["rekey_init"]), raw(given["rekey_response"])
    dh, kem = raw(given["dh"]), raw(given["kem_secret"])
    assert secrets.after(dh, kem, *values).phase.hex() == out["phase_1_hybrid"]
    assert secrets.after(dh, b"", *values).phase.hex() == out["phase_1_classical"]
    for name in ("data", "control"):
        for direction, way in ((0, "up"), (1, "down")):
            assert secrets.traffic_key(name, direction, given["epoch"]).hex() == out[f"{name}_{way}"]
    assert secrets.reattach_key().hex() == out["reattach"]
    assert secrets.reply_key(raw(given["salt"])).hex() == out["reply"]
    assert {n: secrets.steering_id(int(n)).hex() for n in out["steering_ids"]} == out["steering_ids"]


@cases("keys", "nonce")
def test_nonce(v: dict[str, Any]) -> None:
    assert plain.nonce(**v["in"]).hex() == v["out"]["nonce"]


def test_every_type_has_a_header_vector() -> None:
    made = [v for v in load("header") if not v["name"].startswith("refused")]
    assert len({v["in"]["type"] for v in made}) == 12
    for v in made:
        given = v["in"]
        made_here = plain.header(
            given["type"], raw(given["steering_id"]), given["counter"], given["phase_number"], given["suite"]
        )
        assert made_here.hex() == v["out"]["header"]


@cases("header", "refused")
def test_refused_header(v: dict[str, Any]) -> None:
    assert plain.refusal(raw(v["in"]["datagram"])) == v["out"]["reason"]


# --- handshake ------------------------------------------------------------------------------------------------------


@cases("handshake")
def test_handshake(v: dict[str, Any]) -> None:
    given, out = v["in"], v["out"]
    gateway = raw(out["gateway_static_public"])
    assert plain.public(raw(given["gateway_static_private"])) == gateway
    client = plain.Handshake(
        v["suite"],
        raw(given["client_static_private"]),
        gateway,
        raw(given["client_ephemeral_private"]),
        raw(given["client_random"]),
        given["timestamp_us"],
        given["policy_name"].encode(),
    )
    assert client.init.hex() == out["init"]
    cookie = client.cookie(raw(out["cookie_datagram"]))
    assert cookie.hex() == given["cookie"]
    assert client.with_mac2(cookie).hex() == out["init_with_mac2"]
    opened = client.response(raw(out["response"]), raw(given["psk"]))
    assert opened.session_id.hex() == given["session_id"]
    assert (opened.epoch, opened.kem) == (given["epoch"], given["kem"])
    assert opened.secrets.session.hex() == out["session"]
    assert opened.secrets.phase.hex() == out["phase_0"]


# --- CONTROL, rekey -------------------------------------------------------------------------------------------------


def test_every_control_type_has_a_frame_vector() -> None:
    kinds = {v["in"]["type"] for v in load("control", "frame")} | {
        v["in"]["type"] for v in load("control", "chunks")
    }
    assert kinds == set(range(1, 10))


@cases("control", "frame")
def test_control_frame(v: dict[str, Any]) -> None:
    given = v["in"]
    (frame,) = plain.frames(raw(v["out"]["frame"]))
    assert (frame.kind, frame.message_id, frame.chunk, frame.chunks) == (
        given["type"],
        given["message_id"],
        0,
        1,
    )
    assert frame.flags == (1 if frame.kind in (1, 4, 5, 6, 7) else 0)
    if frame.kind == 1:
        config = json.loads(frame.value)
        assert config["addresses"] == given["addresses"]
        assert config["mtu"] == given["mtu"]
        assert set(config) == {"addresses", "routes", "mtu", "policy", "dns", "tickets", "reset_token"}
    elif frame.kind == 2:
        names = ("state_version", "proposed", "loss_ppm", "rtt_us", "rtt_p95_us", "jitter_us")
        assert struct.unpack(">QBxxxIIII", frame.value) == tuple(given[name] for name in names)
    elif frame.kind == 3:
        version, state, size = struct.unpack_from(">QBB", frame.value)
        assert (version, state) == (given["state_version"], given["state"])
        assert frame.value[10:].decode() == given["reason"]
        assert size == len(given["reason"])
    elif frame.kind == 9:
        expected = given["acknowledged_id"], set(given["acknowledged_chunks"])
        assert plain.acknowledged(frame.value) == expected
    elif frame.kind == 5:
        assert frame.value == plain.rekey_value(1, given["kem"], raw(given["gateway_private"]), b"")
    else:
        assert frame.value.decode() == given["reason"]


@pytest.mark.parametrize("name", ["chunks", "small chunks"])
def test_chunks_and_their_acks(name: str) -> None:
    (v,) = load("control", name)
    given, out = v["in"], v["out"]
    chunks = [plain.frames(raw(text))[0] for text in out["plaintexts"]]
    expected = [(i, len(chunks), 1, given["message_id"]) for i in range(len(chunks))]
    assert [(f.chunk, f.chunks, f.flags, f.message_id) for f in chunks] == expected
    assert b"".join(frame.value for frame in chunks).hex() == given["value"]
    seen: set[int] = set()
    for arrived, ack in zip(given["arrive"], out["acks"], strict=True):
        seen.add(arrived)
        (frame,) = plain.frames(raw(ack))
        assert (frame.kind, frame.flags, frame.chunk, frame.chunks) == (9, 0, 0, 1)
        assert plain.acknowledged(frame.value) == (given["message_id"], seen)


def test_chunks_are_cut_where_the_page_says() -> None:
    (v,) = load("control", "chunks")
    sizes = [len(plain.frames(raw(text))[0].value) for text in v["out"]["plaintexts"]]
    assert sizes == [1186, 1186, 628]


@cases("control", "CONTROL")
def test_sealed_control(v: dict[str, Any]) -> None:
    given, secrets = v["in"], secrets_of(v)
    for at, text in enumerate(v["out"]["datagrams"]):
        datagram = raw(text)
        opened = secrets.open("control", given["direction"], given["epoch"], given["index"], datagram)
        assert opened.hex() == given["plaintext"]
        assert int.from_bytes(datagram[12:20], "big") == given["generation"] << 48 | at
        with pytest.raises(InvalidTag):
            secrets.open("control", 1 - given["direction"], given["epoch"], given["index"], datagram)
        with pytest.raises(InvalidTag):
            secrets.open("data", given["direction"], given["epoch"], given["index"], datagram)


@cases("rekey")
def test_rekey(v: dict[str, Any]) -> None:
    given, out, secrets = v["in"], v["out"], secrets_of(v)
    kem, seed, ciphertext = given["kem"], raw(given["kem_seed"]), raw(given["kem_ciphertext"])
    mine, theirs = raw(given["client_private"]), raw(given["gateway_private"])
    init = plain.rekey_value(secrets.number + 1, kem, mine, plain.encapsulation_key(seed) if kem else b"")
    response = plain.rekey_value(secrets.number + 1, kem, theirs, ciphertext)
    assert init.hex() == out["rekey_init"]
    assert response.hex() == out["rekey_response"]
    assert (len(init), len(response)) == ((1221, 1125) if kem else (37, 37))
    dh = plain.dh(mine, plain.public(theirs))
    assert dh.hex() == out["dh"]
    after = secrets.after(dh, plain.decapsulate(seed, ciphertext) if kem else b"", init, response)
    assert (after.phase.hex(), after.number) == (out["phase"], out["phase_number"])
    assert after.traffic_key("data", 0, given["epoch"]).hex() == out["data_up"]
    assert after.traffic_key("control", 0, given["epoch"]).hex() == out["control_up"]


def test_the_given_encapsulation_is_right() -> None:
    given = json.loads((VECTORS / "mlkem768.json").read_text())
    secret = plain.decapsulate(raw(given["seed"]), raw(given["ciphertext"]))
    assert secret.hex() == given["secret"]


# --- PATH, reattach -------------------------------------------------------------------------------------------------


def open_path(v: dict[str, Any]) -> bytes:
    given, datagram = v["in"], raw(v["out"]["datagram"])
    assert len(datagram) == 84
    assert int.from_bytes(datagram[12:20], "big") == given["counter"]
    return secrets_of(v).open("data", given["direction"], given["epoch"], given["index"], datagram)


@cases("path", "PROBE ")
def test_probe(v: dict[str, Any]) -> None:
    given = v["in"]
    expected = (1, 0, 0, given["timestamp_us"], given["received"], given["highest"], bytes(20))
    assert struct.unpack(">BBHQQQ20s", open_path(v)) == expected


@pytest.mark.parametrize(
    "v", load("path", "PROBE_ACK") + load("path", "unsolicited"), ids=lambda v: v["name"]
)
def test_probe_ack(v: dict[str, Any]) -> None:
    given = v["in"]
    kind, flags, zero, *counts, challenge, installed = struct.unpack(">BBHQQQ16sI", open_path(v))
    assert (kind, flags, zero, installed) == (2, given["flags"], 0, given["highest_installed"])
    assert counts == [given["timestamp_us"], given["received"], given["highest"]]
    assert challenge.hex() == given["challenge"]


@pytest.mark.parametrize("v", load("path", "MTU_"), ids=lambda v: v["name"])
def test_mtu_probe_and_ack(v: dict[str, Any]) -> None:
    given, datagram = v["in"], raw(v["out"]["datagram"])
    # With the outer headers of IPv4 and UDP it has the size that it asks about.
    assert len(datagram) + 28 == given["size"]
    assert int.from_bytes(datagram[12:20], "big") == given["counter"]
    plaintext = secrets_of(v).open("data", given["direction"], given["epoch"], given["index"], datagram)
    kind = 3 + given["direction"]
    fields = struct.pack(
        ">BBHQH", kind, given["settled"], given["size"], given["timestamp_us"], given["confirmed"]
    )
    assert plaintext == fields.ljust(len(plaintext), b"\0")


@cases("path", "challenge")
def test_challenge(v: dict[str, Any]) -> None:
    given = v["in"]
    text = raw(given["session_id"]) + raw(given["source"]) + given["source_port"].to_bytes(2, "big")
    text += raw(given["local"]) + given["local_port"].to_bytes(2, "big") + bytes((given["transport"],))
    text += given["slot"].to_bytes(8, "big")
    assert plain.mac(1, raw(given["key"]), text)[:16].hex() == v["out"]["challenge"]


@cases("reattach", "REQUEST")
def test_request(v: dict[str, Any]) -> None:
    given = v["in"]
    fields = struct.pack(
        ">QIQBBH16sB",
        given["attempt"],
        given["index"],
        given["state_version"],
        given["cause"],
        given["transport"],
        given["cost"],
        raw(given["challenge"]),
        len(given["reports"]),
    )
    for index, following, missing in given["reports"]:
        fields += struct.pack(">IQ32s", index, following, raw(missing))
    made = plain.request(secrets_of(v), given["counter"], fields, given["index"], raw(given["ticket"]))
    assert len(made) == 256
    assert made.hex() == v["out"]["datagram"]


@cases("reattach", "ACK")
def test_reattach_ack(v: dict[str, Any]) -> None:
    given, datagram = v["in"], raw(v["out"]["datagram"])
    assert len(datagram) == 112 + 44 * len(given["reports"])
    assert datagram[20:36].hex() == given["salt"]
    plaintext = plain.answer(secrets_of(v), datagram, given["index"])
    attempt, result, bound, version, highest, address, port, challenge, count = struct.unpack_from(
        ">QBIQI16sH16sB", plaintext
    )
    assert (attempt, result, bound) == (given["attempt"], given["result"], given["bound_index"])
    assert (version, highest, port) == (
        given["state_version"],
        given["highest_installed"],
        given["observed_port"],
    )
    assert address.hex() == given["observed_address"]
    assert challenge.hex() == given["challenge"]
    found = [[*report[:2], report[2].hex()] for report in plain.reports(plaintext[60:], count)]
    assert found == given["reports"]


@cases("reattach", "FAIL")
def test_reattach_fail(v: dict[str, Any]) -> None:
    given = v["in"]
    plaintext = plain.answer(secrets_of(v), raw(v["out"]["datagram"]), given["index"])
    assert struct.unpack_from(">QQI", plaintext) == (
        given["attempt"],
        given["state_version"],
        given["retry_after_ms"],
    )
    reason, owner = given["reason"].encode(), given["owner"].encode()
    assert plaintext[20:] == bytes((len(reason),)) + reason + bytes((len(owner),)) + owner


@cases("reattach", "ticket")
def test_ticket_and_reset(v: dict[str, Any]) -> None:
    given, out = v["in"], v["out"]
    steering_id = secrets_of(v).steering_id(given["index"])
    fleet_key, ticket = raw(given["fleet_key"]), raw(out["ticket"])
    assert (len(ticket), ticket[:12].hex()) == (44, given["nonce"])
    assert plain.open_ticket(fleet_key, steering_id, ticket).hex() == given["session_id"]
    token = plain.reset_token(fleet_key, raw(given["session_id"]))
    assert token.hex() == out["reset_token"]
    assert (plain.header(0x30, steering_id) + token).hex() == out["reset"]


# --- DATA -----------------------------------------------------------------------------------------------------------


@cases("data", "packets of")
def test_packets_of_data_plaintexts(v: dict[str, Any]) -> None:
    packets = [plain.packet_of(raw(text)).hex() for text in v["in"]["plaintexts"]]
    assert packets == v["out"]["packets"]


@pytest.mark.parametrize(
    "v", load("data", "DATA") + load("data", "RESENT") + load("data", "FRAGMENT"), ids=lambda v: v["name"]
)
def test_data_datagrams(v: dict[str, Any]) -> None:
    given, secrets = v["in"], secrets_of(v)
    opened = []
    for at, text in enumerate(v["out"]["datagrams"]):
        datagram = raw(text)
        assert int.from_bytes(datagram[12:20], "big") == given["first_counter"] + at
        opened.append(
            secrets.open("data", given["direction"], given["epoch"], given["index"], datagram).hex()
        )
    assert opened == given["plaintexts"]


@cases("data", "RESENT")
def test_resent_names_the_old_index_and_counter(v: dict[str, Any]) -> None:
    body = raw(v["in"]["plaintexts"][0])
    assert v["in"]["index"] - body[0] == 0
    highest, old = v["in"].get("highest_on_old_index", 5), v["in"].get("old_counter", 5)
    low = int.from_bytes(body[1:4], "big")
    around = [high << 24 | low for high in range((highest >> 24) - 1, (highest >> 24) + 2)]
    assert min(around, key=lambda counter: abs(counter - highest)) == old
    assert plain.packet_of(body[4:])[:1] == b"\x45"


@cases("data", "FRAGMENT")
def test_fragments_are_a_plaintext_in_parts(v: dict[str, Any]) -> None:
    whole, at = b"", 0
    for number, text in enumerate(v["in"]["plaintexts"], start=1):
        packet_id, offset, flags, zero = struct.unpack_from(">IHBB", raw(text))
        last = number == len(v["in"]["plaintexts"])
        resent = 2 if "RESENT" in v["name"] else 0
        assert (packet_id, offset, flags, zero) == (8 if resent else 7, at, last | resent, 0)
        whole += raw(text)[8:]
        at = len(whole)
    assert len(v["in"]["plaintexts"]) == 3
    assert whole.hex() == v["in"]["plaintext"]


def test_config_has_every_member_that_concerns_a_client() -> None:
    (v,) = load("control", "frame CONFIG")
    (frame,) = plain.frames(raw(v["out"]["frame"]))
    page = (ROOT / "docs" / "protocol.md").read_text()
    table = page.split("<!-- members: Policy -->")[1].split("\n\n")[0]
    listed = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
    assert set(json.loads(frame.value)["policy"]) == listed
