"""Scapy's layers of JVP/1 against the test vectors, the protocol's page, other keys, and what is no message at all."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import test_protocol_page as page
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.fields import BitField, StrFixedLenField
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw, split_bottom_up
from scapy_capture import FROM_VECTORS, Capture, capture, captured, rebuilt, strict_scapy

from jvpn.config.fields import DEFAULT_PORT
from jvpn.protocol import keys, messages, reattach, suites
from jvpn.protocol.constants import HEADER_SIZE, MAX_UDP_PAYLOAD, PacketType
from jvpn.protocol.suites import suite
from jvpn.protocol.wire import Header
from vagrant.traffic import control as frames
from vagrant.traffic import jvp, keylog, plaintexts
from vagrant.traffic.jvp import JVP

__all__ = ["capture", "strict_scapy"]

ROOT = Path(__file__).parent.parent.parent
VECTORS = ROOT / "tests" / "vectors"


# --- vectors: both suites, all segmentations, FRAGMENT, RESENT --------------------------------------------------------


class Vector(NamedTuple):
    name: str
    log: keylog.KeyLog
    datagram: bytes
    plaintext: bytes | None


def vectors() -> list[Vector]:
    found = []
    for area in ("control", "data", "path", "reattach"):
        for v in json.loads((VECTORS / f"{area}.json").read_text())["vectors"]:
            given_, out = v["in"], v["out"]
            if "session" not in given_ or not {"datagram", "datagrams"} & out.keys():
                continue
            session, phase = bytes.fromhex(given_["session"]), bytes.fromhex(given_["phase"])
            secrets = keys.SessionSecrets(suite(v["suite"]), session, phase, given_["phase_number"])
            log = keylog.KeyLog()
            log.add(secrets, given_.get("epoch", 1))
            datagrams = out.get("datagrams") or [out["datagram"]]
            known = given_.get("plaintexts") or [given_.get("plaintext")] * len(datagrams)
            for datagram, plain in zip(datagrams, known, strict=True):
                raw = None if plain is None else bytes.fromhex(plain)
                found.append(Vector(v["name"], log, bytes.fromhex(datagram), raw))
    return found


def test_vectors_open_and_build_the_same_bytes() -> None:
    kinds, numbers, inner = set(), set(), set()
    for name, log, datagram, plaintext in vectors():
        jvp.use_keylog(log)
        shown = JVP(datagram)
        assert shown.payload.sealing is not None, name
        assert plaintext in (None, bytes(shown.payload.payload)), name
        assert rebuilt(shown) == datagram, name
        kinds.add(PacketType(shown.type))
        numbers.add(shown.payload.sealing.secrets.suite.number)
        inner |= {
            layer
            for layer in (IP, IPv6, plaintexts.JVPResentHead, plaintexts.JVPFragmentHead)
            if layer in shown
        }
    assert kinds >= FROM_VECTORS | {PacketType.DATA, PacketType.PATH, PacketType.CONTROL}
    assert numbers == set(suites.SUITES)
    assert inner == {IP, IPv6, plaintexts.JVPResentHead, plaintexts.JVPFragmentHead}


# --- what is no message, and other keys -------------------------------------------------------------------------------


def behind_udp(data: bytes, port: int = DEFAULT_PORT) -> Packet:
    return UDP(bytes(UDP(sport=1, dport=port) / Raw(data)))


@given(st.binary(max_size=300), st.sampled_from([*PacketType, 0x40]))
@settings(max_examples=60)
def test_garbage_is_raw(data: bytes, first: int) -> None:
    for load in (data, bytes((first, 0x10, 0, 0)) + data):
        packet = behind_udp(load)
        assert rebuilt(packet)[8:] == load
        if len(load) < HEADER_SIZE or load[0] not in set(map(int, PacketType)) or load[1] >> 4 != 1:
            assert JVP not in packet


@given(seed=st.integers(0, 2**32))
@settings(max_examples=40)
def test_mutated_and_truncated_messages_build_what_was_received(capture: Capture, seed: int) -> None:
    chance = random.Random(seed)
    jvp.use_keylog(capture.log)
    data = bytearray(chance.choice(capture.pair.sent).data)
    for _ in range(chance.randrange(3)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    load = bytes(data[: chance.choice([len(data), chance.randrange(len(data) + 1)])])
    packet = behind_udp(load)
    assert rebuilt(packet)[8:] == load
    packet.summary()


def test_what_is_too_short_for_its_type_is_raw_behind_the_header() -> None:
    for kind, sizes in jvp.SIZES.items():
        header = Header(kind, bytes(8)).encode()
        short = behind_udp(header + bytes(sizes[0] - HEADER_SIZE - 1))
        assert type(short[JVP].payload) is Raw
        assert type(behind_udp(header + bytes(sizes[0] - HEADER_SIZE))[JVP].payload) is jvp.LAYERS[kind][0]


def test_other_keys_open_nothing(capture: Capture) -> None:
    other = keylog.KeyLog()
    other.add(keys.SessionSecrets(suite(1), bytes(32), bytes(32)), 1)
    secrets = next(iter(capture.lines)).split()
    wrong_phase = keylog.KeyLog.parse([" ".join([*secrets[:5], "00" * 32])])
    for log in (other, wrong_phase):
        jvp.use_keylog(log)
        for flight in capture.flights(PacketType.DATA, PacketType.CONTROL, PacketType.PATH):
            assert captured(flight)[JVP].payload.sealing is None


@pytest.mark.parametrize(
    "line",
    [
        "JVP1",
        f"JVP1 3 1 0 {'00' * 32} {'00' * 32}",
        f"JVP1 1 16777216 0 {'00' * 32} {'00' * 32}",
        f"JVP1 1 1 0 {'00' * 31} {'00' * 32}",
        f"JVP1 1 1 x {'00' * 32} {'00' * 32}",
        # What Python takes for a number, and the format does not.
        f"JVP1 1 0_1 0 {'00' * 32} {'00' * 32}",
        f"JVP1 1 ١ 0 {'00' * 32} {'00' * 32}",
        f"JVP1 +1 1 0 {'00' * 32} {'00' * 32}",
        f"JVP1 1 1 -1 {'00' * 32} {'00' * 32}",
        f"JVP1 1 1 {'9' * 5_000} {'00' * 32} {'00' * 32}",
    ],
)
def test_a_broken_line_of_a_key_log_is_named(line: str) -> None:
    with pytest.raises(keylog.KeyLogError, match=r"line 2: .*64 hex digits"):
        keylog.KeyLog.parse(["# comment", line])


def test_the_log_follows_the_indexes_of_a_long_session() -> None:
    secrets = keys.SessionSecrets(suite(1), b"\x01" * 32, b"\x02" * 32)
    log = keylog.KeyLog.parse([keylog.line(secrets, 1)])
    assert len(log) == 1
    for index in (keylog.AHEAD - 1, 2 * keylog.AHEAD - 2):
        request = reattach.Request(1, index, 0, reattach.Cause(1), reattach.Transport(1), 0)
        datagram = reattach.seal_request(secrets, keys.steering_id(secrets, index), 0, request)
        opened = log.open(datagram[:HEADER_SIZE], b"", datagram[64:])
        assert opened is not None
        assert opened[1].index == index


def test_other_ports() -> None:
    message = Header(PacketType.RESET, bytes(8)).encode() + bytes(16)
    assert JVP not in behind_udp(message, 4790)
    jvp.bind_port(4790)
    try:
        assert JVP in behind_udp(message, 4790)
    finally:
        split_bottom_up(UDP, JVP, sport=4790)
        split_bottom_up(UDP, JVP, dport=4790)
    assert jvp.PORT == DEFAULT_PORT


# --- the page ---------------------------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_page() -> None:
    for row in page.TABLES["enum: PacketType"]:
        least, *most = (int(number) for number in row[3].replace("…", " ").split())
        sizes = jvp.SIZES[PacketType[row[1]]]
        open_ended = MAX_UDP_PAYLOAD if "…" in row[3] else least
        assert (sizes[0], sizes[-1]) == (least, (most or [open_ended])[0]), row


LAYOUTS = {
    "header": (0, JVP),
    "init": (HEADER_SIZE, jvp.JVPHandshakeInit),
    "response": (HEADER_SIZE, jvp.JVPHandshakeResponse),
    "cookie": (HEADER_SIZE, jvp.JVPCookie),
    "request": (HEADER_SIZE, jvp.JVPReattachRequest),
    "ack": (HEADER_SIZE, jvp.JVPReattachAck),
    "reset": (HEADER_SIZE, jvp.JVPReset),
    "frame": (0, frames.JVPFrame),
    "health": (0, frames.JVPHealth),
    "state": (0, frames.JVPState),
    "rekey": (0, frames.JVPRekey),
    "probe": (0, plaintexts.JVPProbe),
    "probe_ack": (0, plaintexts.JVPProbeAck),
    "mtu_probe": (0, plaintexts.JVPMtu),
    "request_plaintext": (0, plaintexts.JVPRequest),
    "ack_plaintext": (0, plaintexts.JVPAck),
    "fail_plaintext": (0, plaintexts.JVPFail),
    "offload": (0, plaintexts.JVPOffload),
    "resent": (0, plaintexts.JVPResentHead),
    "fragment": (0, plaintexts.JVPFragmentHead),
}


def leading_sizes(before: int, layer: type[Packet]) -> list[int]:
    """Bytes of the fields of known size that a layer begins with; bits of one byte count as one field."""
    sizes, bits = [before] if before else [], 0
    for each in layer.fields_desc:
        if type(each) is BitField:
            bits += each.size
            sizes += [1] * (bits // 8)
            bits %= 8
        elif isinstance(each, StrFixedLenField):
            sizes.append(each.length_from(None))
        elif each.sz and not each.holds_packets and not hasattr(each, "remain"):
            sizes.append(int(each.sz))
        else:
            break
    return sizes


@pytest.mark.parametrize("name", LAYOUTS)
def test_fields_have_the_sizes_of_the_page(name: str) -> None:
    said, has = page.fixed(page.LAYOUTS[name]), leading_sizes(*LAYOUTS[name])
    known = min(len(said), len(has))
    assert known >= 1
    assert has[:known] == said[:known]


def test_only_the_payloads_that_noise_seals_have_no_layer() -> None:
    assert set(page.LAYOUTS) - set(LAYOUTS) <= {"init_payload", "response_payload"}


def test_states_are_numbered_as_the_machine_does() -> None:
    assert {number: name for name, number in page.STATES.items()} == frames.STATES
    assert len(frames.STATES) == messages.STATES


def test_the_campaign_in_scapys_own_format() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scapy.tools.UTscapy", "-t", "vagrant/traffic/jvp.uts", "-f", "text", "-q"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED=0" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "layer",
    [
        layer
        for module in (jvp, plaintexts, frames)
        for layer in vars(module).values()
        if isinstance(layer, type) and issubclass(layer, Packet) and layer.__module__ == module.__name__
    ],
)
def test_no_field_is_hidden_by_a_method_of_its_layer(layer: type[Packet]) -> None:
    assert [field.name for field in layer.fields_desc if hasattr(Packet, field.name)] == []
