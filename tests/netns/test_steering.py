"""Steering is real: each session's traffic meets its owner's process on its owner's core, garbage meets nobody."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from injection import Injector, payload, source_port, towards_gateway
from running import Running, Setup, running, wait_for
from streams import TcpEcho

from jvpn.lab import links
from jvpn.lab.namespaces import Lab
from jvpn.protocol.constants import PacketType

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

#: What a worker counts only when a user's packet passes it, inwards and outwards.
INWARDS, OUTWARDS = "delivered_packets", "tun_reads"


@pytest.fixture(scope="module")
def system() -> Iterator[Running]:
    """Two clients on two workers; idle probes so seldom that none falls into a comparison."""
    setup = Setup(policy={"idle_probe_interval_ms": 60_000})
    with (
        Lab("test") as lab,
        running(links.two_uplinks(lab, rtt_ms=20), setup, clients=2) as system,
    ):
        yield system


def workers(system: Running) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = system.status()["workers"]
    return found


def xdp(system: Running) -> dict[str, int]:
    counters = system.status()["counters"]
    return {name.removeprefix("xdp_"): n for name, n in counters.items() if name.startswith("xdp_")}


def last_core(pid: int) -> int:
    """The core a process last ran on (proc(5), /proc/PID/stat field 39)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[36])


def assert_only_the_owner_works(system: Running, number: int) -> None:
    """Traffic of one client moves the counters of its worker, on its worker's core, and of no other."""
    before, steered = workers(system), xdp(system)
    net = system.net
    with TcpEcho(net.client, net.gateway, f"10.8.{number}.1") as tcp:
        tcp.goes_on(20)
    after, now = workers(system), xdp(system)
    for old, new in zip(before, after, strict=True):
        assert old["pid"] == new["pid"]
        for counter in (INWARDS, OUTWARDS):
            gained = new["counters"].get(counter, 0) - old["counters"].get(counter, 0)
            assert (gained > 0) == (new["slot"] == number), (counter, new["slot"], gained)
    owner = after[number]
    assert os.sched_getaffinity(owner["pid"]) == {owner["cpu"]}
    assert last_core(owner["pid"]) == owner["cpu"]
    assert now["owner_data"] > steered.get("owner_data", 0)
    assert now["tun_owner"] > steered.get("tun_owner", 0)
    assert now.get("tun_default", 0) == steered.get("tun_default", 0)


def test_each_session_has_its_worker_before_and_after_its_path_changes(system: Running) -> None:
    status = system.status()
    assert status["xdp_mode"] == {"netA": "native", "netB": "native"}
    assert [worker["sessions"] for worker in status["workers"]] == [1, 1]
    assert len({worker["cpu"] for worker in status["workers"]}) == min(2, len(os.sched_getaffinity(0)))
    for number in (0, 1):
        assert_only_the_owner_works(system, number)
    left = system.active(0)
    left.down()
    for number in (0, 1):
        system.moved_from(left, number)
    for number in (0, 1):
        assert_only_the_owner_works(system, number)
    left.up()
    for number in (0, 1):
        system.warm(number)


def test_return_traffic_leaves_by_the_owners_queue(system: Running) -> None:
    """Only the gateway speaks: nothing that came in could have chosen the queue (datagrams to a closed port)."""
    gateway = system.net.gateway
    for number in (1, 0):
        before = workers(system)
        gateway.run(["ping", "-c", "3", "-i", "0.05", "-W", "5", f"10.8.{number}.2"])
        gained = [
            new["counters"].get(OUTWARDS, 0) - old["counters"].get(OUTWARDS, 0)
            for old, new in zip(before, workers(system), strict=True)
        ]
        assert gained[number] == 3
        assert gained[1 - number] == 0


def test_frames_of_a_veth_stay_on_their_cpu_and_find_their_owner_there(system: Running) -> None:
    """A frame that crossed would lose the checksum that its sender left to the device."""
    before = xdp(system)
    for number in (0, 1):
        with TcpEcho(system.net.client, system.net.gateway, f"10.8.{number}.1") as tcp:
            tcp.goes_on(5)
    now = xdp(system)
    assert now["pick_owner"] > before["pick_owner"]
    assert now.get("redirected", 0) == 0


def test_unknown_ids_and_wrong_sources_die_in_xdp(system: Running) -> None:
    net = system.net
    link = system.active(0)
    capture = towards_gateway(net.client, link.client_device)
    with TcpEcho(net.client, net.gateway, "10.8.0.1") as tcp:
        tcp.goes_on(3)
    frames = [frame for frame in capture.stop() if payload(frame)[:1] == bytes((PacketType.DATA,))]
    genuine = payload(frames[-1])[:1_200]
    bound = (link.client_ip, source_port(frames[-1]))
    injector = Injector(net.client, link.client_device)
    before, dropped = workers(system), xdp(system)
    for number in range(300):
        injector.send(genuine[:4] + number.to_bytes(8, "big") + genuine[12:], bound)
        injector.send(genuine, (link.spare_ip, 7_777))
    wait_for(
        lambda: xdp(system).get("drop_unknown_id", 0) - dropped.get("drop_unknown_id", 0) == 300,
        "300 unknown ids dropped",
    )
    wait_for(
        lambda: (
            sum(xdp(system).get(n, 0) - dropped.get(n, 0) for n in ("drop_wrong_source", "owner_sample"))
            == 300
        ),
        "300 wrong sources judged",
    )
    injector.close()
    after, now = workers(system), xdp(system)
    samples = now.get("owner_sample", 0) - dropped.get("owner_sample", 0)
    # At most one a second passes, so that a client whose address changed is told.
    assert 0 < samples < 150
    for old, new in zip(before, after, strict=True):
        assert new["counters"].get("unknown_id", 0) == 0
        wrong = new["counters"].get("wrong_source", 0) - old["counters"].get("wrong_source", 0)
        assert wrong <= samples
        assert new["counters"].get(INWARDS, 0) == old["counters"].get(INWARDS, 0)
    assert system.sessions()[0]["source"] == "{}:{}".format(*bound)
