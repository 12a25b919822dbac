"""Gateways on one real etcd: a node dies, or is cut off, and its client goes on at another, TCP and all."""

from collections.abc import Iterator
from pathlib import Path

import etcd_cluster
import pytest
from fleet_lab import FleetLab

from jvpn.lab.namespaces import Lab
from jvpn.lab.running import wait_for


@pytest.fixture
def fleet(lab: Lab, tmp_path: Path) -> Iterator[FleetLab]:
    etcd_cluster.need_etcd()
    with FleetLab(lab, tmp_path) as fleet:
        yield fleet


def test_a_node_dies_and_another_takes_its_session(fleet: FleetLab) -> None:
    fleet.start("gw1", "gw2")
    client = fleet.start_client("gw1", "gw2")
    session = client.status()["session"]
    assert fleet.owner() == "gw1"
    fleet.crash("gw1")
    wait_for("the session at gw2", lambda: fleet.owner() == "gw2" and fleet.attached())
    assert client.status()["session"] == session
