"""A path dies under a steady stream in both directions: every datagram arrives, none twice."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jvpn.lab.gauge import GaugeResult, StreamGauge
from jvpn.lab.links import two_uplinks
from jvpn.lab.namespaces import Lab
from jvpn.lab.running import GATEWAY_INNER, Tunnel, wait_for

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

HZ = 200
RTT_MS = 20


@pytest.fixture
def tunnel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    work: Path = tmp_path_factory.mktemp(f"lossless{os.getpid()}")
    with Lab("lossless") as lab, Tunnel(two_uplinks(lab, rtt_ms=RTT_MS), work) as running:
        wait_for("both uplinks as candidates", lambda: running.validated("A", "B"))
        yield running


def switched(tunnel: Tunnel, old: str) -> bool:
    return tunnel.active_link() not in ("", old) and tunnel.client.status()["state"] == "ATTACHED"


def flow(gauge: StreamGauge, more: int) -> None:
    """Wait until both directions have delivered `more` further datagrams."""
    before = gauge.snapshot()
    wait_for(
        "the stream to flow",
        lambda: (
            min(
                now.received - then.received
                for now, then in zip(_ways(gauge.snapshot()), _ways(before), strict=True)
            )
            >= more
        ),
    )


def _ways(seen: GaugeResult) -> tuple:
    return seen.up, seen.down


@pytest.mark.parametrize("fault", ["link down", "blackhole"])
def test_a_dead_path_costs_delay_and_no_packet(tunnel: Tunnel, fault: str) -> None:
    client, gateway = tunnel.network.client, tunnel.network.gateway
    with StreamGauge(client, gateway, GATEWAY_INNER, hz=HZ) as gauge:
        flow(gauge, HZ // 2)
        for _ in range(2):  # there and back
            old = tunnel.active_link()
            link = tunnel.network[old]
            link.down() if fault == "link down" else link.blackhole()
            wait_for("another uplink", lambda old=old: switched(tunnel, old))
            flow(gauge, HZ // 2)
            link.up() if fault == "link down" else link.heal()
            wait_for("the uplink as a candidate", lambda old=old: tunnel.validated(old))
        seen = gauge.stop()
    for stream in _ways(seen):
        assert stream.sent > HZ
        assert (stream.lost, stream.duplicated, stream.refused) == (0, 0, 0)
