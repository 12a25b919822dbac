"""Processes that die, stop, lack privileges or find their place taken."""

import os
import signal
import socket
from pathlib import Path

import pytest
from injection import payload
from running import PORT, Running, Setup, prepared, running, wait_for
from streams import TcpEcho
from test_bpf_xdp import foreign_fd

from jvpn.holder import xdp
from jvpn.lab.capture import Capture
from jvpn.lab.faults import EmulatedLink
from jvpn.lab.links import Network
from jvpn.observability.events import OwnershipEvent, TransportSwitch
from jvpn.protocol.constants import GENERATION_SHIFT, PacketType

__all__ = ["foreign_fd"]

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

Net = Network[EmulatedLink]
NOBODY = 65_534


def workers(system: Running) -> list[dict[str, object]]:
    found: list[dict[str, object]] = system.status()["workers"]
    return found


def test_a_killed_worker_is_replaced_while_its_tcp_stream_goes_on(two_uplinks: Net) -> None:
    gateway = two_uplinks.gateway
    for link in two_uplinks:
        # So that each datagram is captured by itself, not as a part of a superpacket.
        gateway.run(["ethtool", "-K", link.gateway_device, "tx-udp-segmentation", "off"])
    # A machine that is busy with other tests too must not look like a dead path; a successor is quicker than that.
    with running(two_uplinks, Setup(policy={"probe_interval_ms": 300}), clients=2) as system:
        before = system.attached(0)
        owner, other = workers(system)
        captures = [Capture(gateway, link.gateway_device, f"udp src port {PORT}") for link in two_uplinks]
        with (
            TcpEcho(two_uplinks.client, gateway, "10.8.0.1") as tcp,
            TcpEcho(two_uplinks.client, gateway, "10.8.1.1") as neighbour,
        ):
            tcp.goes_on()
            os.kill(int(str(owner["pid"])), signal.SIGKILL)
            wait_for(lambda: workers(system)[0]["pid"] != owner["pid"], "a successor")
            tcp.goes_on()
            neighbour.goes_on()
        assert system.attached(0)["state_version"] == before["state_version"]
        assert system.attached(0)["session_id"] == before["session_id"]
        assert workers(system)[1]["pid"] == other["pid"]
        assert system.events(kind=TransportSwitch) == []
        moved = [event for event in system.events(kind=OwnershipEvent) if event.action == "transferred"]
        assert [(event.session_id, event.details["generation"]) for event in moved] == [
            (before["session_id"], 1)
        ]
        assert_no_counter_twice(captures, generations=2)
        assert "took its seat" in system.gateway.said
        system.audited()


def assert_no_counter_twice(captures: list[Capture], generations: int) -> None:
    """Of each steering id (so of each index) no counter is sent twice: no nonce is used twice."""
    seen: set[bytes] = set()
    found: set[int] = set()
    for capture in captures:
        for frame in capture.stop():
            data = payload(frame)
            if frame.outgoing and data[0] in (PacketType.DATA, PacketType.PATH):
                assert data[4:20] not in seen
                seen.add(data[4:20])
                found.add(int.from_bytes(data[12:20], "big") >> GENERATION_SHIFT)
        assert capture.dropped == 0
    assert len(found) == generations


def test_workers_have_no_privileges_and_programs_stop_without_a_trace(two_uplinks: Net) -> None:
    with running(two_uplinks) as system:
        for worker in workers(system):
            status = Path(f"/proc/{worker['pid']}/status").read_text()
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert set(fields["Uid"].split()) == set(fields["Gid"].split()) == {str(NOBODY)}
            assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
            assert fields["NoNewPrivs"] == "1"
        assert system.clients[0].stop() == 0
        wait_for(lambda: not system.sessions(), "the session closed")
        assert system.told("PEER_CLOSED").to.value == "TERMINATED"
        assert system.gateway.stop() == 0
        wait_for(lambda: not two_uplinks.gateway.pids(), "the end of holder and workers")
        links = two_uplinks.gateway.run(["ip", "link", "show"]).stdout
        assert "jvpn" not in links
        assert "xdp" not in links
        assert list((system.folder / "gateway").iterdir()) == []
        assert "jvpn" not in two_uplinks.client.run(["ip", "link", "show"]).stdout
        system.audited()


def test_a_gateway_starts_again_where_one_was_killed(two_uplinks: Net) -> None:
    with running(two_uplinks) as system:
        first = system.gateway
        os.killpg(first.popen.pid, signal.SIGKILL)
        first.wait()
        system.clients[0].stop()
        system.start_gateway()
        system.gateway_up()
        system.start_client(0)
        system.attached(0)
        assert system.status()["xdp_mode"] == {"netA": "native", "netB": "native"}


# What may be in the way


def refused(system: Running) -> str:
    """What a gateway says that cannot start."""
    assert system.gateway.wait() == 1
    assert "Traceback" not in system.gateway.said
    assert two_uplinks_clean(system)
    return system.gateway.said


def two_uplinks_clean(system: Running) -> bool:
    links = system.net.gateway.run(["ip", "link", "show"]).stdout
    return "jvpn" not in links and "xdp" not in links


def test_a_port_that_is_taken(two_uplinks: Net) -> None:
    with two_uplinks.gateway.socket(socket.AF_INET6, socket.SOCK_DGRAM) as taken:
        taken.bind(("::", PORT))
        with prepared(two_uplinks) as system:
            system.start_gateway()
            said = refused(system)
            assert str(PORT) in said
            assert "Address already in use" in said


def test_a_second_gateway_does_not_join_the_first_ones_port(two_uplinks: Net) -> None:
    with running(two_uplinks) as system:
        first = system.gateway
        second = system.start_gateway(name="second")
        assert second.wait() == 1
        assert "Address already in use" in second.said
        system.gateway = first
        with TcpEcho(two_uplinks.client, two_uplinks.gateway, "10.8.0.1") as tcp:
            tcp.goes_on()


def test_without_a_tun_device(two_uplinks: Net) -> None:
    with prepared(two_uplinks) as system:
        system.start_gateway(
            "unshare", "--mount", "sh", "-c", 'mount --bind /dev/null /dev/net/tun; exec "$@"', "-"
        )
        assert "TUN" in refused(system)


def test_without_the_right_to_make_a_tun(two_uplinks: Net) -> None:
    with prepared(two_uplinks) as system:
        system.start_gateway("setpriv", "--bounding-set=-net_admin")
        said = refused(system)
        assert "TUN" in said
        assert "not permitted" in said


def test_without_the_right_to_load_programs_one_worker_serves_all(two_uplinks: Net) -> None:
    with prepared(two_uplinks) as system:
        system.start_gateway("setpriv", "--bounding-set=-sys_admin,-bpf,-perfmon")
        system.gateway_up()
        system.start_client()
        system.attached()
        system.tunnelled()
        assert "steering: none" in system.gateway.said
        assert "one worker" in system.gateway.said
        status = system.status()
        assert len(status["workers"]) == 1
        assert status["steering"].startswith("no BPF")
        with TcpEcho(two_uplinks.client, two_uplinks.gateway, "10.8.0.1") as tcp:
            left = system.active()
            left.down()
            system.moved_from(left)
            tcp.goes_on()


def test_another_program_on_an_interface_stays_and_the_gateway_says_so(
    two_uplinks: Net, foreign_fd: int
) -> None:
    gateway = two_uplinks.gateway
    index = gateway.call(lambda: xdp.index_of("netA"))
    gateway.call(lambda: xdp._set_xdp(index, foreign_fd, 4))
    before = gateway.call(lambda: xdp.current("netA"))
    with running(two_uplinks, Setup(workers=2), clients=2) as system:
        assert system.status()["xdp_mode"] == {"netA": "none", "netB": "native"}
        assert "already runs the XDP program 'somebody_elses'" in system.gateway.said
        for number in (0, 1):
            with TcpEcho(two_uplinks.client, gateway, f"10.8.{number}.1") as tcp:
                tcp.goes_on()
        assert all(int(worker["counters"]["delivered_packets"]) > 0 for worker in workers(system))  # type: ignore[index]
        assert system.gateway.stop() == 0
        assert gateway.call(lambda: xdp.current("netA")) == before


@pytest.mark.parametrize("mode", ["generic", "off"])
def test_the_other_modes_carry_traffic_too(two_uplinks: Net, mode: str) -> None:
    with running(two_uplinks, Setup(xdp=mode)) as system:
        expected = dict.fromkeys(("netA", "netB"), "none" if mode == "off" else mode)
        assert system.status()["xdp_mode"] == expected
        with TcpEcho(two_uplinks.client, two_uplinks.gateway, "10.8.0.1") as tcp:
            left = system.active()
            left.down()
            system.moved_from(left)
            tcp.goes_on()
        system.audited()


def test_a_store_that_cannot_be_opened(two_uplinks: Net) -> None:
    with prepared(two_uplinks) as system:
        (system.folder / "gateway.db").write_bytes(b"this is no database, whatever its name says" * 100)
        system.start_gateway()
        said = refused(system)
        assert "session store" in said
        assert "gateway.db" in said


def test_a_client_waits_for_an_uplink_that_is_not_there_yet(two_uplinks: Net) -> None:
    with prepared(two_uplinks, Setup(devices=("upZ",))) as system:
        system.start_gateway()
        system.gateway_up()
        client = system.start_client()
        wait_for(lambda: system.client()["state"] == "BIRTH", "a client that waits")
        assert system.sessions() == []
        two_uplinks.client.ip(
            "link set upB down",
            "link set upB name upZ",
            "link set upZ up",
            "route replace 203.0.113.1/32 via 10.201.2.1 dev upZ",
        )
        system.attached()
        system.tunnelled()
        with TcpEcho(two_uplinks.client, two_uplinks.gateway, "10.8.0.1") as tcp:
            tcp.goes_on()
        assert "Traceback" not in client.said
