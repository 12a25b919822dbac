"""A gateway whose store fails while it runs: what runs goes on, nothing new begins, it is said, and it passes."""

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from client_lab import ClientLab
from streams import TcpEcho
from test_pool import second_config, second_host

from jvpn.lab.faults import EmulatedLink
from jvpn.lab.links import Network, direct_links
from jvpn.lab.namespaces import Lab
from jvpn.lab.running import GATEWAY_INNER, Node, keygen, wait_for
from jvpn.observability.admin import AdminError

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

PATIENCE_S = 60


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk: Path) -> Path:
    """Until not a byte is left."""
    filling = disk / "filling"
    left = os.statvfs(disk)
    filling.write_bytes(bytes(left.f_bavail * left.f_bsize))
    assert os.statvfs(disk).f_bavail == 0
    return filling


def says(here: ClientLab, words: str) -> bool:
    return words in here.gateway.log.read_text()


def attached(node: Node) -> bool:
    try:
        return node.status().get("state") == "ATTACHED"
    except AdminError:
        return False


def test_f22_a_full_disk_refuses_who_is_new_and_leaves_the_others_alone(
    lab: Lab, tmp_path: Path, disk: Path
) -> None:
    network = direct_links(lab, "A")
    with ClientLab(network, tmp_path) as here:
        second = second_host(lab, network.gateway)
        tablet = {
            "name": "tablet",
            "public_key": keygen(here.work / "second.key"),
            "addresses": ["10.8.0.3/32"],
        }
        laptop = {"name": "laptop", "public_key": here.client_key, "addresses": ["10.8.0.2/32"]}
        here.write_gateway(store=str(disk / "sessions.db"), peers=[laptop, tablet])
        here.write_client()
        here.start()
        session = here.status()["session"]
        folder = here.work / "second"
        with TcpEcho(network.client, network.gateway, GATEWAY_INNER) as stream:
            filling = fill(disk)
            other = Node(second, "client", second_config(here), folder, folder / "events.jsonl")
            try:
                wait_for("a word of it", lambda: says(here, "database or disk is full"), PATIENCE_S)
                assert here.gateway.status()["counters"]["store_errors"] > 0
                assert not attached(other)
                assert [found["peer"] for found in here.gateway.ask("sessions")] == ["laptop"]
                stream.goes_on()
                filling.unlink()
                wait_for("a session", lambda: attached(other), PATIENCE_S)
                assert says(here, "the store can be written again")
                wait_for(
                    "events that say so",
                    lambda: any(b'"non_durable":true' in line for line in here.gateway.event_lines()),
                )
                stream.goes_on()
            finally:
                other.stop()
        assert here.status()["session"] == session
        assert here.status()["counters"]["handshakes"] == 1


def test_f22_a_store_that_does_not_answer_keeps_no_session_from_its_next_path(
    two_uplinks: Network[EmulatedLink], tmp_path: Path
) -> None:
    network = two_uplinks
    with ClientLab(network, tmp_path) as here:
        here.write_gateway()
        here.write_client()
        here.start()
        session = here.status()["session"]
        devices = [link.client_device for link in network]
        wait_for("both paths", lambda: here.validated(*devices), PATIENCE_S)
        active = next(path for path in here.status()["paths"] if path["state"] == "active")["device"]
        with (
            TcpEcho(network.client, network.gateway, GATEWAY_INNER) as stream,
            closing(sqlite3.connect(here.work / "gateway" / "sessions.db", isolation_level=None)) as somebody,
        ):
            somebody.execute("BEGIN IMMEDIATE")
            network.client.ip(f"link set {active} down")
            wait_for(
                "another path",
                lambda: any(p["state"] == "active" and p["device"] != active for p in here.status()["paths"]),
                PATIENCE_S,
            )
            stream.goes_on()
            wait_for("a word of it", lambda: says(here, "the session store has not answered"), PATIENCE_S)
            stream.goes_on()
            somebody.execute("ROLLBACK")
            wait_for("the store", lambda: says(here, "the store can be written again"), PATIENCE_S)
            stream.goes_on()
        assert here.gateway.status()["counters"]["store_late"] > 0
        assert here.status()["session"] == session
        assert here.status()["counters"]["handshakes"] == 1
