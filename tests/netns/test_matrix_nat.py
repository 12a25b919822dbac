"""F9: the NAT in front of a client gives it another port, another address, another address family."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_lab import PORT, ClientLab
from running import Running, Setup, running, wait_for
from streams import TcpEcho

from jvpn.lab.faults import EmulatedLink
from jvpn.lab.links import SERVICE_IP, SERVICE_IP6, Network, direct_links
from jvpn.lab.namespaces import Lab
from jvpn.lab.running import GATEWAY_INNER
from jvpn.lab.running import wait_for as until
from jvpn.observability.events import TransportSwitch
from jvpn.observability.verify import audit_file

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

Net = Network[EmulatedLink]
IDLE = {"idle_probe_interval_ms": 500}


def seen_from(system: Running, address: str, port: int) -> bool:
    (row,) = system.sessions()
    return row["source"] == f"{address}:{port}"


@pytest.fixture
def alone(two_uplinks: Net) -> Iterator[Running]:
    """One uplink behind a NAT: there is no other path to go to."""
    link = two_uplinks["A"]
    two_uplinks.nat.enable(link, port=41_000)
    with running(two_uplinks, Setup(devices=("upA",), policy=IDLE)) as system:
        yield system


def test_f9_a_nat_that_forgets_is_found_out_while_sending_and_while_idle(alone: Running) -> None:
    system, net = alone, alone.net
    link, before = net["A"], alone.attached()
    assert seen_from(system, link.client_ip, 41_000)
    port, moves = 41_000, 0
    with TcpEcho(net.client, net.gateway, "10.8.0.1") as tcp:
        for address in (link.client_ip, link.spare_ip):
            port, moves = port + 1, moves + 1
            net.nat.rebind(link, port=port, address=address)
            wait_for(lambda a=address, p=port: seen_from(system, a, p), "the new source, while sending")  # type: ignore[misc]
            system.attached()
            tcp.goes_on()
    for address in (link.client_ip, link.spare_ip):
        port, moves = port + 1, moves + 1
        net.nat.rebind(link, port=port, address=address)
        # Nobody sends anything now but the client its probes.
        wait_for(lambda a=address, p=port: seen_from(system, a, p), "the new source, while idle")  # type: ignore[misc]
        system.attached()
    with TcpEcho(net.client, net.gateway, "10.8.0.1") as tcp:
        tcp.goes_on()
    after = system.attached()
    assert after["session_id"] == before["session_id"]
    assert system.handshakes() == 1
    switches = system.events(kind=TransportSwitch)
    # A client that is late may take the silence for a death before its probe tells it of the new source.
    reasons = [event.reason_code for event in switches]
    assert "ADDRESS_CHANGED" in reasons
    assert set(reasons) <= {"ADDRESS_CHANGED", "TRANSPORT_DEAD"}
    assert len(switches) >= moves
    # Every change on a fresh index, so that an observer cannot tell that it is the same client.
    assert len({event.new.index for event in switches}) == len(switches)
    assert after["state_version"] == before["state_version"] + 2 * len(switches)
    system.audited()


def test_f9_an_uplink_whose_network_has_only_the_other_address_family_now(lab: Lab, tmp_path: Path) -> None:
    network = direct_links(lab, "A")
    link = network["A"]
    with ClientLab(network, tmp_path) as here:
        here.write_gateway()
        here.write_client([f"{SERVICE_IP}:{PORT}", f"[{SERVICE_IP6}]:{PORT}"])
        here.start()
        session = here.status()["session"]
        assert here.path("upA")["source"] == f"{SERVICE_IP}:{PORT}"
        with TcpEcho(network.client, network.gateway, GATEWAY_INNER) as tcp:
            network.client.ip("addr flush dev upA to 0.0.0.0/0")
            until("the session over IPv6", lambda: over(here, f"[{SERVICE_IP6}]:{PORT}"))
            tcp.goes_on()
            network.client.ip(
                f"addr flush dev upA to {link.client_ip6}/128",
                f"addr flush dev upA to {link.spare_ip6}/128",
                f"addr add {link.client_ip}/24 dev upA",
                f"route add {SERVICE_IP}/32 via {link.gateway_ip} metric 100",
            )
            until("the session over IPv4", lambda: over(here, f"{SERVICE_IP}:{PORT}"))
            tcp.goes_on()
        assert here.status()["session"] == session
        assert here.gateway.status()["counters"]["handshakes"] == 1
        assert [audit_file(node.events) for node in (here.gateway, here.client)] == [[], []]


def over(here: ClientLab, endpoint: str) -> bool:
    return here.attached() and here.path("upA")["source"] == endpoint and here.status()["active"] == "upA"
