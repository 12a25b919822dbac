"""Paths that fail under traffic: silence longer than what is kept (F1, F4), a narrow path to go to (F28)."""

import os
import time
from collections.abc import Iterator

import pytest
from running import Running, Setup, running, wait_for
from streams import TcpEcho

from jvpn.lab import links
from jvpn.lab.capture import Capture
from jvpn.lab.gauge import GaugeResult, StreamGauge
from jvpn.lab.iperf import Iperf
from jvpn.lab.namespaces import Lab
from jvpn.observability.events import TransportSwitch
from jvpn.protocol.constants import PacketType

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

HZ = 200
NARROW = 1_280
#: Twice the default resend window (500 ms): what was sent longer ago than this is too old on any machine.
TOO_OLD_NS = 1_000_000_000


@pytest.fixture(scope="module")
def system() -> Iterator[Running]:
    """One for all tests here; the gateway notices a silent client after a second and a half."""
    with Lab("paths") as lab:
        net = links.two_uplinks(lab, rtt_ms=10)
        with running(net, Setup(policy={"idle_probe_interval_ms": 500})) as made:
            yield made


def flow(gauge: StreamGauge, more: int) -> None:
    """Wait until both ends have sent `more` further datagrams."""
    before = gauge.snapshot()
    wait_for(
        lambda: all(
            now.sent - then.sent >= more
            for now, then in zip(ways(gauge.snapshot()), ways(before), strict=True)
        ),
        "the streams to go on",
    )


def ways(seen: GaugeResult) -> tuple:
    return seen.up, seen.down


def test_f4_the_only_path_returns_and_nothing_old_is_delivered(system: Running) -> None:
    net, before = system.net, system.attached()
    handshakes = system.handshakes()
    for link in net:
        if link is not system.active():
            link.blackhole()
    with (
        TcpEcho(net.client, net.gateway, "10.8.0.1") as tcp,
        StreamGauge(net.client, net.gateway, "10.8.0.1", hz=HZ) as gauge,
    ):
        flow(gauge, HZ // 2)
        only = system.active()
        only.blackhole()
        # What was under way has arrived by then.
        flow(gauge, HZ // 10)
        gone_ns = time.monotonic_ns()
        wait_for(lambda: system.client()["state"] in ("RECOVERING", "DEGRADED"), "a client without a path")
        wait_for(lambda: time.monotonic_ns() - gone_ns > 2 * TOO_OLD_NS, "an outage longer than what is kept")
        flow(gauge, HZ // 10)
        back_ns = time.monotonic_ns()
        only.heal()
        after = system.attached()
        tcp.goes_on()
        flow(gauge, HZ // 2)
        result = gauge.stop()
    assert after["session_id"] == before["session_id"]
    assert system.handshakes() == handshakes
    for stream in ways(result):
        old = [t for t in stream.sent_ns if gone_ns <= t < back_ns - TOO_OLD_NS]
        assert len(old) > HZ // 4
        assert stream.lost_between(gone_ns, back_ns - TOO_OLD_NS) == len(old)
        assert stream.duplicated == 0
        # What is young enough was kept for the path's return.
        assert stream.lost < stream.sent - HZ // 2
    for link in net:
        link.heal()
    system.warm()
    system.audited()


def test_f28_a_transfer_goes_on_over_a_path_that_is_narrower_than_the_last(system: Running) -> None:
    net, before = system.net, system.attached()
    wide = system.active()
    narrow, moves = system.other(wide), len(system.events(kind=TransportSwitch))
    run = Iperf(net.client, net.gateway, "10.8.0.1", seconds=6, interval_s=0.25)
    run.start()
    wait_for(lambda: sum(seen.gbit_s > 0 for seen in run.intervals) >= 2, "the transfer to flow")
    narrow.impair(mtu=NARROW)
    capture = Capture(net.client, narrow.client_device, "udp", snap_bytes=64)
    wide.down()
    system.moved_from(wide)
    moved = len(run.intervals)
    # No ICMP says that the path is narrow, and TCP's segments were cut for a wider one.
    wait_for(lambda: sum(seen.gbit_s > 0.001 for seen in run.intervals[moved:]) >= 3, "the transfer to go on")
    result = run.wait()
    assert result.ok, result.error
    assert_fits(capture)
    assert len(system.events(kind=TransportSwitch)) > moves
    assert system.attached()["session_id"] == before["session_id"]
    # Both ways, and afterwards as well.
    with TcpEcho(net.client, net.gateway, "10.8.0.1") as tcp:
        tcp.goes_on()
    narrow.heal()
    wide.up()
    system.warm()
    system.audited()


def assert_fits(capture: Capture) -> None:
    """The last DATA that the client sent was no longer than what passes, and not much shorter."""
    # Ethernet takes 14 bytes; the length of the IPv4 packet stands at 2, the type of the datagram at 28.
    frames = [frame.data for frame in capture.stop() if frame.outgoing and len(frame.data) > 42]
    sizes = [int.from_bytes(f[16:18], "big") for f in frames if f[42] == PacketType.DATA]
    assert NARROW - 200 < max(sizes[-200:]) <= NARROW
