"""F13: lost answers, lost and repeated CONTROL, networks that change unheard, a candidate that flaps."""

import os
from collections.abc import Iterator

import pytest
from injection import payload, towards_gateway
from running import Running, Setup, prepared, wait_for
from streams import TcpEcho

from jvpn.lab import links
from jvpn.lab.capture import Capture
from jvpn.lab.faults import EmulatedLink
from jvpn.lab.links import Network
from jvpn.lab.namespaces import Lab
from jvpn.observability.events import KeyEvent, TransportSwitch
from jvpn.protocol.constants import PacketType

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

Net = Network[EmulatedLink]
FLAPS, CHANGES = 50, 5
#: A session may be without a path for as long as a test may take.
PATIENT = {"transport_loss_ttl_ms": 600_000}
ROUGH = {"loss": 0.4, "duplicate": 0.4, "reorder": 0.4}


@pytest.fixture(scope="module")
def system() -> Iterator[Running]:
    """One for all tests here, born on a network that loses, repeats and reorders."""
    with Lab("control") as lab:
        net = links.two_uplinks(lab, rtt_ms=6, seed=13)
        with prepared(net, Setup(policy=PATIENT)) as made:
            captures = [towards_gateway(net.client, link.client_device) for link in net]
            made.start_gateway()
            made.gateway_up()
            for link in net:
                link.impair(**ROUGH)
            made.start_client()
            made.tunnelled()
            for link in net:
                link.heal()
            made.attached()
            made.warm()
            assert_no_nonce_twice(captures)
            yield made


def assert_no_nonce_twice(captures: list[Capture]) -> None:
    """No two different datagrams of a kind under one id and counter."""
    seen: dict[bytes, bytes] = {}
    for capture in captures:
        for frame in capture.stop():
            data = payload(frame)
            if data[0] in (PacketType.CONTROL, PacketType.REATTACH_REQUEST):
                assert seen.setdefault(data[:1] + data[4:20], data) == data


def one_life(system: Running, before: dict[str, object]) -> None:
    after = system.attached()
    assert after["session_id"] == before["session_id"]
    versions = [event.state_version for event in system.events() if event.session_id == after["session_id"]]
    assert versions == list(range(versions[0], versions[0] + len(versions)))
    with TcpEcho(system.net.client, system.net.gateway, "10.8.0.1") as tcp:
        tcp.goes_on()
    system.audited()


def test_f13_lost_repeated_and_reordered_control_takes_effect_once(system: Running) -> None:
    """REKEY_INIT, REKEY_RESPONSE and CONFIG, each of several chunks, came through ROUGH."""
    before = system.attached()
    for what in ("lost", "duplicated", "reordered"):
        assert sum(link.counters()[way][what] for link in system.net for way in ("up", "down")) > 0, what
    assert rekeys(system) == [1]
    born = [event.session_id for event in system.events() if event.reason_code == "HANDSHAKE_OK"]
    assert len(born) == len(set(born))
    # A tunnel was configured once for each session, however often CONFIG came.
    assert system.clients[0].said.count("session up") == 1
    one_life(system, before)


def rekeys(system: Running) -> list[int]:
    mine = system.sessions()[0]["session_id"]
    return [event.phase for event in system.events(kind=KeyEvent) if event.session_id == mine]


def test_f13_a_lost_ack_leaves_the_client_behind_and_not_stranded(system: Running) -> None:
    before, net = system.attached(), system.net
    left = system.active()
    other = system.other(left)
    assert isinstance(other, EmulatedLink)
    bound = len(system.events(kind=TransportSwitch))
    with TcpEcho(net.client, net.gateway, "10.8.0.1") as tcp:
        other.blackhole("down")
        left.down()
        # The gateway has bound it and said so, and nobody hears.
        wait_for(lambda: len(system.events(kind=TransportSwitch)) > bound, "the gateway's bind")
        assert (
            system.client()["state"] != "ATTACHED"
            or system.client()["state_version"] == before["state_version"]
        )
        other.heal()
        system.moved_from(left)
        tcp.goes_on()
    left.up()
    system.warm()
    one_life(system, before)


def test_f13_five_changes_of_network_that_nobody_hears_of(system: Running) -> None:
    before, net = system.attached(), system.net
    a, b = net["A"], net["B"]
    for link in net:
        link.blackhole("up")
    for number in range(CHANGES):
        gone, left = (a, b) if number % 2 else (b, a)
        gone.down()
        another_in_vain(left)
        gone.up()
        another_in_vain(gone)
    for link in net:
        link.heal()
    system.attached()
    system.warm()
    one_life(system, before)


def another_in_vain(link: EmulatedLink) -> None:
    """Wait until the client has said something more on this link, for nobody to hear."""
    already = link.counters()["up"]["swallowed"]
    wait_for(lambda: link.counters()["up"]["swallowed"] > already, f"an attempt over {link.name}")


def test_f13_a_candidate_that_flaps_fifty_times(system: Running) -> None:
    before, net = system.attached(), system.net
    active = system.active()
    other = system.other(active)
    switches = len(system.events(kind=TransportSwitch))
    with TcpEcho(net.client, net.gateway, "10.8.0.1") as tcp:
        for _ in range(FLAPS):
            other.admin_down()
            other.admin_up()
        tcp.goes_on()
        # It was none of the session's business.
        assert system.attached()["state_version"] == before["state_version"]
        assert len(system.events(kind=TransportSwitch)) == switches
        # It is a path like any other when it is needed.
        system.warm()
        active.down()
        system.moved_from(active)
        tcp.goes_on()
    active.up()
    system.warm()
    one_life(system, before)
