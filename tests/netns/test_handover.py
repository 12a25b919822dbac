"""The data plane becomes another version of the program under a running stream, and stays what it is when it cannot.

"Another version" is this program again, from wherever the test says: what is judged is who holds what, and the traffic.
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from services import Services, services
from streams import TcpEcho
from test_lifecycle import (
    alive,
    durable,
    kill,
    kill_supervisor,
    machine,
    pids,
    pings,
    start_again,
    steering_note,
)
from test_privileges import capabilities, documented, status
from test_services import handshakes

from jvpn.holder import succession
from jvpn.lab.faults import EmulatedLink
from jvpn.lab.iperf import Interval, Iperf
from jvpn.lab.links import Network
from jvpn.lab.running import GATEWAY_INNER, JVPN, Tunnel, wait_for
from jvpn.observability.verify import audit_file

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

ROLLED_S = 60.0
SOURCES = Path(__file__).parents[2]


@pytest.fixture
def tunnel(two_uplinks: Network[EmulatedLink], tmp_path: Path) -> Iterator[Services]:
    with services(two_uplinks, tmp_path) as opened:
        wait_for("the tunnel to carry traffic", lambda: pings(opened))
        yield opened


def at_work(tunnel: Tunnel) -> set[int]:
    return {worker["pid"] for worker in tunnel.gateway.status()["workers"]}


def hand_over(tunnel: Services, **environment: str) -> "subprocess.CompletedProcess[str]":
    """As `systemctl reload jvpn-dataplane` does."""
    config = str(tunnel.work / "gateway.yaml")
    command = ["env", *(f"{name}={value}" for name, value in environment.items()), *JVPN]
    return tunnel.network.gateway.run([*command, "dataplane", "--hand-over", "-c", config], check=False)


def started(pid: int) -> str:
    """What a process was started as, and when: execve changes the one, not the other."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def refused(tunnel: Tunnel) -> int:
    """Datagrams of sessions that their worker did not have (yet)."""
    counted: int = tunnel.gateway.status()["counters"].get("worker_unknown_id", 0)
    return counted


def unchanged(tunnel: Services, before: dict[str, Any]) -> None:
    """The same session in the same epoch: on a busy machine, or while its workers are dead, a path may be left."""
    after = tunnel.session()
    assert (after["session_id"], after["epoch"]) == (before["session_id"], before["epoch"])


def test_an_upgrade_costs_no_session_no_handshake_and_no_stream(
    two_uplinks: Network[EmulatedLink], tmp_path: Path
) -> None:
    network, tunnel = two_uplinks, Services(two_uplinks, tmp_path, policy="probe_interval_ms: 300\n")
    clean = machine(tunnel)
    with tunnel:
        wait_for("the tunnel to carry traffic", lambda: pings(tunnel))
        before, note, began = tunnel.session(), steering_note(tunnel), handshakes(tunnel)
        holder, old, lost = tunnel.dataplane.process.pid, at_work(tunnel), refused(tunnel)
        with TcpEcho(network.client, network.gateway, GATEWAY_INNER) as stream:
            stream.goes_on()
            done = hand_over(tunnel)
            assert (done.returncode, done.stderr) == (0, "")
            assert f"holder {holder}" in done.stdout
            assert "--estate" in started(holder)
            wait_for("workers of the new version", lambda: not at_work(tunnel) & old, ROLLED_S)
            stream.goes_on(20)
            # They left in order, and nobody read what came before he had the sessions.
            assert tunnel.dataplane.log.read_text().count("was retired") == len(old)
            assert refused(tunnel) == lost
            assert capabilities(status(holder)["CapPrm"]) == documented("holder")
            tunnel.restart_supervisor()
            stream.goes_on(20)
            assert pids(tunnel)["holder"] == holder
        unchanged(tunnel, before)
        assert (steering_note(tunnel), handshakes(tunnel)) == (note, began)
        assert not any(alive(pid) for pid in old)
        assert [audit_file(node.events) for node in (tunnel.gateway, tunnel.client)] == [[], []]
        # It is a whole holder again: it hands over once more, and everything ends with it.
        assert hand_over(tunnel).returncode == 0
        assert tunnel.gateway.stop() == 0
        assert tunnel.dataplane.stop() == 0
        assert tunnel.command("doctor", "--clean").returncode == 0
        after = machine(tunnel)
        assert after.pop("files") == durable(["events.jsonl", "sessions.db", "sessions.db.key"])
        clean.pop("files")
        assert after == clean


def test_throughput_never_reads_zero_while_all_of_a_gateway_is_replaced(tunnel: Services) -> None:
    """The supervisor is killed and started again, the holder handed over, the workers follow: one iperf3 run."""
    before, old, network = tunnel.session(), at_work(tunnel), tunnel.network
    seen: list[Interval] = []
    run = Iperf(
        network.client, network.gateway, GATEWAY_INNER, seconds=120, interval_s=1, on_interval=seen.append
    )
    run.start()
    try:
        more_traffic(seen, 2)
        kill_supervisor(tunnel)
        more_traffic(seen, 2)
        start_again(tunnel)
        more_traffic(seen, 1)
        assert hand_over(tunnel).returncode == 0
        wait_for("workers of the new version", lambda: not at_work(tunnel) & old, ROLLED_S)
        more_traffic(seen, 2)
    finally:
        run.kill()
    assert [interval for interval in seen if interval.gbit_s == 0] == []
    unchanged(tunnel, before)


def more_traffic(seen: list[Interval], intervals: int) -> None:
    wanted = len(seen) + intervals
    wait_for("traffic to be reported", lambda: len(seen) >= wanted, 60)


def test_workers_follow_only_under_a_supervisor(tunnel: Services) -> None:
    before, old = tunnel.session(), at_work(tunnel)
    network = tunnel.network
    with TcpEcho(network.client, network.gateway, GATEWAY_INNER) as stream:
        assert tunnel.gateway.stop() == 0
        done = hand_over(tunnel)
        assert "once a supervisor is at work" in done.stdout
        # Nobody could give a new one its sessions.
        stream.goes_on(20)
        assert all(alive(pid) for pid in old)
        tunnel.gateway = tunnel._start_gateway()
        wait_for("the gateway again", tunnel.gateway.running, 60)
        wait_for("workers of the new version", lambda: not at_work(tunnel) & old, ROLLED_S)
        stream.goes_on(20)
        unchanged(tunnel, before)


def test_deaths_in_the_middle_of_it(tunnel: Services) -> None:
    """A worker that is to be retired, and the supervisor that was to tell its successor the sessions."""
    before, old = tunnel.session(), at_work(tunnel)
    network = tunnel.network
    with TcpEcho(network.client, network.gateway, GATEWAY_INNER) as stream:
        assert hand_over(tunnel).returncode == 0
        kill_supervisor(tunnel)
        for pid in old:
            kill(pid)
        start_again(tunnel)
        stream.goes_on(20)
        unchanged(tunnel, before)
        assert len(at_work(tunnel)) == 2
        assert not at_work(tunnel) & old


def broken(folder: Path, name: str, text: str) -> dict[str, str]:
    """A copy of this program with one file changed, as an environment to start it in."""
    for package in ("jvpn", "workers"):
        shutil.copytree(
            SOURCES / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.so")
        )
    path = folder / name
    path.write_text(path.read_text() + text)
    return {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("workers/main.py", "\nraise RuntimeError('half an upgrade')\n", "half an upgrade"),
        ("jvpn/holder/inventory.py", "\nPROTOCOL = PROTOCOL + 1\n", "version of messages"),
        (
            "workers/page.py",
            "\nVERSION = VERSION + 1\nraise SystemExit('killed half way')\n",
            "killed half way",
        ),
    ],
    ids=["does not start", "other messages", "ends half way"],
)
def test_a_successor_that_fails_leaves_the_data_plane_as_it_was(
    tunnel: Services, tmp_path: Path, name: str, text: str, why: str
) -> None:
    before, old, holder = tunnel.session(), at_work(tunnel), tunnel.dataplane.process.pid
    folder = tmp_path / "successor"
    folder.mkdir()
    environment = broken(folder, name, text)
    network, config = tunnel.network, str(tunnel.work / "gateway.yaml")
    asked = (
        "import sys; from pathlib import Path; from jvpn.cli.plans import gateway_plan;"
        "from jvpn.config import load_gateway;"
        "from jvpn.holder.succession import ask, request; config = Path(sys.argv[1]);"
        "plan = gateway_plan(load_gateway(config), str(config));"
        "made = request(plan.for_holder(plan.workers), sys.executable);"
        f"made.environment.update({environment!r}); ask(plan.run_dir, made)"
    )
    with TcpEcho(network.client, network.gateway, GATEWAY_INNER) as stream:
        done = network.gateway.run([sys.executable, "-c", asked, config], check=False)
        assert done.returncode == 1
        assert "runs on as it was" in done.stderr
        assert why in done.stderr
        stream.goes_on(20)
        assert (at_work(tunnel), "--estate" in started(holder)) == (old, False)
        unchanged(tunnel, before)
        # And the next one may try.
        assert hand_over(tunnel).returncode == 0


def test_what_is_refused_before_anything_is_tried(tunnel: Services) -> None:
    config = tunnel.work / "gateway.yaml"
    first = config.read_text()
    config.write_text(first.replace("workers: 2", "workers: 1"))
    done = hand_over(tunnel)
    assert done.returncode == 1
    assert "other slots than configured" in done.stderr
    config.write_text(first)
    # Nonsense, and somebody who hangs up.
    run_dir = tunnel.work / "gateway"
    for word in (b"\xc1", b"{}", b""):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asker:
            asker.connect(str(run_dir / succession.SOCKET_NAME))
            if word:
                asker.send(word)
                assert b"Declined" in asker.recv(1000)
    # A data plane that is too old to know has no such socket.
    (run_dir / succession.SOCKET_NAME).unlink()
    done = hand_over(tunnel)
    assert done.returncode == 1
    assert "systemctl restart jvpn-dataplane" in done.stderr
    assert pings(tunnel)
    assert "--estate" not in started(tunnel.dataplane.process.pid)
