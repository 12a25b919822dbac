"""Every process of a gateway ends, by order or by SIGKILL; what is judged is traffic, and what remains."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from test_bpf_xdp import foreign_fd

from jvpn.holder import bpf_syscall, xdp
from jvpn.lab.faults import EmulatedLink
from jvpn.lab.iperf import Interval, Iperf
from jvpn.lab.links import Network
from jvpn.lab.running import GATEWAY_INNER, JVPN, Tunnel, wait_for
from jvpn.observability.verify import audit_file

__all__ = ["foreign_fd"]

pytestmark = pytest.mark.netns

#: Why a path is left. On a busy machine one may be left once too often, or be doubted.
LEAVING = {"TRANSPORT_DEAD", "ADDRESS_CHANGED", "PREFERENCE_SWITCH", "QUALITY_SWITCH"}
DOUBTS = {"QUALITY_FLOOR_VIOLATION", "VOLATILITY_PERSISTED", "QUALITY_RESTORED"}


@pytest.fixture
def tunnel(two_uplinks: Network[EmulatedLink], tmp_path: Path) -> Iterator[Tunnel]:
    # Patient, so that a busy machine's pauses pass for no dead path: a move in between would be true, and in the way.
    with Tunnel(two_uplinks, tmp_path, policy="probe_interval_ms: 300\n") as opened:
        wait_for("the tunnel to carry traffic", lambda: pings(opened))
        yield opened


# Looking from outside


def steering_note(tunnel: Tunnel) -> dict[str, Any]:
    note: dict[str, Any] = json.loads((tunnel.work / "gateway" / "steering.json").read_text())
    return note


def loaded(note: dict[str, Any]) -> list[str]:
    """Which of the programs and maps that the note names the kernel still has."""
    found = []
    for kind, open_by_id in (
        ("programs", bpf_syscall.prog_fd_by_id),
        ("maps", bpf_syscall.map_fd_by_id),
    ):
        for name, number in note[kind].items():
            with suppress(FileNotFoundError):
                os.close(open_by_id(number))
                found.append(name)
    return found


def machine(tunnel: Tunnel) -> dict[str, Any]:
    """What a gateway could leave behind: interfaces, XDP, processes, files, pins."""
    gateway = tunnel.network.gateway
    links = json.loads(gateway.run(["ip", "-j", "link"]).stdout)
    folder = tunnel.work / "gateway"
    return {
        "links": sorted(link["ifname"] for link in links),
        "xdp": gateway.call(xdp.everywhere),
        "addresses": gateway.run(["ip", "-br", "addr"]).stdout,
        "routes": gateway.run(["ip", "route", "show", "table", "all"]).stdout,
        "processes": gateway.pids(),
        "files": sorted(p.name for p in folder.iterdir()) if folder.exists() else [],
        "pins": Path(steering_pins(tunnel)).exists(),
    }


def steering_pins(tunnel: Tunnel) -> str:
    return f"/sys/fs/bpf/jvpn/{tunnel._node_id}"


def durable(files: list[str]) -> list[str]:
    """Files that are to outlive the gateway: the store and the events."""
    return [name for name in files if name.startswith(("sessions.db", "events.jsonl"))]


def pids(tunnel: Tunnel) -> dict[str, int]:
    """Holder and workers of the running gateway."""
    workers = {f"worker {w['slot']}": w["pid"] for w in tunnel.gateway.status()["workers"]}
    (first, *_others) = workers.values()
    status = Path(f"/proc/{first}/status").read_text()
    holder = int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:")))
    return {"holder": holder, **workers}


def alive(pid: int) -> bool:
    """Running, not a zombie that its parent has not waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_for(f"process {pid} to be gone", lambda: not alive(pid))


def kill_supervisor(tunnel: Tunnel) -> None:
    kill(tunnel.gateway.process.pid)
    tunnel.gateway.process.wait()


def start_again(tunnel: Tunnel) -> None:
    tunnel.gateway = tunnel._start_gateway()
    wait_for("the gateway again", tunnel.gateway.running, 60)


def doctor(tunnel: Tunnel) -> subprocess.CompletedProcess[str]:
    config = str(tunnel.work / "gateway.yaml")
    return tunnel.network.gateway.run([*JVPN, "doctor", "--clean", "-c", config], check=False)


def pings(tunnel: Tunnel) -> bool:
    done = tunnel.network.client.run(["ping", "-c", "1", "-W", "1", GATEWAY_INNER], check=False)
    return done.returncode == 0


def longest_standstill_s(intervals: list[Interval]) -> float:
    """Longest run of intervals in which nothing arrived."""
    longest = current = 0.0
    for seen in intervals:
        current = current + seen.end_s - seen.start_s if seen.gbit_s == 0 else 0.0
        longest = max(longest, current)
    return longest


# The supervisor


def test_f20_traffic_goes_on_without_a_supervisor_and_under_the_next(tunnel: Tunnel) -> None:
    network = tunnel.network
    before, note, processes = tunnel.session(), steering_note(tunnel), pids(tunnel)
    seen: list[Interval] = []
    run = Iperf(network.client, network.gateway, GATEWAY_INNER, seconds=15, on_interval=seen.append).start()
    more = _more_traffic(seen)
    more(4)
    kill_supervisor(tunnel)
    more(4)
    start_again(tunnel)
    assert "1 sessions adopted, 0 ended" in tunnel.gateway.log.read_text()
    more(4)
    assert longest_standstill_s(seen) < 1
    assert tunnel.session()["session_id"] == before["session_id"]
    assert tunnel.session()["state_version"] == before["state_version"]
    assert (steering_note(tunnel), pids(tunnel)) == (note, processes)

    network[tunnel.active_link()].down()
    down_ns = time.monotonic_ns()
    result = run.wait()
    assert result.ok, result.error
    assert result.alive(down_ns + 1_000_000_000)
    assert tunnel.session()["session_id"] == before["session_id"]
    wait_for("the new path to be told", lambda: "REATTACH_OK" in _after_death(tunnel, before))
    steps = _steps(tunnel, before)
    first = before["state_version"] + 1
    assert [version for version, _reason in steps] == list(range(first, first + len(steps)))
    assert {reason for _version, reason in steps} <= LEAVING | DOUBTS | {"REATTACH_OK"}
    assert [audit_file(node.events) for node in (tunnel.gateway, tunnel.client)] == [[], []]


def _steps(tunnel: Tunnel, before: dict[str, Any]) -> list[tuple[int, str]]:
    """Version and reason of every step that the gateway has told since."""
    told = [json.loads(line) for line in tunnel.gateway.event_lines()]
    return [
        (event["state_version"], event["reason_code"])
        for event in told
        if event["event"] == "STATE_CHANGE" and event["state_version"] > before["state_version"]
    ]


def _after_death(tunnel: Tunnel, before: dict[str, Any]) -> list[str]:
    """Reasons since a path died."""
    reasons = [reason for _version, reason in _steps(tunnel, before)]
    return reasons[reasons.index("TRANSPORT_DEAD") :] if "TRANSPORT_DEAD" in reasons else []


def _more_traffic(seen: list[Interval]) -> Callable[[int], object]:
    def more(intervals: int) -> object:
        wanted = len(seen) + intervals
        return wait_for("traffic to be reported", lambda: len(seen) >= wanted)

    return more


def test_three_supervisors_in_a_row_and_a_worker_that_dies_unseen(tunnel: Tunnel) -> None:
    before = tunnel.session()
    for _ in range(3):
        kill_supervisor(tunnel)
        start_again(tunnel)
    slot_of_session = next(w for w in tunnel.gateway.status()["workers"] if w["sessions"])
    kill_supervisor(tunnel)
    kill(slot_of_session["pid"])
    start_again(tunnel)
    wait_for("traffic through the spare", lambda: pings(tunnel))
    assert slot_of_session["pid"] not in pids(tunnel).values()
    after = tunnel.session()
    assert after["session_id"] == before["session_id"]
    assert after["state"] == "ATTACHED"
    assert "handshakes" not in tunnel.gateway.status()["counters"]


def test_one_supervisor_at_a_time(tunnel: Tunnel) -> None:
    first = tunnel.gateway
    second = tunnel._start_gateway()
    assert second.process.wait(30) == 1
    assert f"supervisor {first.process.pid} is at work" in second.log.read_text()
    assert first.running()
    assert pings(tunnel)


def test_another_plan_restarts_the_data_plane_and_says_so(tunnel: Tunnel) -> None:
    old, before = pids(tunnel), tunnel.session()
    kill_supervisor(tunnel)
    config = tunnel.work / "gateway.yaml"
    config.write_text(config.read_text().replace("workers: 2", "workers: 1"))
    start_again(tunnel)
    assert "the earlier data plane was ended: other slots than configured" in tunnel.gateway.log.read_text()
    assert not any(alive(pid) for pid in old.values())
    assert len(tunnel.gateway.status()["workers"]) == 1
    wait_for("the session in its next epoch", lambda: returned(tunnel, before))


def returned(tunnel: Tunnel, before: dict[str, Any]) -> bool:
    """The same session lives on after its data plane was lost, in a new epoch."""
    sessions = tunnel.gateway.ask("sessions")
    return (
        [session["session_id"] for session in sessions] == [before["session_id"]]
        and sessions[0]["epoch"] > before["epoch"]
        and sessions[0]["state"] == "ATTACHED"
        and pings(tunnel)
    )


# Stopping


def test_a_clean_stop_leaves_nothing_but_store_and_events(
    two_uplinks: Network[EmulatedLink], tmp_path: Path
) -> None:
    tunnel = Tunnel(two_uplinks, tmp_path)
    before = machine(tunnel)
    with tunnel:
        note = steering_note(tunnel)
        assert set(loaded(note)) >= {"jvp_steer", "jvp_pick", "jvp_tun_queue", "ids"}
        assert machine(tunnel)["xdp"]
        assert tunnel.gateway.stop() == 0
        after = machine(tunnel)
        assert after.pop("files") == durable(["events.jsonl", "sessions.db", "sessions.db.key"])
        before.pop("files")
        assert after == before
        wait_for("the kernel to free the programs", lambda: not loaded(note))


def test_a_stop_of_an_adopted_data_plane_leaves_nothing_either(
    two_uplinks: Network[EmulatedLink], tmp_path: Path
) -> None:
    tunnel = Tunnel(two_uplinks, tmp_path)
    before = machine(tunnel)
    with tunnel:
        kill_supervisor(tunnel)
        start_again(tunnel)
        assert tunnel.gateway.stop() == 0
        after = machine(tunnel)
        assert durable(after["files"]) == after.pop("files")
        before.pop("files")
        assert after == before


def test_doctor_clean_removes_what_a_crash_of_everything_left(tunnel: Tunnel) -> None:
    note, processes = steering_note(tunnel), pids(tunnel)
    refused = doctor(tunnel)
    assert refused.returncode == 1
    assert "is running" in refused.stdout
    assert pings(tunnel)

    kill_supervisor(tunnel)
    refused = doctor(tunnel)
    assert refused.returncode == 1
    assert f"'kill {processes['holder']}'" in refused.stdout
    assert pings(tunnel)

    kill(processes["holder"])
    for pid in processes.values():
        wait_for(f"process {pid} to follow the holder", lambda pid=pid: not alive(pid))
    left = machine(tunnel)
    assert {attached.program_id for attached in left["xdp"].values()} == {note["programs"]["jvp_steer"]}
    assert left["pins"]
    assert {"admin.sock", "holder.sock"} <= set(left["files"])

    cleaned = doctor(tunnel)
    assert cleaned.returncode == 0, cleaned.stdout
    for interface in left["xdp"]:
        assert f"on {interface}" in cleaned.stdout
    now = machine(tunnel)
    assert (now["xdp"], now["processes"], now["pins"]) == ({}, [], False)
    assert durable(now["files"]) == now["files"]
    wait_for("the kernel to free the programs", lambda: not loaded(note))
    assert doctor(tunnel).stdout.strip() == "nothing was left"


def test_doctor_clean_leaves_a_foreign_program_alone(tunnel: Tunnel, foreign_fd: int) -> None:
    processes = pids(tunnel)
    kill_supervisor(tunnel)
    kill(processes["holder"])
    gateway = tunnel.network.gateway
    gateway.call(lambda: xdp.detach("netA"))
    gateway.call(lambda: xdp._set_xdp(xdp.index_of("netA"), foreign_fd, xdp._FLAGS["generic"]))
    assert doctor(tunnel).returncode == 0
    assert list(machine(tunnel)["xdp"]) == ["netA"]
    gateway.run(["ip", "link", "set", "netA", "xdpgeneric", "off"])


# The holder


def test_the_holders_death_ends_all_with_a_clear_word_and_a_start_begins_anew(tunnel: Tunnel) -> None:
    processes, before = pids(tunnel), tunnel.session()
    kill(processes["holder"])
    assert tunnel.gateway.process.wait(20) == 1
    said = tunnel.gateway.log.read_text()
    assert f"the holder of sockets and workers (pid {processes['holder']}) died" in said
    assert "Traceback" not in said
    for pid in processes.values():
        wait_for(f"process {pid} to follow the holder", lambda pid=pid: not alive(pid))
    assert machine(tunnel)["xdp"] == {}
    start_again(tunnel)
    assert set(tunnel.gateway.status()["xdp_mode"].values()) == {"native"}
    wait_for("the session in its next epoch", lambda: returned(tunnel, before))
