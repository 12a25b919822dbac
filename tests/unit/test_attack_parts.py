"""What attacks are made of: which frames they see, how they take them apart, what they send, whom they refuse."""

import argparse
import random
import socket
import struct
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap

from jvpn.protocol import keys
from jvpn.protocol.constants import Direction, PacketType
from jvpn.protocol.suites import suite
from vagrant.traffic.attacks.handshake_flood import init
from vagrant.traffic.attacks.means import options
from vagrant.traffic.attacks.means.batches import BATCH, RawSender
from vagrant.traffic.attacks.means.filters import attach, udp_filter
from vagrant.traffic.attacks.means.offloads import FOREIGN, MAKERS, abusive
from vagrant.traffic.attacks.means.packets import packet
from vagrant.traffic.attacks.means.place import Pace
from vagrant.traffic.attacks.means.sources import drawn, upper_half
from vagrant.traffic.attacks.means.tap import datagrams, read_capture
from vagrant.traffic.jvp import JVP, JVPData, use_keylog
from vagrant.traffic.keylog import KeyLog, Sealing
from vagrant.traffic.ours import Refused, endpoint
from vagrant.traffic.plaintexts import JVPOffload

ROOT = Path(__file__).parents[2]
GATEWAY, CLIENT = ("10.202.1.2", 51_820), ("10.201.1.2", 4_000)
GATEWAY6, CLIENT6 = ("fd00:202:1::2", 51_820), ("fd00:201:1::2", 4_000)
VNET = struct.Struct("=BBHHHH")


def frame(source: tuple[str, int], destination: tuple[str, int], data: bytes = b"x" * 40) -> bytes:
    ip = IPv6 if ":" in source[0] else IP
    ends = ip(src=source[0], dst=destination[0]) / UDP(sport=source[1], dport=destination[1])
    return bytes(Ether() / ends / Raw(data))


def passed(program: bytes, frames: list[bytes]) -> list[bytes]:
    """What the filter lets through; a Unix socket runs it on what is sent to it."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        attach(far, program)
        far.setblocking(False)
        found = []
        for each in frames:
            try:
                near.send(each)
                found.append(far.recv(65_536))
            except (BlockingIOError, PermissionError):
                continue
        return found


@pytest.mark.parametrize(("gateway", "client"), [(GATEWAY, CLIENT), (GATEWAY6, CLIENT6)])
def test_a_filter_passes_udp_of_its_end_alone(gateway: tuple[str, int], client: tuple[str, int]) -> None:
    other = (client[0], gateway[1])
    up, down = frame(client, gateway), frame(gateway, client)
    beside = [
        frame(client, (gateway[0], 9)),
        frame(client, other),
        bytes(Ether() / IP(src="10.201.1.2", dst="10.202.1.2", proto=6) / Raw(bytes(40))),
        bytes(Ether() / IP(src="10.201.1.2", dst="10.202.1.2", frag=5, proto=17) / Raw(bytes(40))),
        bytes(Ether(type=0x88CC) / Raw(bytes(60))),
        b"",
    ]
    assert passed(udp_filter(gateway, sent=False), [up, down, *beside]) == [up]
    assert passed(udp_filter(gateway, sent=True), [up, down, *beside]) == [down]


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("10.201.1.128/25", ("10.201.1.200", 7), ("10.201.1.2", 7)),
        ("10.201.1.2/32", ("10.201.1.2", 7), ("10.201.1.3", 7)),
        ("fd00:201:1:0:8000::/65", ("fd00:201:1:0:9000::7", 7), ("fd00:201:1::2", 7)),
    ],
)
def test_a_filter_passes_what_goes_to_one_network(
    network: str, inside: tuple[str, int], outside: tuple[str, int]
) -> None:
    gateway = GATEWAY6 if ":" in network else GATEWAY
    program = udp_filter(gateway, sent=True, to=ip_network(network))
    frames = [frame(gateway, inside), frame(gateway, outside), frame(inside, gateway)]
    assert passed(program, frames) == frames[:1]


def test_a_superpacket_is_seen_as_the_datagrams_that_it_is() -> None:
    parts = [bytes([n]) * 100 for n in range(3)] + [b"end"]
    whole = VNET.pack(1, 5, 42, 100, 34, 6) + frame(CLIENT, GATEWAY, b"".join(parts))
    seen = list(datagrams(whole))
    assert [each.data for each in seen] == parts
    assert {(each.source, each.destination) for each in seen} == {(CLIENT, GATEWAY)}
    single = VNET.pack(0, 0, 0, 0, 0, 0) + frame(GATEWAY6, CLIENT6, b"y" * 50)
    assert [(each.data, each.source) for each in datagrams(single)] == [(b"y" * 50, GATEWAY6)]


def test_a_capture_is_read_both_ways_without_what_is_joined(tmp_path: Path) -> None:
    path = tmp_path / "some.pcap"
    kept = [frame(CLIENT, GATEWAY), frame(GATEWAY, CLIENT)]
    other = [
        frame(CLIENT, (GATEWAY[0], 7)),
        frame(CLIENT, GATEWAY, bytes(3_000)),
        frame(CLIENT, GATEWAY, b""),
    ]
    wrpcap(str(path), [Ether(each) for each in (*kept, *other)])
    found, joined = read_capture(path, GATEWAY)
    assert [(each.source, each.destination) for each in found] == [(CLIENT, GATEWAY), (GATEWAY, CLIENT)]
    assert joined == 1
    path.write_bytes(b"no capture")
    with pytest.raises(ValueError, match="no capture file"):
        read_capture(path, GATEWAY)


def told(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    options.add_arguments(parser, rate=None)
    options.add_sources(parser)
    options.add_owner(parser)
    options.add_sink(parser)
    parser.add_argument("--late", type=options.late)
    parser.add_argument("--types", **options.one_of(PacketType.DATA, PacketType.PATH))
    parser.add_argument("--i-own", action="append", type=ip_address, default=[])
    return parser.parse_args(["--device", "lo", *argv])


@pytest.mark.parametrize(
    "argv",
    [
        ("--gateway", "8.8.8.8"),
        ("--gateway", "2001:4860::8888"),
        ("--gateway", "10.202.1.2", "--sources", "10.0.0.0/8"),
        ("--gateway", "10.202.1.2", "--sources", "10.200.0.0/16"),
        # Its ends are owned, and what lies between them is everybody else's.
        (
            "--gateway",
            "10.202.1.2",
            "--sources",
            "0.0.0.0/0",
            "--i-own",
            "0.0.0.0",
            "--i-own",
            "255.255.255.255",
        ),
        ("--gateway", "10.202.1.2", "--sources", "fd00:201::/48"),
        ("--gateway", "10.202.1.2", "--owner", "8.8.8.8"),
        ("--gateway", "10.202.1.2", "--owner", "10.202.1.2:51820"),
        ("--gateway", "10.202.1.2", "--owner", "fd00:202:1::2"),
        ("--gateway", "10.202.1.2", "--sink", "fd00:202:1::2"),
        ("--gateway", "10.202.1.2"),
    ],
)
def test_whom_an_attack_refuses(argv: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    if len(argv) > 2 or argv[1] != "10.202.1.2":
        monkeypatch.setattr(options, "guard_device", lambda *_: None)
    with pytest.raises(Refused):
        options.check(told(*argv))


def test_whom_an_attack_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "guard_device", lambda *_: None)
    options.check(told("--gateway", "10.202.1.2:51821", "--sources", "10.201.1.128/25"))
    options.check(told("--gateway", "9.9.9.9", "--i-own", "9.9.9.9"))
    options.check(told("--gateway", "10.202.1.2", "--owner", "10.202.2.2", "--sink", "10.202.1.2:9"))
    options.check(told("--gateway", "9.9.9.9", "--sources", "9.9.9.9/32", "--i-own", "9.9.9.9"))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--rate", "abc"), "'abc' is not a number"),
        (("--rate", "1e-300"), "must be above 0, from 1e-09 to"),
        (("--count", "abc"), "must be a whole number, at least 1, of up to 18 digits, not 'abc'"),
        (("--count", "9" * 5_000), "must be a whole number"),
        (("--late", "nan"), "'nan' is not a number"),
        (("--late", "-4"), r"seconds lie in 0…60, not -4"),
        (("--late", "1e300"), r"seconds lie in 0…60, not 1e300"),
    ],
)
def test_what_is_no_number_or_out_of_bounds_is_said(argv: tuple[str, ...], said: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=said):
        told("--gateway", "10.202.1.2", *argv)


@pytest.mark.parametrize("name", ["rival_reattach", "relay_race", "replay"])
@pytest.mark.parametrize("given", ["nan", "-4", "1e300"])
def test_nothing_is_held_back_for_ever(name: str, given: str) -> None:
    option = "--delay" if name == "replay" else "--late"
    command = [sys.executable, "-m", f"vagrant.traffic.attacks.{name}", "--device", "lo"]
    done = subprocess.run(
        [*command, "--gateway", "10.202.1.2", f"{option}={given}"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: argument {option}: " in done.stderr
    assert given in done.stderr


def test_types_are_told_by_name() -> None:
    assert told("--gateway", "10.202.1.2").types == [PacketType.DATA, PacketType.PATH]
    assert told("--gateway", "10.202.1.2", "--types", "path").types == [PacketType.PATH]
    with pytest.raises(argparse.ArgumentError, match="COOKIE"):
        told("--gateway", "10.202.1.2", "--types", "COOKIE")


def test_forged_sources_are_where_nobody_lives() -> None:
    dice = random.Random(1)
    assert upper_half(ip_network("10.201.1.0/24")) == ip_network("10.201.1.128/25")
    for network in map(ip_network, ("10.201.1.128/25", "fd00:201:1:0:8000::/65")):
        ends = {drawn(dice, network) for _ in range(300)}
        assert len(ends) > 290
        assert all(ip_address(address) in network and port >= 1_024 for address, port in ends)


class FakeRun:
    def __init__(self, **told: object) -> None:
        self.options = argparse.Namespace(**told)


def test_a_pace_ends_with_its_count_and_does_not_save_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    pace = Pace(FakeRun(rate=100.0, count=50))  # type: ignore[arg-type]

    def gone() -> int:
        number = 0
        while pace.go():
            number += 1
        return number

    assert gone() == 1
    now += 0.01
    assert gone() == 1
    now += 10
    assert gone() <= 7
    for _ in range(100):
        now += 0.01
        gone()
    assert pace.over
    assert not pace.go()


def test_an_init_has_the_mac_of_who_knows_the_gateways_key() -> None:
    class Place:
        dice = random.Random(3)
        run = FakeRun(suite=2)

    made = bytes(init(Place(), b"k" * 32))  # type: ignore[arg-type]
    assert made[-32:-16] == keys.mac1(suite(2), b"k" * 32, made[:-32])
    assert made[-16:] == bytes(16)
    assert JVP(made).suite == 2


@pytest.mark.parametrize(
    "inner", [IP(src="10.8.0.2", dst="10.8.0.1"), IPv6(src="fd00:8::2", dst="fd00:8::1")]
)
def test_abusive_plaintexts_are_authentic_and_come_in_every_kind(inner: Packet) -> None:
    secrets = keys.SessionSecrets(suite(1), b"\1" * 32, b"\2" * 32)
    sealing = Sealing(secrets, 1, Direction.CLIENT_TO_GATEWAY, 3)
    log, dice, names = KeyLog(), random.Random(4), set()
    log.add(secrets, 1)
    for counter in range(300):
        name, plaintext = abusive(dice, JVPOffload() / inner / UDP() / Raw(b"genuine"))
        names.add(name)
        header = JVP(steering_id=keys.steering_id(secrets, 3), counter=counter)
        wire = bytes(header / JVPData(sealing=sealing) / plaintext)
        opened = log.open(wire[:20], b"", wire[20:])
        assert opened is not None
        assert opened[0] == bytes(plaintext)
        if name == "foreign_source":
            assert any(socket.inet_pton(f, FOREIGN[v]) in opened[0] for v, f in ((4, 2), (6, 10)))
    use_keylog(None)
    assert names == set(MAKERS)


def test_a_pool_goes_round_from_where_it_stopped() -> None:
    """Through a loopback raw socket: every packet of the pool in turn, in batches."""
    try:
        sender = RawSender("127.0.0.1")
    except PermissionError:
        pytest.skip("needs root: a raw socket")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 0))
        sink.settimeout(5)
        port = sink.getsockname()[1]
        packets = [
            bytes(IP(src="127.0.0.1", dst="127.0.0.1") / UDP(sport=9, dport=port) / Raw(bytes([n] * (n + 1))))
            for n in range(3)
        ]
        pool = sender.pool(packets)
        assert sender.send(pool, 4) == (4, 4 * 28 + 1 + 2 + 3 + 1)
        assert sender.send(pool, 1) == (1, 28 + 2)
        assert [sink.recv(100) for _ in range(5)] == [b"\0", b"\1\1", b"\2\2\2", b"\0", b"\1\1"]
        assert BATCH > 3
    sender.close()


@pytest.mark.parametrize(("source", "goal"), [(CLIENT, GATEWAY), (CLIENT6, GATEWAY6)])
@pytest.mark.parametrize("size", [0, 1, 36, 1_400])
def test_packets_are_those_that_scapy_makes(
    source: tuple[str, int], goal: tuple[str, int], size: int
) -> None:
    data = random.Random(size).randbytes(size)
    wide = ":" in source[0]
    ip = IPv6(src=source[0], dst=goal[0]) if wide else IP(src=source[0], dst=goal[0], id=0, chksum=0)
    assert packet(source, goal, data) == bytes(ip / UDP(sport=source[1], dport=goal[1]) / Raw(data))


def test_an_endpoint_has_a_port_of_its_own() -> None:
    assert str(endpoint("10.202.1.2")) == "10.202.1.2:51820"
