"""Each step of the fallback ladder, forced, with traffic of two clients through it, and named in `status`."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from running import PORT, Running, Setup, prepared, running, wait_for
from streams import TcpEcho
from test_bpf_xdp import foreign_fd

from jvpn.holder import xdp
from jvpn.lab.faults import EmulatedLink
from jvpn.lab.links import Network
from jvpn.lab.running import JVPN

__all__ = ["foreign_fd"]

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

Net = Network[EmulatedLink]
EVERYWHERE = ("netA", "netB")


def hidden(*folders: str) -> list[str]:
    """A command that runs another with these folders empty, for itself alone."""
    mounts = "; ".join(f"mount -t tmpfs none {folder}" for folder in folders)
    # Only these mounts are private: what the gateway itself mounts it would mount anywhere.
    return ["unshare", "--mount", "sh", "-c", f'{mounts}; exec "$@"', "-"]


def refusing(call: str, number: int) -> list[str]:
    """A command that runs another for which the kernel refuses one kind of ioctl or setsockopt."""
    script = Path(__file__).with_name("refusing.py")
    return [sys.executable, str(script), call, str(number)]


def traffic_flows(net: Net, system: Running) -> None:
    """Both clients' connections live on, and so they do after a reattach."""
    with (
        TcpEcho(net.client, net.gateway, "10.8.0.1") as first,
        TcpEcho(net.client, net.gateway, "10.8.1.1") as second,
    ):
        first.goes_on()
        second.goes_on()
        left = system.active()
        left.down()
        for number in (0, 1):
            system.moved_from(left, number)
        first.goes_on()
        second.goes_on()


def counters(system: Running) -> dict[str, int]:
    found: dict[str, int] = system.status()["counters"]
    return found


def each_worker_has_its_session(system: Running) -> bool:
    return [worker["sessions"] for worker in system.status()["workers"]] == [1, 1] and all(
        worker["counters"].get("delivered_packets", 0) > 0 for worker in system.status()["workers"]
    )


def said_by_status(system: Running) -> str:
    """What a person reads."""
    done = system.net.gateway.run([*JVPN, "status", "--run-dir", str(system.folder / "gateway")])
    return done.stdout


def start(net: Net, system: Running, *prefix: str) -> dict[str, Any]:
    """A gateway run by `prefix`, with two clients attached."""
    system.start_gateway(*prefix)
    system.gateway_up()
    for number in (0, 1):
        system.start_client(number)
        system.attached(number)
        system.tunnelled(number)
        system.warm(number)
    return system.status()


def test_native(two_uplinks: Net) -> None:
    with running(two_uplinks, Setup(), clients=2) as system:
        assert system.status()["xdp_mode"] == dict.fromkeys(EVERYWHERE, "native")
        assert "native XDP picks the owner's core" in said_by_status(system)
        traffic_flows(two_uplinks, system)
        assert counters(system)["xdp_owner_data"] > 0
        assert each_worker_has_its_session(system)


def test_generic(two_uplinks: Net) -> None:
    with running(two_uplinks, Setup(xdp="generic"), clients=2) as system:
        assert system.status()["xdp_mode"] == dict.fromkeys(EVERYWHERE, "generic")
        assert "generic XDP picks the owner's core" in said_by_status(system)
        traffic_flows(two_uplinks, system)
        assert counters(system)["xdp_owner_data"] > 0
        assert each_worker_has_its_session(system)


def test_the_reuseport_program_alone(two_uplinks: Net) -> None:
    with running(two_uplinks, Setup(xdp="off"), clients=2) as system:
        assert system.status()["xdp_mode"] == dict.fromkeys(EVERYWHERE, "none")
        assert two_uplinks.gateway.call(xdp.everywhere) == {}
        shown = said_by_status(system)
        assert "the reuseport program picks the owner's process; no XDP" in shown
        assert "(no XDP, by configuration (xdp: off))" in shown
        traffic_flows(two_uplinks, system)
        assert counters(system)["xdp_pick_owner"] > 0
        assert "xdp_owner_data" not in counters(system)
        assert each_worker_has_its_session(system)


def test_a_foreign_program_costs_one_interface_one_step(two_uplinks: Net, foreign_fd: int) -> None:
    gateway = two_uplinks.gateway
    index = gateway.call(lambda: xdp.index_of("netA"))
    gateway.call(lambda: xdp._set_xdp(index, foreign_fd, xdp._FLAGS["native"]))
    with running(two_uplinks, Setup(), clients=2) as system:
        assert system.status()["xdp_mode"] == {"netA": "none", "netB": "native"}
        assert "netA: netA already runs the XDP program" not in said_by_status(system)
        assert "netA already runs the XDP program" in said_by_status(system)
        traffic_flows(two_uplinks, system)
        assert each_worker_has_its_session(system)


def test_an_interface_that_is_not_there(two_uplinks: Net) -> None:
    with running(two_uplinks, Setup(interfaces=("netA", "netB", "netZ")), clients=1) as system:
        assert system.status()["xdp_mode"] == {"netA": "native", "netB": "native", "netZ": "none"}
        assert "there is no interface 'netZ'" in said_by_status(system)


@pytest.mark.parametrize(
    ("prefix", "why"),
    [
        (hidden("/usr/src", "/var/cache"), "kernel headers"),
        (hidden("/usr/lib/python3/dist-packages/bcc"), "python3-bpfcc"),
        (["setpriv", "--bounding-set=-sys_admin,-bpf,-perfmon"], "root"),
    ],
    ids=["no headers", "no bcc", "no CAP_BPF"],
)
def test_without_bpf_one_worker_serves_all(two_uplinks: Net, prefix: list[str], why: str) -> None:
    with prepared(two_uplinks) as system:
        status = start(two_uplinks, system, *prefix)
        assert status["xdp_mode"] == {}
        assert len(status["workers"]) == 1
        shown = said_by_status(system)
        assert "no BPF: one worker serves all sessions" in shown
        assert why in shown
        traffic_flows(two_uplinks, system)
        system.audited()


@pytest.mark.parametrize(
    ("call", "number", "program"),
    [("setsockopt", 52, "the reuseport program"), ("ioctl", 0x800454E0, "the TUN program")],
    ids=["SO_ATTACH_REUSEPORT_EBPF", "TUNSETSTEERINGEBPF"],
)
def test_programs_that_load_and_cannot_be_attached(
    two_uplinks: Net, call: str, number: int, program: str
) -> None:
    with prepared(two_uplinks) as system:
        status = start(two_uplinks, system, *refusing(call, number))
        assert status["xdp_mode"] == {}
        assert len(status["workers"]) == 1
        assert f"steering: none (loaded, but refused by the kernel: {program}" in system.gateway.said
        shown = said_by_status(system)
        assert "no BPF: one worker serves all sessions" in shown
        assert f"refused by the kernel: {program}: Operation not permitted" in shown
        traffic_flows(two_uplinks, system)
        # A supervisor that comes after it does not end the data plane by trying again.
        holder = system.folder / "gateway" / "holder.sock"
        made = holder.stat().st_ino
        system.gateway.popen.kill()
        system.gateway.wait()
        system.start_gateway()
        system.gateway_up()
        assert "took over the data plane" in system.gateway.said
        assert holder.stat().st_ino == made
        assert program in said_by_status(system)
        for number_of_client in (0, 1):
            system.attached(number_of_client)
        assert system.gateway.stop() == 0
        assert not (system.folder / "gateway" / "steering.json").exists()
        assert not list(Path(system.setup.pins).glob("*"))


def test_more_ports_than_the_programs_know_cost_the_programs_and_not_the_gateway(two_uplinks: Net) -> None:
    listen = tuple(("::", PORT + number) for number in range(9))
    with running(two_uplinks, Setup(listen=listen), clients=1) as system:
        assert len(system.status()["workers"]) == 1
        assert "at most 8 UDP ports" in said_by_status(system)


def test_an_interface_that_vanishes_takes_nothing_with_it(two_uplinks: Net) -> None:
    with running(two_uplinks, Setup(), clients=1) as system:
        left = system.active()
        two_uplinks.gateway.ip(f"link del {left.gateway_device}")
        wait_for(lambda: system.client()["active"] not in (None, left.client_device), "the other path")
        system.attached()
        with TcpEcho(two_uplinks.client, two_uplinks.gateway, "10.8.0.1") as tcp:
            tcp.goes_on()
        assert system.gateway.stop() == 0
        assert two_uplinks.gateway.call(xdp.everywhere) == {}
