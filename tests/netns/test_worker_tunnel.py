"""Two real workers, each in its namespace, joined by a veth: what users send through the tunnel arrives."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from worker_pair import (
    CLIENT_4,
    CLIENT_6,
    CLIENT_PORT,
    GATEWAY_4,
    GATEWAY_6,
    GATEWAY_PORT,
    NOBODY,
    Tunnel,
    datagrams,
    echo,
    outer,
    stream,
)

from jvpn.lab.namespaces import Lab
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import PacketType, Transport
from jvpn.protocol.paths import INDEX_ACTIVE, SOURCE_BOUND, challenge_slot, challenge_valid
from jvpn.protocol.wire import Header
from workers import commands
from workers.counters import Counter

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]


@pytest.fixture
def tunnel() -> Iterator[Tunnel]:
    with Lab("worker") as lab, contextlib.ExitStack() as stack:
        made = Tunnel(lab)
        stack.callback(made.client.end)
        stack.callback(made.gateway.end)
        yield made


@pytest.mark.parametrize("outer_ipv6", [False, True])
@pytest.mark.parametrize("suite", [1, 2])
def test_icmp_tcp_and_udp_pass_whole_in_both_families(tunnel: Tunnel, outer_ipv6: bool, suite: int) -> None:
    tunnel.open(outer_ipv6=outer_ipv6, suite=suite)
    ends = tunnel.network.client, tunnel.network.gateway
    for address in (GATEWAY_4, GATEWAY_6):
        for size in (0, 56, 1300, 4000, 20_000):  # the last two are fragments inside
            echo(tunnel.network.client, address, size)
        stream(*ends, address, 48 << 20)
        datagrams(*ends, address)
    for address in (CLIENT_4, CLIENT_6):
        stream(*reversed(ends), address, 48 << 20)
        datagrams(*reversed(ends), address)
    for worker in (tunnel.client, tunnel.gateway):
        assert worker.counted(Counter.DELIVERED_BYTES) > 96 << 20
        assert worker.dropped().keys() <= {"SEND_FULL"}
        assert worker.counted(Counter.TUN_WRITES) < worker.counted(Counter.DELIVERED_PACKETS) / 2


def test_a_session_moves_between_uplinks_without_losing_a_packet(tunnel: Tunnel) -> None:
    tunnel.open()
    client, gateway = tunnel.client, tunnel.gateway
    ends = tunnel.network.client, tunnel.network.gateway
    stream(*ends, GATEWAY_4, 1 << 20)
    far = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 60 * 10**9
    for index, link, before in ((1, "B", 0), (2, "A", 1)):
        # The client delivers on the new index before it is told that the bind is done.
        path = tunnel.client_path(index, link)
        client.must(commands.SendProbe, 0, path, 4711 + index)
        answer = client.wait_for(commands.ProbeAnswered, timestamp_us=4711 + index)
        assert (answer.index, answer.flags & INDEX_ACTIVE, answer.highest_installed) == (index, 0, 5)
        client.must(commands.Rebind, 0, tunnel.client_path(before, "AB"[before % 2]), None, 0, [index])
        gateway.must(commands.Rebind, 0, tunnel.gateway_path(index, link), before, far, [])
        stream(*ends, GATEWAY_4, 1 << 20)  # up on the draining index, down on the new one
        client.must(commands.Rebind, 0, path, before, far, [])
        stream(*ends, GATEWAY_4, 1 << 20)
        assert gateway.page.read_highest(0, index) is not None
    assert client.dropped() == gateway.dropped() == {}


def test_data_from_an_unbound_address_is_not_delivered_but_answered(tunnel: Tunnel) -> None:
    tunnel.open()
    client, gateway = tunnel.client, tunnel.gateway
    echo(tunnel.network.client, GATEWAY_4, 56)
    delivered = gateway.counted(Counter.DELIVERED_PACKETS)
    # The same index from uplink B: what a NAT rebinding looks like from the gateway.
    client.must(commands.Rebind, 0, tunnel.client_path(0, "B"), None, 0, [])
    with tunnel.network.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"hello", (GATEWAY_4, 9))
        answer = client.wait_for(commands.ProbeAnswered, timestamp_us=0)
    assert answer.flags & INDEX_ACTIVE
    assert not answer.flags & SOURCE_BOUND
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert challenge_valid(
        answer.challenge,
        b"c" * 32,
        b"s" * 16,
        to_bytes(outer("B", 2, False)),
        CLIENT_PORT,
        to_bytes(outer("B", 1, False)),
        GATEWAY_PORT,
        Transport.UDP,
        challenge_slot(now),
    )
    assert gateway.counted(Counter.DELIVERED_PACKETS) == delivered
    assert gateway.dropped().keys() == {"WRONG_SOURCE"}


def test_what_is_not_for_the_data_plane_reaches_the_supervisor_unread(tunnel: Tunnel) -> None:
    tunnel.open()
    init = Header(PacketType.HANDSHAKE_INIT, b"c" * 8, suite=1).encode() + os.urandom(200)
    with tunnel.network.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((outer("A", 1, False), GATEWAY_PORT))
        sender.send(init)
        source, port = sender.getsockname()
    report = tunnel.gateway.wait_for(commands.Datagram)
    assert report.data == init
    assert (report.remote.address, report.remote.port) == (to_bytes(source), port)
    assert (report.local.address, report.local.port) == (to_bytes(outer("A", 1, False)), GATEWAY_PORT)


def test_a_worker_gives_up_its_privileges_and_ends_when_told_or_left_alone(tunnel: Tunnel) -> None:
    tunnel.open()
    status = Path(f"/proc/{tunnel.gateway.process.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert fields["Uid"].split() == fields["Gid"].split() == [str(NOBODY)] * 4
    assert {int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert fields["NoNewPrivs"] == "1"
    assert fields["Groups"].split() == []
    tunnel.gateway.must(commands.Stop)
    tunnel.gateway.process.join(10)
    assert tunnel.gateway.process.exitcode == 0
    tunnel.client.channel.shutdown(socket.SHUT_RDWR)
    tunnel.client.process.join(10)
    assert tunnel.client.process.exitcode == 0
