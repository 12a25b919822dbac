"""The tally of captures: the same counts as Scapy's, whatever file they lie in; answers against what asked for them."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from dissected import read
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import CookedLinux, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap, wrpcapng

from jvpn.protocol.constants import PacketType
from jvpn.protocol.wire import Header
from vagrant.traffic.captures import KEYS, PCAPS
from vagrant.traffic.jvp import JVP
from vagrant.traffic.keylog import KeyLog
from vagrant.traffic.tally import tallied

ROOT = Path(__file__).parent.parent.parent
CLIENT, GATEWAY = "10.201.1.2", "203.0.113.1"
ID, OTHER_ID = b"12345678", b"87654321"


def up(kind: PacketType, size: int, steering_id: bytes = ID, counter: int = 0) -> Packet:
    data = Header(kind, steering_id, counter).encode().ljust(size, b"x")
    return IP(src=CLIENT, dst=GATEWAY) / UDP(sport=40_000, dport=51_820) / Raw(data)


def down(kind: PacketType, size: int, steering_id: bytes = ID) -> Packet:
    data = Header(kind, steering_id).encode().ljust(size, b"x")
    return IP(src=GATEWAY, dst=CLIENT) / UDP(sport=51_820, dport=40_000) / Raw(data)


def tally_of(folder: Path, *packets: Packet, **options: Any) -> dict[str, Any]:
    """Of Ethernet frames with these packets, one a second."""
    frames = [Ether() / packet for packet in packets]
    for number, frame in enumerate(frames):
        frame.time = 1_000 + number
    wrpcap(str(folder / "rA.pcap"), frames)
    return tallied(folder / "rA.pcap", **options)


# --- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PCAPS, ids=lambda path: path.stem)
def test_counts_bytes_and_times_are_those_that_scapy_shows(path: Path) -> None:
    told = tallied(path)
    packets = read([path], KEYS)
    for way in ("up", "down"):
        for kind in PacketType:
            seen = [p for p in packets if p[JVP].type == kind and (p[UDP].dport == 51_820) is (way == "up")]
            found = told[way][kind.name]
            assert found["packets"] == len(seen)
            assert found["bytes"] == sum(p[UDP].len - 8 for p in seen)
            assert found["steering_ids"] == len({p[JVP].steering_id for p in seen})
            assert found["sources"] == len({(p[IP].src, p[UDP].sport) for p in seen})
            if seen:
                begin = float(packets[0].time)
                assert found["first_s"] == pytest.approx(float(seen[0].time) - begin, abs=1e-5)
                assert found["last_s"] == pytest.approx(float(seen[-1].time) - begin, abs=1e-5)
    assert told["types"] == {kind.name: Counter(p[JVP].type for p in packets)[kind] for kind in PacketType}
    assert (told["device"], told["packets"]) == (path.stem, len(packets))
    assert (told["answers"]["larger"], told["answers"]["unasked"]) == (0, 0)


def test_what_did_not_occur_is_there_with_zeros(tmp_path: Path) -> None:
    told = tally_of(tmp_path, up(PacketType.DATA, 100))
    for way, kind in (("up", "HANDSHAKE_INIT"), ("down", "DATA")):
        assert told[way][kind] == {
            "packets": 0, "bytes": 0, "first_s": None, "last_s": None, "smallest": 0, "largest": 0,
            "steering_ids": 0, "sources": 0,
        }  # fmt: skip


def test_times_count_from_where_one_says(tmp_path: Path) -> None:
    packets = up(PacketType.DATA, 100), up(PacketType.DATA, 100)
    told = tally_of(tmp_path, *packets, origin_ns=995 * 10**9)["up"]["DATA"]
    assert (told["first_s"], told["last_s"]) == (5, 6)


def test_bins_have_every_datagram_once(tmp_path: Path) -> None:
    packets = [
        up(PacketType.DATA, 100),
        down(PacketType.DATA, 100),
        up(PacketType.PATH, 84),
        up(PacketType.DATA, 99),
    ]
    bins = tally_of(tmp_path, *packets, bin_s=2.0)["bins"]
    assert bins == {
        "bin_s": 2.0, "at_s": [0, 2], "up": {"DATA": [1, 1], "PATH": [0, 1]}, "down": {"DATA": [1, 0]},
    }  # fmt: skip
    assert "bins" not in tally_of(tmp_path, *packets)


def test_what_is_no_jvp_is_told_apart(tmp_path: Path) -> None:
    strange = IP(src=CLIENT, dst=GATEWAY) / UDP(sport=40_000, dport=51_820) / Raw(b"\xc0" + bytes(40))
    elsewhere = IP(src=CLIENT, dst=GATEWAY) / UDP(sport=40_000, dport=53) / Raw(bytes(40))
    # It begins as a datagram to the gateway would.
    whole = bytes(up(PacketType.DATA, 100))[20:]
    later_fragment = IP(src=CLIENT, dst=GATEWAY, proto=17, frag=185) / Raw(whole)
    told = tally_of(tmp_path, strange, elsewhere, later_fragment, up(PacketType.DATA, 100))
    assert (told["refused"], told["other_frames"], told["packets"]) == ({"unknown_type": 1}, 2, 1)
    assert tally_of(tmp_path, up(PacketType.DATA, 100), ports=frozenset({4_790}))["other_frames"] == 1


def test_ends_and_ids_are_told_busiest_first(tmp_path: Path) -> None:
    told = tally_of(
        tmp_path,
        up(PacketType.DATA, 64, OTHER_ID),
        up(PacketType.DATA, 64),
        up(PacketType.DATA, 64),
        down(PacketType.DATA, 70),
    )
    assert told["remotes"]["busiest"] == [
        {"name": f"{CLIENT}:40000", "up_packets": 3, "up_bytes": 192, "down_packets": 1, "down_bytes": 70}
    ]
    assert [one["name"] for one in told["steering_ids"]["busiest"]] == [ID.hex(), OTHER_ID.hex()]
    assert told["steering_ids"]["count"] == 2


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packets", "larger", "unasked"),
    [
        ([up(PacketType.HANDSHAKE_INIT, 161), down(PacketType.COOKIE, 68)], 0, 0),
        ([up(PacketType.HANDSHAKE_INIT, 161), down(PacketType.HANDSHAKE_RESPONSE, 162)], 1, 0),
        ([up(PacketType.HANDSHAKE_INIT, 161), down(PacketType.REATTACH_ACK, 112)], 1, 1),
        ([up(PacketType.HANDSHAKE_INIT, 161), down(PacketType.COOKIE, 68, OTHER_ID)], 1, 1),
        ([up(PacketType.REATTACH_REQUEST, 256), *[down(PacketType.RESET, 36)] * 3], 0, 2),
        ([up(PacketType.PATH, 84), down(PacketType.PATH, 85)], 1, 0),
        ([up(PacketType.DATA, 84), down(PacketType.DATA, 850), down(PacketType.CONTROL, 850)], 0, 0),
    ],
)
def test_answers_are_held_against_what_asked(
    packets: list[Packet], larger: int, unasked: int, tmp_path: Path
) -> None:
    answers = tally_of(tmp_path, *packets)["answers"]
    assert (answers["larger"], answers["unasked"]) == (larger, unasked)
    kind = PacketType(packets[-1][Raw].load[0])
    assert answers.get(kind.name, {"larger": larger})["larger"] == larger


# --- files ------------------------------------------------------------------------------------------------------------

DATAGRAM = Header(PacketType.DATA, ID).encode() + bytes(80)
UDP6 = IPv6(src="fd00:201:1::2", dst="fd00:202:1::2") / UDP(sport=40_000, dport=51_820) / Raw(DATAGRAM)


@pytest.mark.parametrize(
    "frame",
    [
        Ether() / UDP6,
        Ether() / Dot1Q(vlan=7) / UDP6,
        CookedLinux(proto=0x86DD) / UDP6,
        UDP6,
        # By itself Scapy would count the trailer into the datagram.
        Ether(type=0x0800) / Raw(bytes(up(PacketType.DATA, 100)) + b"trailer"),
    ],
    ids=["IPv6", "VLAN", "cooked", "raw", "trailer"],
)
def test_frames_of_other_shapes_are_read(frame: Packet, tmp_path: Path) -> None:
    for name, write in (("x.pcap", wrpcap), ("x.pcapng", wrpcapng)):
        write(str(tmp_path / name), [frame])
        assert tallied(tmp_path / name)["up"]["DATA"]["bytes"] == 100


def test_pcapng_has_the_same_tally(tmp_path: Path) -> None:
    wrpcapng(str(tmp_path / "upA.pcapng"), read(PCAPS[:1], KEYS))
    told, known = tallied(tmp_path / "upA.pcapng", bin_s=0.5), tallied(PCAPS[0], bin_s=0.5)
    # Scapy writes microseconds there.
    assert told["origin_ns"] == pytest.approx(known["origin_ns"], abs=1_000)
    for way in ("up", "down"):
        for kind, seen in known[way].items():
            assert {**told[way][kind], "first_s": 0, "last_s": 0} == {**seen, "first_s": 0, "last_s": 0}


def test_superpackets_are_cut_as_the_card_would(tmp_path: Path) -> None:
    parts = [
        Header(PacketType.DATA, ID, n).encode().ljust(size, b"x") for n, size in enumerate((900, 900, 64), 7)
    ]
    whole = IP(src=CLIENT, dst=GATEWAY) / UDP(sport=40_000, dport=51_820) / Raw(b"".join(parts))
    seen = tally_of(tmp_path, whole)["up"]["DATA"]
    assert (seen["packets"], seen["bytes"], seen["smallest"], seen["largest"]) == (3, 1_864, 64, 900)


# --- opened -----------------------------------------------------------------------------------------------------------


def test_what_is_said_inside_is_counted_by_name() -> None:
    told = [tallied(path, log=KeyLog.read(KEYS))["opened"] for path in PCAPS]
    assert [one["closed"] for one in told] == [0, 0]

    def said(way: str, group: str, name: str) -> int:
        return sum(one[way][group].get(name, 0) for one in told)

    assert said("down", "frames", "SWITCH") == 1
    assert said("down", "frames", "CLOSE") == 3
    assert said("down", "frames", "REKEY_REQUIRED") == 0
    assert said("down", "fails", "SWITCH_RATE_LIMITED") == 1
    assert said("up", "requests", "TRANSPORT_DEAD") == 1
    assert said("up", "probes", "PROBE") >= said("down", "probes", "PROBE_ACK") > 0
    assert {phase for one in told for phase in one["phases"]} == {0, 1}
    assert {epoch for one in told for epoch in one["epochs"]} == {1}


def test_what_the_log_has_no_keys_of_is_counted_as_closed() -> None:
    log = KeyLog.parse([f"JVP1 1 1 1 {'01' * 32} {'02' * 32}"])
    told = tallied(PCAPS[1], log=log)
    closed = sum(count for kind, count in told["types"].items())
    assert told["opened"]["closed"] == closed


# --- command ----------------------------------------------------------------------------------------------------------


def tally(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "vagrant.traffic.tally", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_prints_an_object_or_a_table_a_file() -> None:
    files = [str(path) for path in PCAPS]
    done = tally(*files, "--json", "--keylog", str(KEYS))
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["device"] for one in told] == ["upA", "upB"]
    assert told == [json.loads(json.dumps(tallied(path, log=KeyLog.read(KEYS)))) for path in PCAPS]
    table = tally(*files).stdout
    (row,) = [line.split() for line in table.splitlines() if line.startswith("up    HANDSHAKE_INIT")]
    assert row[2] == str(told[0]["up"]["HANDSHAKE_INIT"]["packets"])


def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.pcap").write_bytes(b"no capture at all, but long enough")
    (tmp_path / "x.keys").write_text("JVP1 1 1\n")
    wrpcap(str(tmp_path / "monitor.pcap"), [Raw(bytes(40))], linktype=105)
    first, last = (up(PacketType.DATA, 64) for _ in range(2))
    last.time = first.time + 1_000_000
    wrpcap(str(tmp_path / "gap.pcap"), [first, last])
    for arguments, status, words in (
        ([str(tmp_path / "x.pcap")], 1, "no pcap or pcapng"),
        ([str(tmp_path / "none.pcap")], 1, "none.pcap"),
        ([str(tmp_path / "monitor.pcap")], 1, "link type 105"),
        ([str(PCAPS[0]), "--keylog", str(tmp_path / "x.keys")], 2, "line 1"),
        ([str(PCAPS[0]), "--bins", "1e-9"], 2, "bins last 0.001 to 86400 seconds, not 1e-9"),
        ([str(PCAPS[0]), "--bins", "0"], 2, "bins last 0.001 to 86400 seconds"),
        ([str(PCAPS[0]), "--bins", "inf"], 2, "bins last 0.001 to 86400 seconds"),
        ([str(PCAPS[0]), "--bins", "abc"], 2, "'abc' is not a number"),
        ([str(tmp_path / "gap.pcap"), "--bins", "0.001"], 1, "take longer ones, or cut the capture"),
    ):
        done = tally(*arguments)
        assert (done.returncode, done.stdout) == (status, "")
        assert words in done.stderr
        assert "Traceback" not in done.stderr
