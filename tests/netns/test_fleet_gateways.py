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


def test_a_client_has_its_address_out_of_the_pool_at_every_node(fleet: FleetLab) -> None:
    """After a takeover, and after another handshake there."""
    fleet.fixed, fleet.pool = "", "pool: [10.8.0.0/24]\n"
    fleet.start("gw1", "gw2")
    client = fleet.start_client("gw1", "gw2")
    session = client.status()["session"]
    ((given,),) = (peer["pool_addresses"] for peer in fleet.gateways["gw2"].ask("peers"))
    on_tun = ["ip", "-o", "addr", "show", "dev", "jvpn0", "to", given]
    wait_for("its address", lambda: given in fleet.client_space.run(on_tun, check=False).stdout)
    fleet.crash("gw1")
    wait_for("the session at gw2", lambda: fleet.owner() == "gw2" and fleet.attached())
    assert client.status()["session"] == session
    assert [found["inner_addresses"] for found in fleet.sessions("gw2")] == [[f"{given}/32"]]
    ping = ["ping", "-c", "1", "-W", "5", "-I", given, "10.8.0.1"]
    assert fleet.client_space.run(ping, check=False).returncode == 0
    assert client.stop() == 0
    assert fleet.start_client("gw1", "gw2").status()["session"] != session
    assert [found["inner_addresses"] for found in fleet.sessions("gw2")] == [[f"{given}/32"]]


def test_a_node_dies_and_another_takes_its_session(fleet: FleetLab) -> None:
    fleet.start("gw1", "gw2")
    client = fleet.start_client("gw1", "gw2")
    session = client.status()["session"]
    assert fleet.owner() == "gw1"
    fleet.crash("gw1")
    wait_for("the session at gw2", lambda: fleet.owner() == "gw2" and fleet.attached())
    assert client.status()["session"] == session
