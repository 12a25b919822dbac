"""`jvpn drain` on a real fleet: the client goes to the other node under traffic, and no packet is lost."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import etcd_cluster
import pytest

from jvpn.lab.fleet import HOST, FleetLab
from jvpn.lab.gauge import StreamGauge
from jvpn.lab.namespaces import Lab
from jvpn.lab.running import JVPN, wait_for
from jvpn.observability.verify import audit

HZ = 500


@pytest.fixture
def fleet(lab: Lab, tmp_path: Path) -> Iterator[FleetLab]:
    etcd_cluster.need_etcd()
    with etcd_cluster.in_memory(tmp_path) as folder:
        made = FleetLab(lab, tmp_path)
        made.cluster.folder = folder
        with made as fleet:
            fleet.start("gw1", "gw2")
            fleet.start_client("gw1", "gw2")
            wait_for("traffic", lambda: reaches(fleet, HOST))
            yield fleet


def reaches(fleet: FleetLab, address: str) -> bool:
    return fleet.client_space.run(["ping", "-c1", "-W1", address], check=False).returncode == 0


def drain(fleet: FleetLab, name: str, *options: str) -> "subprocess.CompletedProcess[str]":
    run_dir = str(fleet.gateways[name].run_dir)
    return subprocess.run(
        [*JVPN, "drain", *options, "--run-dir", run_dir],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_node_is_emptied_under_traffic_and_no_packet_is_lost(fleet: FleetLab) -> None:
    assert fleet.client is not None
    session = fleet.client.status()["session"]
    assert fleet.owner() == "gw1"
    with StreamGauge(fleet.client_space, fleet.host, HOST, hz=HZ) as gauge:
        wait_for("some traffic", lambda: min(gauge.counts()) > HZ // 2)
        done = drain(fleet, "gw1", "gw1", "--json")
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)
        assert (seen["moved"], seen["left"], seen["nodes"]) == (1, 0, ["gw2"])
        at_end = min(gauge.counts())
        wait_for("traffic at the other node", lambda: min(gauge.counts()) > at_end + HZ)
        result = gauge.stop()
    assert [(way.lost, way.duplicated, way.refused) for way in (result.up, result.down)] == [(0, 0, 0)] * 2
    assert fleet.owner() == "gw2"
    assert fleet.client.status()["session"] == session
    assert fleet.client.status()["counters"]["handshakes"] == 1
    # Nobody can be sent to a node that drains.
    refused = drain(fleet, "gw2", "--timeout", "1")
    assert refused.returncode == 1
    assert "nobody to move to" in refused.stderr
    assert drain(fleet, "gw1", "--undo").returncode == 0
    wait_for("gw1 to take sessions", lambda: drain(fleet, "gw2", "--timeout", "10").returncode == 0)
    assert fleet.owner() == "gw1"
    events = [line for node in fleet.gateways.values() for line in node.event_lines()]
    events.sort(key=lambda line: json.loads(line)["ts_ms"])
    assert [str(finding) for finding in audit(events)] == []
