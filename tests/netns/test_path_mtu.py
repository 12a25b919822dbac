"""A path that silently drops long packets, ICMP and all: nothing hangs, and what it carries is found."""

import os
import socket
from collections.abc import Iterator

import pytest

from jvpn.lab.iperf import Iperf
from jvpn.lab.links import two_uplinks
from jvpn.lab.namespaces import Lab, Namespace
from jvpn.lab.running import GATEWAY_INNER, GATEWAY_INNER6, Tunnel, wait_for

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

NARROW = 1280


@pytest.fixture
def tunnel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    work = tmp_path_factory.mktemp(f"mtu{os.getpid()}")
    with Lab("mtu") as lab, Tunnel(two_uplinks(lab, rtt_ms=20), work) as running:
        wait_for("both uplinks as candidates", lambda: running.validated("A", "B"))
        yield running


def arrives(source: Namespace, sink: Namespace, address: str, size: int) -> bool:
    """Whether one of a few UDP datagrams of `size` bytes comes through as it was sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        sink.socket(family, socket.SOCK_DGRAM) as receiver,
        source.socket(family, socket.SOCK_DGRAM) as sender,
    ):
        receiver.settimeout(0.3)
        receiver.bind((address, 0))
        body = os.urandom(size)
        for _ in range(5):
            try:
                sender.sendto(body, receiver.getsockname()[:2])
                if receiver.recv(4096) == body:
                    return True
            except (TimeoutError, OSError):
                continue
    return False


@pytest.mark.parametrize("address", [GATEWAY_INNER, GATEWAY_INNER6])
def test_everything_passes_a_path_of_1280_bytes(tunnel: Tunnel, address: str) -> None:
    client, gateway = tunnel.network.client, tunnel.network.gateway
    run = Iperf(client, gateway, address, seconds=8)
    run.start()
    wait_for("the transfer to flow", lambda: any(seen.gbit_s > 0 for seen in run.intervals))
    for link in tunnel.network:
        link.impair(mtu=NARROW)
    # Within seconds, although no ICMP says so and TCP's own segments were longer.
    narrowed = len(run.intervals)
    wait_for("the transfer to go on", lambda: sum(s.gbit_s > 0.001 for s in run.intervals[narrowed:]) >= 3)
    result = run.wait()
    assert result.ok, result.error
    for size in (1000, 1200, 1232, 1300, 1350):
        assert arrives(client, gateway, address, size), size
    back = "10.8.0.2" if ":" not in address else "fd00:8::2"
    for size in (1000, 1200, 1232, 1300, 1350):
        assert arrives(gateway, client, back, size), size
