"""Gateways on one real etcd: a session goes from node to node, whatever happens to them, and lives at one."""

from collections.abc import Iterator
from pathlib import Path

import etcd_cluster
import pytest

from jvpn.lab.fleet import FleetLab
from jvpn.lab.namespaces import Lab
from jvpn.lab.running import wait_for


@pytest.fixture
def idle(lab: Lab, tmp_path: Path) -> Iterator[FleetLab]:
    etcd_cluster.need_etcd()
    with etcd_cluster.in_memory(tmp_path) as folder:
        fleet = FleetLab(lab, tmp_path)
        fleet.cluster.folder = folder
        with fleet:
            yield fleet


@pytest.fixture
def fleet(idle: FleetLab) -> FleetLab:
    idle.start("gw1", "gw2")
    idle.start_client("gw1", "gw2")
    return idle


def carries(fleet: FleetLab) -> bool:
    return fleet.client_space.run(["ping", "-c1", "-W1", "10.8.0.1"], check=False).returncode == 0


def moves_to(fleet: FleetLab, name: str) -> None:
    """It lives there, and nowhere else, and carries traffic."""
    wait_for(f"the session at {name}", lambda: fleet.owner() == name and fleet.attached(), 40)
    wait_for("traffic", lambda: carries(fleet))


def test_a_session_goes_wherever_its_client_finds_a_node(fleet: FleetLab) -> None:
    assert fleet.client is not None
    session = fleet.client.status()["session"]
    assert fleet.owner() == "gw1"
    # The owner lives, but its client does not reach it: asked by the other node, it hands the session over.
    fleet.hide("gw1")
    moves_to(fleet, "gw2")
    assert fleet.gateways["gw1"].status()["counters"]["handed_over"] == 1
    fleet.show("gw1")
    # A node that stops gives its lease back: nobody waits for its end.
    assert fleet.gateways.pop("gw2").stop() == 0
    moves_to(fleet, "gw1")
    fleet.start("gw2")
    # The whole host of a node dies.
    fleet.crash("gw1")
    moves_to(fleet, "gw2")
    assert fleet.client.status()["session"] == session
    assert fleet.client.status()["counters"]["handshakes"] == 1


def test_f23_a_leader_of_the_store_that_dies_costs_no_session_anything(fleet: FleetLab) -> None:
    assert fleet.client is not None
    session = fleet.client.status()["session"]
    fleet.cluster.kill(fleet.store.call(fleet.cluster.leader))
    # As long as an election takes, and the lease after that.
    pings = fleet.client_space.run(["ping", "-c50", "-i0.1", "-W1", "10.8.0.1"], check=False)
    assert " 0% packet loss" in pings.stdout
    assert fleet.owner() == "gw1"
    # The two members that are left let another node take the session.
    fleet.crash("gw1")
    moves_to(fleet, "gw2")
    assert fleet.client.status()["session"] == session
    assert fleet.client.status()["counters"]["handshakes"] == 1


def test_without_a_quorum_sessions_run_and_none_begins(fleet: FleetLab) -> None:
    """Longer than a lease lasts: nobody can take what this node has, and it knows that."""
    assert fleet.client is not None
    session = fleet.client.status()["session"]
    leader = fleet.store.call(fleet.cluster.leader)
    gone = [leader, next(member for member in fleet.cluster.members if member is not leader)]
    for member in gone:
        fleet.cluster.kill(member)
    wait_for("a word of it", lambda: "quorum" in fleet.gateways["gw1"].log.read_text(), 40)
    pings = fleet.client_space.run(["ping", "-c60", "-i0.1", "-W1", "10.8.0.1"], check=False)
    assert " 0% packet loss" in pings.stdout
    # A client that begins is refused, since nobody could say later whose its session is.
    assert fleet.client.stop() == 0
    fleet.start_client_unattached("gw1", "gw2")
    wait_for("a refusal", lambda: fleet.refusals() > 0, 40)
    assert not fleet.attached()
    for member in gone:
        fleet.cluster.start(member)
    wait_for("a session", fleet.attached, 60)
    assert fleet.client.status()["session"] != session


def test_a_node_that_is_cut_off_from_the_store_lets_go(fleet: FleetLab) -> None:
    assert fleet.client is not None
    session = fleet.client.status()["session"]
    fleet.cut_off("gw1")
    wait_for("the session at gw2", lambda: fleet.sessions("gw2"), 40)
    wait_for("traffic", lambda: carries(fleet))
    # It cannot know yet who has it, but neither sends nor delivers anything.
    counters = fleet.gateways["gw1"].status()["counters"]
    assert any("fenced" in name for name in counters)
    fleet.heal("gw1")
    wait_for("gw1 to let go", lambda: not fleet.sessions("gw1"), 40)
    moves_to(fleet, "gw2")
    # Back in the fleet, it takes what comes to it.
    fleet.crash("gw2")
    moves_to(fleet, "gw1")
    assert fleet.client.status()["session"] == session


def test_a_client_has_its_address_out_of_the_pool_at_every_node(idle: FleetLab) -> None:
    """After a takeover, and after another handshake there."""
    fleet = idle
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
