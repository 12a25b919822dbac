"""Data plane and supervisor as services of their own: a restart of the one costs the other nothing."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from services import Services, services
from streams import TcpEcho
from test_lifecycle import alive, durable, kill, machine, pids, pings, steering_note

from jvpn.lab.faults import EmulatedLink
from jvpn.lab.links import Network
from jvpn.lab.running import GATEWAY_INNER, Tunnel, wait_for
from jvpn.observability.verify import audit_file

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]


@pytest.fixture
def tunnel(two_uplinks: Network[EmulatedLink], tmp_path: Path) -> Iterator[Services]:
    with services(two_uplinks, tmp_path) as opened:
        wait_for("the tunnel to carry traffic", lambda: pings(opened))
        yield opened


def handshakes(tunnel: Tunnel) -> list[str]:
    """Sessions that began, by the gateway's events."""
    told = [json.loads(line) for line in tunnel.gateway.event_lines()]
    return [
        event["session_id"] for event in told if event.get("to") == "BIRTH" or event.get("from") == "BIRTH"
    ]


def test_a_restarted_supervisor_costs_no_session_and_no_stream(tunnel: Services) -> None:
    before, note, processes, began = tunnel.session(), steering_note(tunnel), pids(tunnel), handshakes(tunnel)
    assert processes["holder"] == tunnel.dataplane.process.pid
    network = tunnel.network
    with TcpEcho(network.client, network.gateway, GATEWAY_INNER) as stream:
        stream.goes_on()
        assert tunnel.gateway.stop() == 0
        # Nobody supervises now.
        stream.goes_on(20)
        tunnel.gateway = tunnel._start_gateway()
        wait_for("the gateway again", tunnel.gateway.running, 60)
        stream.goes_on(20)
        assert "1 sessions adopted, 0 ended" in tunnel.gateway.log.read_text()
        after = tunnel.session()
    # Not its version: on a busy machine a path may be left.
    assert (after["session_id"], after["epoch"]) == (before["session_id"], before["epoch"])
    assert (steering_note(tunnel), pids(tunnel), handshakes(tunnel)) == (note, processes, began)
    assert [audit_file(node.events) for node in (tunnel.gateway, tunnel.client)] == [[], []]


def test_what_cannot_be_joined_is_left_running_with_a_word(tunnel: Services) -> None:
    processes = pids(tunnel)
    config = tunnel.work / "gateway.yaml"
    first = config.read_text()
    assert tunnel.gateway.stop() == 0
    config.write_text(first.replace("workers: 2", "workers: 1"))
    refused = tunnel._start_gateway()
    assert refused.process.wait(60) == 1
    assert "other slots than configured" in refused.log.read_text()
    assert "systemctl restart jvpn-dataplane" in refused.log.read_text()
    assert all(alive(pid) for pid in processes.values())
    assert pings(tunnel)
    config.write_text(first)
    tunnel.gateway = tunnel._start_gateway()
    wait_for("the gateway again", tunnel.gateway.running, 60)
    assert pids(tunnel) == processes


def test_both_stopped_in_their_order_leave_store_and_events(
    two_uplinks: Network[EmulatedLink], tmp_path: Path
) -> None:
    tunnel = Services(two_uplinks, tmp_path, policy="probe_interval_ms: 300\n")
    before = machine(tunnel)
    with tunnel:
        wait_for("the tunnel to carry traffic", lambda: pings(tunnel))
        session = tunnel.session()
        assert tunnel.gateway.stop() == 0
        assert tunnel.dataplane.stop() == 0
        assert tunnel.command("doctor", "--clean").returncode == 0  # ExecStopPost
        after = machine(tunnel)
        assert after.pop("files") == durable(["events.jsonl", "sessions.db", "sessions.db.key"])
        before.pop("files")
        assert after == before
        # The client was not told: it comes back by its ticket.
        tunnel.start_dataplane()
        tunnel.gateway = tunnel._start_gateway()
        wait_for("the gateway again", tunnel.gateway.running, 60)
        wait_for("traffic again", lambda: pings(tunnel), 60)
        again = tunnel.session()
        assert (again["session_id"], again["epoch"]) == (session["session_id"], session["epoch"] + 1)


def test_without_a_data_plane_the_supervisor_says_which_service_is_missing(
    two_uplinks: Network[EmulatedLink], tmp_path: Path
) -> None:
    tunnel = Services(two_uplinks, tmp_path)
    alone = tunnel._start_gateway()
    assert alone.process.wait(60) == 1
    assert "systemctl start jvpn-dataplane" in alone.log.read_text()
    assert not machine(tunnel)["processes"]


def test_a_dead_data_plane_is_said_and_started_again(tunnel: Services) -> None:
    before = tunnel.session()
    kill(tunnel.dataplane.process.pid)
    tunnel.dataplane.process.wait()
    assert tunnel.gateway.process.wait(60) == 1
    assert "start the gateway again" in tunnel.gateway.log.read_text()
    tunnel.start_dataplane()
    tunnel.gateway = tunnel._start_gateway()
    wait_for("the gateway again", tunnel.gateway.running, 60)
    wait_for("traffic again", lambda: pings(tunnel), 60)
    assert tunnel.session()["session_id"] == before["session_id"]
