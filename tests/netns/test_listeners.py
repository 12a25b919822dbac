"""Where a gateway listens: several ports, one address alone, IPv6 outside, chosen interfaces."""

import os

import pytest
from running import PORT, Running, Setup, running, wait_for
from streams import TcpEcho

from jvpn.lab.capture import Capture
from jvpn.lab.faults import EmulatedLink
from jvpn.lab.links import SERVICE_IP, SERVICE_IP6, Network
from jvpn.protocol.addresses import for_socket, to_bytes

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

Net = Network[EmulatedLink]
OTHER_PORT = 443


def on(address: str, port: int = PORT) -> tuple[str, int]:
    """A listener as the configuration's reader makes it."""
    return for_socket(to_bytes(address)), port


def survives_a_lost_uplink(net: Net, system: Running, clients: int = 1) -> None:
    echoes = [TcpEcho(net.client, net.gateway, f"10.8.{number}.1") for number in range(clients)]
    try:
        for echo in echoes:
            echo.goes_on()
        left = system.active()
        left.down()
        for number, echo in enumerate(echoes):
            system.moved_from(left, number)
            echo.goes_on()
    finally:
        for echo in echoes:
            echo.__exit__(None, None, None)


def sources(system: Running) -> dict[str, str]:
    return {session["peer"]: session["source"] for session in system.sessions()}


def test_two_ports_serve_a_client_each_and_steer_both(two_uplinks: Net) -> None:
    listen = (("::", PORT), ("::", OTHER_PORT))
    setup = Setup(listen=listen, endpoints=((SERVICE_IP, PORT), (SERVICE_IP, OTHER_PORT)))
    with running(two_uplinks, setup, clients=2) as system:
        assert len(system.status()["listeners"]) == 2
        seen = Capture(two_uplinks.gateway, "netA", f"udp port {OTHER_PORT}")
        survives_a_lost_uplink(two_uplinks, system, clients=2)
        assert seen.stop()
        assert [worker["sessions"] for worker in system.status()["workers"]] == [1, 1]
        counters = system.status()["counters"]
        assert counters["xdp_owner_data"] > 0
        assert counters["xdp_drop_unknown_id"] == 0 if "xdp_drop_unknown_id" in counters else True
        system.audited()


def test_an_adopted_gateway_answers_on_every_port(two_uplinks: Net) -> None:
    listen = (on(SERVICE_IP), on(SERVICE_IP6, OTHER_PORT))
    setup = Setup(listen=listen, endpoints=((SERVICE_IP, PORT), (SERVICE_IP6, OTHER_PORT)))
    with running(two_uplinks, setup, clients=2) as system:
        before = {session["session_id"] for session in system.sessions()}
        os.kill(system.gateway.popen.pid, 9)
        system.gateway.wait()
        system.start_gateway()
        system.gateway_up()
        survives_a_lost_uplink(two_uplinks, system, clients=2)
        assert {session["session_id"] for session in system.sessions()} == before


def test_one_address_alone(two_uplinks: Net) -> None:
    with running(two_uplinks, Setup(listen=(on(SERVICE_IP),))) as system:
        survives_a_lost_uplink(two_uplinks, system)
        taken = two_uplinks.gateway.run(["ss", "-Hulpn"]).stdout
        assert f"[::ffff:{SERVICE_IP}]:{PORT}" in taken or f"{SERVICE_IP}:{PORT}" in taken
        assert f"*:{PORT}" not in taken
        assert f"[::]:{PORT}" not in taken


@pytest.mark.parametrize("listen", [("::", PORT), on(SERVICE_IP6)], ids=["any", "its address"])
def test_ipv6_outside(two_uplinks: Net, listen: tuple[str, int]) -> None:
    with running(two_uplinks, Setup(listen=(listen,), endpoints=((SERVICE_IP6, PORT),))) as system:
        assert sources(system)["client0"].startswith("[fd00:201:")
        assert set(system.status()["xdp_mode"].values()) == {"native"}
        survives_a_lost_uplink(two_uplinks, system)
        assert system.status()["counters"]["xdp_owner_data"] > 0
        system.audited()


def test_interfaces_that_are_named_and_no_others(two_uplinks: Net) -> None:
    with running(two_uplinks, Setup(interfaces=("netB",)), clients=2) as system:
        assert system.status()["xdp_mode"] == {"netB": "native"}
        wait_for(lambda: system.active().name, "an active path")
        survives_a_lost_uplink(two_uplinks, system, clients=2)
        assert [worker["sessions"] for worker in system.status()["workers"]] == [1, 1]
