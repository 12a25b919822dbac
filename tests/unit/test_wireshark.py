"""The Wireshark dissector is what the layers' description makes, and real tshark shows with it what Scapy shows."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import rdpcap, wrpcap

from jvpn.protocol.constants import PacketType
from jvpn.protocol.wire import Header
from vagrant.traffic import jvp, wireshark
from vagrant.traffic.captures import PCAPS
from vagrant.traffic.jvp import JVP

SCRIPT = Path(wireshark.__file__).with_name("jvp.lua")


def test_the_kept_file_is_what_is_made() -> None:
    remedy = "make it anew: python -m vagrant.traffic.wireshark > vagrant/traffic/jvp.lua"
    assert SCRIPT.read_text() == wireshark.lua(), remedy


def test_every_field_in_clear_has_a_name_of_its_own() -> None:
    known = [
        ("jvp", JVP),
        *((wireshark.prefix_of(kind), layer) for kind, (layer, _inside) in jvp.LAYERS.items()),
    ]
    names = [row.field.split('"')[1] for prefix, layer in known for row in wireshark.rows(prefix, layer)]
    assert len(set(names)) == len(names) == sum(len(layer.fields_desc) for _prefix, layer in known)


# --- tshark -----------------------------------------------------------------------------------------------------------


def shown(folder: Path, capture: Path, *fields: str, options: tuple[str, ...] = ()) -> list[list[str]]:
    """The fields of each frame as tshark with this dissector, and nobody's preferences, prints them."""
    printed = [argument for field in fields for argument in ("-e", field)]
    done = subprocess.run(
        [
            "tshark",
            "-n",
            "-X",
            f"lua_script:{SCRIPT}",
            *options,
            "-r",
            str(capture),
            "-T",
            "fields",
            *printed,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "WIRESHARK_CONFIG_DIR": str(folder)},
    )
    if (
        "with Lua"
        not in subprocess.run(["tshark", "--version"], capture_output=True, text=True, check=True).stdout
    ):
        pytest.skip("this tshark has no Lua")
    assert done.returncode == 0, done.stderr
    assert "Lua" not in done.stderr, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def as_tshark_prints(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def clear_fields(datagram: Packet) -> dict[str, str]:
    """Names and values of what is in clear; the type in hexadecimal, as Wireshark shows it."""
    values = {}
    layers = (("jvp", datagram), (wireshark.prefix_of(PacketType(datagram.type)), datagram.payload))
    for prefix, layer in layers:
        for name, abbreviation in wireshark.names(prefix, type(layer)).items():
            values[abbreviation] = as_tshark_prints(getattr(layer, name))
    return values | {"jvp.type": f"{datagram.type:#04x}"}


needs_tshark = pytest.mark.skipif(
    shutil.which("tshark") is None, reason="needs tshark: apt-get install tshark"
)


@needs_tshark
@pytest.mark.parametrize("path", PCAPS, ids=lambda path: path.stem)
def test_fields_are_those_that_scapy_shows(path: Path, tmp_path: Path) -> None:
    expected = [clear_fields(packet[JVP]) for packet in rdpcap(str(path))]
    names = sorted({name for fields in expected for name in fields})
    rows = shown(tmp_path, path, *names)
    assert len(rows) == len(expected)
    for number, (row, fields) in enumerate(zip(rows, expected, strict=True), 1):
        said = {name: value for name, value in zip(names, row, strict=True) if value}
        # What is empty is not printed.
        assert said == {name: value for name, value in fields.items() if value}, f"frame {number}"


@needs_tshark
def test_every_type_has_its_line(tmp_path: Path) -> None:
    columns = [row[0].split() for path in PCAPS for row in shown(tmp_path, path, "_ws.col.Info")]
    packets = [packet[JVP] for path in PCAPS for packet in rdpcap(str(path))]
    assert {PacketType(packet.type) for packet in packets} == set(PacketType)
    for words, packet in zip(columns, packets, strict=True):
        name, steering_id, counter = (
            PacketType(packet.type).name,
            packet.steering_id.hex(),
            str(packet.counter),
        )
        assert words == [name, steering_id, "counter", counter, "length", str(len(packet.original))]


def capture_of(folder: Path, *payloads: bytes, port: int = 51_820) -> Path:
    addresses = IP(src="10.201.1.2", dst="203.0.113.1")
    frames = [Ether() / addresses / UDP(sport=40_000, dport=port) / Raw(payload) for payload in payloads]
    wrpcap(str(folder / "made.pcap"), frames)
    return folder / "made.pcap"


@needs_tshark
def test_a_size_that_no_datagram_of_the_type_has_is_an_error(tmp_path: Path) -> None:
    payloads = [
        Header(kind, bytes(8)).encode().ljust(size, b"x")
        for kind, sizes in jvp.SIZES.items()
        for size in {20, sizes[0] - 1, min(sizes[-1] + 1, 1_400)} - set(sizes)
    ]
    rows = shown(tmp_path, capture_of(tmp_path, *payloads), "jvp.type", "_ws.expert.message", "jvp.unsuited")
    assert rows == [[f"{p[0]:#04x}", "the size does not suit the type", p[20:].hex()] for p in payloads]


@needs_tshark
def test_what_is_no_jvp_is_left_to_others(tmp_path: Path) -> None:
    header = Header(PacketType.DATA, bytes(8)).encode() + bytes(44)
    payloads = (
        header[:19],
        b"\x25" + header[1:],
        header[:1] + b"\x20" + header[2:],
        b"\xc0" + header[1:],
        header,
    )
    rows = shown(tmp_path, capture_of(tmp_path, *payloads), "frame.number", "jvp.type")
    assert [row[1] for row in rows] == ["", "", "", "", "0x20"]


@needs_tshark
def test_a_datagram_that_was_cut_off_shows_its_header(tmp_path: Path) -> None:
    path = capture_of(tmp_path, Header(PacketType.DATA, b"12345678", 7).encode() + bytes(200))
    cut = subprocess.run(
        ["editcap", "-s", "100", str(path), str(tmp_path / "cut.pcap")], check=False, capture_output=True
    )
    assert cut.returncode == 0, cut.stderr
    rows = shown(tmp_path, tmp_path / "cut.pcap", "jvp.counter", "jvp.data.sealed", "_ws.expert.message")
    assert [row[:2] for row in rows] == [["7", ""]]


@needs_tshark
def test_other_ports_are_a_preference(tmp_path: Path) -> None:
    path = capture_of(tmp_path, Header(PacketType.DATA, bytes(8)).encode() + bytes(44), port=4_790)
    assert shown(tmp_path, path, "frame.number", "jvp.type")[0][1] == ""
    options = ("-o", "jvp.ports:51820,4790")
    assert shown(tmp_path, path, "frame.number", "jvp.type", options=options)[0][1] == "0x20"
