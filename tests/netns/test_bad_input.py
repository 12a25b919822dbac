"""Bad input on the wire of a running gateway: dropped, counted by reason, visible, and without any other effect."""

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from injection import Injector, payload, source_port, towards_gateway
from running import GATEWAY_KEY, Running, client_key, running, wait_for
from streams import TcpEcho

from jvpn.lab import links
from jvpn.lab.namespaces import Lab
from jvpn.observability.events import SecurityEvent
from jvpn.protocol.constants import PacketType
from jvpn.protocol.handshake import Initiator
from jvpn.protocol.suites import suite, x25519_public

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

Source = tuple[str, int]
SEED = 20_241
#: Memory that a process may have taken for good reasons meanwhile.
GROWTH_KB = 20_000
#: UDP payload of an unfragmented IPv4 packet on the lab's links.
LONGEST = 1_472


class Attacker:
    """On the client's network, with everything that the client has sent and any address it likes."""

    def __init__(self, system: Running) -> None:
        self.system = system
        net = system.net
        captures = [towards_gateway(net.client, link.client_device) for link in net]
        system.clients[0].stop()
        wait_for(lambda: not system.sessions(), "the end of the first session")
        system.start_client()
        system.attached()
        wait_for(lambda: system.clients[-1].said.count("session up") == 2, "a configured tunnel")
        system.warm()
        with TcpEcho(net.client, net.gateway, "10.8.0.1") as tcp:
            left = system.active()
            left.down()
            system.moved_from(left)
            tcp.goes_on(3)
        left.up()
        system.warm()
        self.link = system.active()
        self.recorded: dict[PacketType, list[tuple[bytes, Source]]] = {}
        for link, capture in zip(net, captures, strict=True):
            for frame in capture.stop():
                data = payload(frame)
                kind = PacketType(data[0])
                # Of a superpacket the first segment: the longest that a single datagram can be.
                data = data[:1_400] if len(data) > LONGEST else data
                self.recorded.setdefault(kind, []).append((data, (link.client_ip, source_port(frame))))
        self.injector = Injector(net.client, self.link.client_device)
        self.elsewhere = (self.link.spare_ip, 6_666)
        self.bound = self._bound()

    def _bound(self) -> Source:
        address, _, port = self.system.sessions()[0]["source"].rpartition(":")
        return address, int(port)

    def newest(self, kind: PacketType) -> bytes:
        """The last of its type that came on the path in use."""
        return next(data for data, source in reversed(self.recorded[kind]) if source == self.bound)

    def send(self, data: bytes, source: Source | None = None) -> None:
        self.injector.send(data, source or self.elsewhere)

    def all_arrived(self) -> None:
        """Wait until a datagram that was sent after all others on the same way is counted."""
        already = counted(self.system, "unknown_peer")

        def seen() -> bool:
            self.send(unknown_key_init())
            return counted(self.system, "unknown_peer") > already

        wait_for(seen, "the last datagram counted")


@pytest.fixture(scope="module")
def attacker() -> Iterator[Attacker]:
    """One for all tests here: none of them may change anything, so none can disturb another."""
    with Lab("test") as lab, running(links.two_uplinks(lab, rtt_ms=20)) as system:
        attacker = Attacker(system)
        yield attacker
        attacker.injector.close()


def facts(system: Running) -> list[dict[str, Any]]:
    """What no bad datagram may change: everything about the sessions but their traffic."""
    moving = ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets", "age_ms", "since_ms", "last_switch")
    return [{name: row[name] for name in row if name not in moving} for row in system.sessions()]


def counted(system: Running, *names: str) -> int:
    counters = system.status()["counters"]
    return sum(counters.get(name, 0) for name in names)


def unknown_key_init() -> bytes:
    return Initiator(
        suite(1),
        client_key(99),
        x25519_public(GATEWAY_KEY),
        bytes(32),
        os.urandom(32),
        os.urandom(8),
        1,
        0,
        "default",
    ).init_datagram


def altered(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


def test_each_kind_of_bad_input_is_dropped_for_its_reason_and_changes_nothing(attacker: Attacker) -> None:
    system = attacker.system
    data, control = attacker.newest(PacketType.DATA), attacker.newest(PacketType.CONTROL)
    request, init = attacker.recorded[PacketType.REATTACH_REQUEST][-1][0], unknown_key_init()
    genuine_init = attacker.recorded[PacketType.HANDSHAKE_INIT][-1][0]
    bound, unknown = attacker.bound, data[:4] + b"nobodys!" + data[12:]
    # What is sent, from where, and every counter that may tell of it (XDP's, the worker's, the supervisor's).
    cases: list[tuple[str, bytes, Source | None, tuple[str, ...]]] = [
        ("unknown key", init, None, ("unknown_peer",)),
        ("spoilt mac1", altered(genuine_init, len(genuine_init) - 20), None, ("bad_mac1",)),
        ("wrong version", bytes((data[0], 0x20)) + data[2:], bound, ("xdp_drop_bad_version",)),
        ("unknown type", b"\x3f" + data[1:], bound, ("xdp_drop_unknown_type",)),
        ("reserved bits", altered(data, 3), bound, ("xdp_drop_reserved_bits",)),
        ("truncated", data[:19], bound, ("xdp_drop_truncated",)),
        ("too short", data[:30], bound, ("xdp_drop_bad_length",)),
        ("oversized control", control + bytes(1_300), bound, ("bad_length", "xdp_drop_bad_length")),
        ("unknown id", unknown, bound, ("xdp_drop_unknown_id",)),
        ("wrong source", data, None, ("xdp_drop_wrong_source", "xdp_owner_sample")),
        ("bad tag on data", altered(data, len(data) - 1), bound, ("worker_bad_tag",)),
        ("bad tag on control", altered(control, len(control) - 1), bound, ("bad_tag",)),
        ("bad proof", altered(request, 200), bound, ("bad_proof",)),
        ("replayed init", genuine_init, None, ("stale_timestamp",)),
        ("replayed control", control, bound, ("replay",)),
        ("replayed data", data, bound, ("worker_replayed",)),
    ]
    before = facts(system)
    for what, datagram, source, names in cases:
        already = counted(system, *names)
        attacker.send(datagram, source)
        wait_for(lambda names=names, n=already: counted(system, *names) > n, what)  # type: ignore[misc]
        assert facts(system) == before, what
    system.audited()


def test_replayed_requests_bind_nothing_and_are_told(attacker: Attacker) -> None:
    system = attacker.system
    before, already = facts(system), len(system.events(kind=SecurityEvent))
    requests = attacker.recorded[PacketType.REATTACH_REQUEST]
    judged = ("reattach_same_ack", "reattach_drop", "reattach_pending", "reattach_rate", "unknown_id")
    counts = counted(system, *judged)
    for data, source in requests * 3:
        attacker.send(data, source)
        attacker.send(data)
    wait_for(lambda: counted(system, *judged) - counts >= 6 * len(requests), "every copy judged")
    assert facts(system) == before
    with TcpEcho(system.net.client, system.net.gateway, "10.8.0.1") as tcp:
        tcp.goes_on()
    # A stale attempt is a security event; the newest attempt again is only answered again.
    assert {event.violation for event in system.events(kind=SecurityEvent)[already:]} <= {"STALE_ATTEMPT"}
    system.audited()


def resident_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])


def test_a_thousand_altered_datagrams_of_every_type(attacker: Attacker) -> None:
    system = attacker.system
    assert attacker.recorded.keys() >= {
        PacketType.HANDSHAKE_INIT,
        PacketType.REATTACH_REQUEST,
        PacketType.DATA,
        PacketType.CONTROL,
        PacketType.PATH,
    }
    pids = system.net.gateway.pids()
    memory = {pid: resident_kb(pid) for pid in pids}
    before = facts(system)
    dice = random.Random(SEED)
    for number in range(1_000):
        kind = dice.choice(sorted(attacker.recorded))
        data, source = dice.choice(attacker.recorded[kind])
        attacker.send(spoil(dice, data, number), dice.choice((source, attacker.bound, attacker.elsewhere)))
    attacker.all_arrived()
    assert facts(system) == before
    with TcpEcho(system.net.client, system.net.gateway, "10.8.0.1") as tcp:
        tcp.goes_on()
    assert system.net.gateway.pids() == pids
    grown = {pid: resident_kb(pid) - memory[pid] for pid in pids}
    assert max(grown.values()) < GROWTH_KB, grown
    dropped = {name: n for name, n in system.status()["counters"].items() if "drop" in name or "bad" in name}
    assert sum(dropped.values()) > 300, dropped
    system.audited()


def spoil(dice: random.Random, data: bytes, number: int) -> bytes:
    """Cut, lengthened, or with some bits turned; never what it was, and never too long for the link."""
    how = number % 3
    if how == 0:
        return data[: dice.randrange(len(data))]
    changed = bytearray(data)
    if how == 1:
        changed += dice.randbytes(dice.randrange(1, 64))
    for _ in range(dice.randrange(1, 5)):
        changed[dice.randrange(min(len(changed), LONGEST))] ^= dice.randrange(1, 256)
    altered = bytes(changed[:LONGEST])
    return altered if altered != data else data[:-1]


def test_datagrams_larger_than_any_of_ours_and_empty_ones(attacker: Attacker) -> None:
    system = attacker.system
    before = facts(system)
    gateway_address = (system.net.service_ip, 51_820)
    with system.net.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for size in (0, 1, 1_473, 9_000, 65_000):
            for first in (0, PacketType.HANDSHAKE_INIT, PacketType.DATA, PacketType.REATTACH_REQUEST, 0xFF):
                sender.sendto((bytes((first, 0x10)) + bytes(size))[:size], gateway_address)
    attacker.all_arrived()
    assert facts(system) == before
    with TcpEcho(system.net.client, system.net.gateway, "10.8.0.1") as tcp:
        tcp.goes_on()
