"""A key holder who does what no client does: moves without asking, races itself, lies of versions, talks nonsense."""

import os
import random
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from injection import Injector, payload
from insider import INNER, INNER_GATEWAY, Insider
from interop.inner import TCP, UDP, echo, ipv4, udp
from interop.wire import Header, Type
from running import Running, running, wait_for
from streams import TcpEcho
from test_bad_input import GROWTH_KB, LONGEST, counted, facts, resident_kb

from jvpn.lab import links
from jvpn.lab.capture import Capture
from jvpn.lab.faults import EmulatedLink
from jvpn.lab.namespaces import Lab
from jvpn.observability.events import SecurityEvent, TransportSwitch

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

SEED = 26
FOREIGN = "198.51.100.66"
#: Of one superpacket.
SLICE, SLICES = 200, 8
#: linux/udp.h: the socket option, and control message, that has one send cut into datagrams.
UDP_SEGMENT = 103
#: What the IPv6 addresses of all sessions here begin with.
INNER_NET6 = bytes.fromhex("fd00000800")


@dataclass
class Scene:
    """The genuine client 0 on A and B with a TCP stream, the insider on C."""

    system: Running
    insider: Insider
    injector: Injector
    neighbour: TcpEcho

    @property
    def link(self) -> EmulatedLink:
        found: EmulatedLink = self.system.net["C"]
        return found

    def security(self) -> list[Any]:
        mine = self.insider.session.session_id.hex()
        return [e for e in self.system.events(kind=SecurityEvent) if e.session_id == mine]

    def switches(self) -> list[Any]:
        mine = self.insider.session.session_id.hex()
        return [e for e in self.system.events(kind=TransportSwitch) if e.session_id == mine]


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """One for all tests here: each leaves the session attached and both clients served."""
    with Lab("keys") as lab:
        net = links.uplinks(lab, "ABC", rtt_ms=4)
        with (
            running(net) as system,
            TcpEcho(net.client, net.gateway, "10.8.0.1") as neighbour,
        ):
            insider = Insider(system, net["C"])
            injector = Injector(net.client, net["C"].client_device)
            yield Scene(system, insider, injector, neighbour)
            insider.close()
            injector.close()


def sound(scene: Scene) -> None:
    """Both clients are served and the auditor finds nothing."""
    scene.insider.converses()
    scene.neighbour.goes_on()
    scene.system.audited()


def test_f9_data_from_a_new_source_alone_never_moves_the_binding(scene: Scene) -> None:
    insider, system = scene.insider, scene.system
    insider.converses()
    before, elsewhere = insider.row(), (scene.link.spare_ip, 7_009)
    device = scene.link.client_device
    back = Capture(system.net.client, device, f"udp and dst host {elsewhere[0]} and dst port {elsewhere[1]}")
    names = ("xdp_owner_sample", "worker_wrong_source", "xdp_drop_wrong_source")
    already = counted(system, *names)
    data = [
        insider.session.seal(
            Type.DATA, insider.index, bytes(8) + echo(INNER, INNER_GATEWAY, 8, 1, n, bytes(56))
        )
        for n in range(40)
    ]
    for datagram in data:
        scene.injector.send(datagram, elsewhere)
    # The first is never lost: it is answered, by a PROBE_ACK no longer than what it answers.
    insider.until(lambda: counted(system, *names) > already, "a sample")
    back.wait_for(lambda frame: not frame.outgoing)
    insider.converses()
    answers = [payload(frame) for frame in back.stop() if not frame.outgoing]
    assert {answer[0] for answer in answers} == {Type.PATH}
    assert max(map(len, answers)) <= len(data[0])
    assert sum(map(len, answers)) <= sum(map(len, data))
    after = insider.row()
    assert [after[k] for k in ("source", "index", "state_version")] == [
        before[k] for k in ("source", "index", "state_version")
    ]
    # Nothing of it was delivered, nor taken for seen: the same datagrams from the bound source are.
    packets = insider.row()["rx_packets"]
    for datagram in data:
        insider.active.send(datagram)
    insider.until(lambda: insider.row()["rx_packets"] >= packets + len(data), "the same datagrams delivered")
    sound(scene)


def test_f14_requests_at_once_have_one_winner_and_one_binding(scene: Scene) -> None:
    insider = scene.insider
    # Candidates race with one attempt: the first binds, and the other is told which.
    known, first, version = len(scene.switches()), insider.spare(), insider.client.version
    second, attempt = insider.spare(first), insider.next_attempt()
    acks = insider.asks([(path, insider.request(path, attempt)) for path in (first, second)])
    assert [ack.bound for ack in acks.values()] == [True, True]
    assert {ack.bound_index for ack in acks.values()} in ({first.index}, {second.index})
    assert {ack.version for ack in acks.values()} == {version + 2}
    insider.follow(acks[first.name], attempt)
    # Two attempts, the older one overtaken: it neither binds nor is answered, and the session stays where it is.
    first, version = insider.spare(), insider.client.version
    second, old, new = insider.spare(first), insider.next_attempt(), insider.next_attempt()
    late = insider.request(second, old)
    (won,) = insider.asks([(first, insider.request(first, new))]).values()
    second.send(late)
    assert (won.bound_index, won.version) == (first.index, version + 2)
    insider.follow(won, new)
    wait_for(
        lambda: "STALE_ATTEMPT" in {event.violation for event in scene.security()}, "a stale attempt told"
    )
    moved = scene.switches()[known:]
    assert len(moved) == 2
    assert insider.row()["index"] == moved[-1].new.index == insider.index
    sound(scene)


def test_f15_versions_that_the_session_never_had(scene: Scene) -> None:
    insider, system = scene.insider, scene.system
    insider.converses()
    before = facts(system)
    for version, reason in (
        (insider.client.version + 1, "VERSION_CONFLICT"),
        (insider.client.version + (1 << 40), "NOT_OWNER"),
    ):
        path, attempt = insider.spare(), insider.next_attempt()
        (fail,) = insider.asks([(path, insider.request(path, attempt, version=version))]).values()
        assert (fail.reason, fail.attempt) == (reason, attempt)
        assert fail.version == insider.row()["state_version"]
        assert facts(system) == before
    told = [event.violation for event in scene.security()]
    assert told.count("VERSION_CONFLICT") == 1
    # A version that is behind is what a lost ACK leaves: it strands nobody.
    path, attempt = insider.spare(), insider.next_attempt()
    behind = insider.request(path, attempt, version=insider.client.version - 1)
    (ack,) = insider.asks([(path, behind)]).values()
    assert ack.bound
    insider.follow(ack, attempt)
    sound(scene)


# F26


def inner_packets(dice: random.Random) -> list[bytes]:
    """Inner packets that no client's kernel sends."""
    good, foreign = echo(INNER, INNER_GATEWAY, 8, 2, 2, bytes(56)), FOREIGN
    tcp = struct.pack(">HHIIBBHHH", 4000, 5000, 1, 1, 0x50, 0x18, 1000, 0, 0) + bytes(100)
    made = [
        b"",
        good[:1],
        good[:19],
        good[:27],
        bytes([0x55]) + good[1:],
        bytes([0x41]) + good[1:],
        bytes([0x4F]) + good[1:],
        good + bytes(3),
        good[:-3],
        good[:2] + b"\xff\xff" + good[4:],
        echo(foreign, INNER_GATEWAY, 8, 2, 2, bytes(56)),
        echo(INNER_GATEWAY, INNER, 8, 2, 2, bytes(56)),
        udp(foreign, INNER_GATEWAY, 1, 2, bytes(64)),
        ipv4(foreign, INNER_GATEWAY, TCP, tcp),
        b"\x60" + bytes(5) + b"\x3a\x40" + bytes(32) + bytes(40),
        b"\x60" + bytes(3) + b"\x00\x20\x00\x40" + bytes(64),
    ]
    made += [dice.randbytes(dice.randrange(1, 1_300)) for _ in range(100)]
    return made


def plaintexts(dice: random.Random) -> Iterator[bytes]:
    """DATA plaintexts with bad inner packets, and good ones with bad offload headers."""
    for packet in inner_packets(dice):
        yield bytes(8) + packet
    for protocol in (TCP, UDP):
        packet = ipv4(INNER, INNER_GATEWAY, protocol, dice.randbytes(200))
        for _ in range(300):
            head = struct.pack(
                ">BBHHH",
                dice.choice((0, 1, 2, 3, 4, 255)),
                dice.choice((0, 1, 2, 3, 4, 5, 255)),
                dice.choice((0, 1, 63, 64, 172, 180, 65_535)),
                dice.choice((0, 19, 20, 21, 40, 199, 65_535)),
                dice.choice((0, 6, 16, 400, 65_535)),
            )
            yield head + packet
    for size in range(9):
        yield bytes(size)


def run_of(insider: Insider, source: str) -> bytes:
    """Datagrams of one TCP superpacket from that inner source, as one send makes them."""
    segment = struct.pack(">HHIIBBHHH", 4_000, 5_000, 1, 1, 0x50, 0x10, 1_000, 0, 0) + bytes(SLICE)
    packet = ipv4(source, INNER_GATEWAY, TCP, segment)
    plain = [
        struct.pack(">BBHHH", 1 | 2 * (n == SLICES - 1), 1, SLICE, 20, n) + packet for n in range(SLICES)
    ]
    return b"".join(insider.session.seal(Type.DATA, insider.index, each) for each in plain)


def test_f26_superpackets_with_a_foreign_source(scene: Scene) -> None:
    insider, system = scene.insider, scene.system
    insider.converses()
    tunnel, already = Capture(system.net.gateway, "jvpn0"), counted(system, "worker_inner_source")

    def passed() -> bool:
        """A superpacket of our own came through in one piece, so those beside it came to the same place."""
        for source in (FOREIGN, INNER, FOREIGN):
            run = run_of(insider, source)
            size = struct.pack("=H", len(run) // SLICES)
            insider.active.socket.sendmsg(
                [run], [(socket.IPPROTO_UDP, UDP_SEGMENT, size)], 0, insider.active.gateway
            )
        return any(len(frame.data) > SLICE * SLICES for frame in tunnel.frames() if not frame.outgoing)

    insider.until(passed, "a superpacket in one piece")
    insider.until(lambda: counted(system, "worker_inner_source") > already, "foreign ones counted")
    sound(scene)
    assert sources(tunnel) == {INNER, "10.8.0.2"}


def sources(tunnel: Capture) -> set[str]:
    """Inner IPv4 sources of what the gateway delivered to its kernel; all IPv6 is from its sessions' network."""
    delivered = [frame.data for frame in tunnel.stop() if not frame.outgoing]
    assert not [data for data in delivered if data[0] >> 4 != 4 and data[8:13] != INNER_NET6]
    return {socket.inet_ntoa(data[12:16]) for data in delivered if data[0] >> 4 == 4}


def test_f26_bad_packets_under_the_keys_of_a_genuine_client(scene: Scene) -> None:
    insider, system, dice = scene.insider, scene.system, random.Random(SEED)
    insider.converses()
    before, pids = facts(system), system.net.gateway.pids()
    memory = {pid: resident_kb(pid) for pid in pids}
    tunnel = Capture(system.net.gateway, "jvpn0")
    refused = ("worker_bad_offload", "worker_bad_inner", "worker_inner_source")
    already = counted(system, *refused)
    sent = 0
    for plaintext in plaintexts(dice):
        insider.active.send(insider.session.seal(Type.DATA, insider.index, plaintext))
        sent += 1
        if sent % 100 == 0:
            insider.client.step(0.002)
    for kind in (Type.FRAGMENT, Type.RESENT, Type.PATH, Type.CONTROL):
        for size in (*range(60), 100, 500, 1_190):
            insider.active.send(insider.session.seal(kind, insider.index, dice.randbytes(size)))
        insider.client.step(0.002)
    sound(scene)
    assert counted(system, *refused) - already > sent // 2
    assert counted(system, "worker_bad_path") > 0
    assert counted(system, "bad_control") > 0
    # Nothing whose source is not its session's own address reached the gateway's kernel.
    assert sources(tunnel) == {INNER, "10.8.0.2"}
    assert facts(system) == before
    assert_unharmed(system, pids, memory)


def test_f26_every_type_and_length(scene: Scene) -> None:
    insider, system, dice = scene.insider, scene.system, random.Random(SEED + 1)
    insider.converses()
    before, pids = facts(system), system.net.gateway.pids()
    memory = {pid: resident_kb(pid) for pid in pids}
    sizes = (*range(0, 120, 3), 255, 256, 257, 1_231, 1_232, 1_233, LONGEST)
    already = dropped(system)
    for number in range(256):
        head = Header(Type.DATA, insider.session.steering_id(insider.index), 1 << 47).pack()
        for size in sizes:
            datagram = (bytes([number]) + head[1:] + dice.randbytes(size))[:size]
            source = dice.choice((insider.source, (scene.link.spare_ip, 7_026)))
            scene.injector.send(datagram, source)
        insider.client.step(0)
    sound(scene)
    assert dropped(system) - already > 5_000
    assert facts(system) == before
    assert_unharmed(system, pids, memory)


def dropped(system: Running) -> int:
    """All datagrams that went no further because of what they are."""
    counts = system.status()["counters"]
    return sum(n for name, n in counts.items() if "drop" in name or "bad" in name)


def assert_unharmed(system: Running, pids: list[int], memory: dict[int, int]) -> None:
    """No process died or took memory for it."""
    assert system.net.gateway.pids() == pids
    grown = {pid: resident_kb(pid) - memory[pid] for pid in pids}
    assert max(grown.values()) < GROWTH_KB, grown
    assert "Traceback" not in system.gateway.said
