"""Fault scripts that work with the router's nftables and routes, by what comes through and what does not."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from datagrams import Datagrams, missing
from routed import CLIENT, CLIENT6, GATEWAY, GATEWAY6, PORT, SPARE, Fault, Routed, script

from jvpn.lab.namespaces import Lab
from jvpn.lab.running import wait_for

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

AT = ("--device", "rA")
IP_MTU_DISCOVER, IP_MTU, IP_PMTUDISC_DO, IP_RECVERR = 10, 14, 2, 11
IPV6_MTU_DISCOVER, IPV6_MTU = 23, 24


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Routed]:
    if os.geteuid() != 0:
        pytest.skip("makes network namespaces: needs root")
    with Lab("faults") as lab:
        yield Routed(lab, tmp_path_factory.mktemp("faults"))


@pytest.fixture(autouse=True)
def nothing_stays(routed: Routed) -> Iterator[None]:
    """Whatever a script did is taken back."""
    before = in_force(routed)
    yield
    assert in_force(routed) == before


def in_force(routed: Routed) -> list[str]:
    asked = (
        ["nft", "list", "tables"],
        ["ip", "rule"],
        ["ip", "-6", "rule"],
        ["ip", "route", "show", "table", "all"],
    )
    return [routed.router.run(argv).stdout for argv in asked]


@pytest.fixture(scope="module")
def flow(routed: Routed) -> Iterator[Datagrams]:
    with Datagrams(routed) as opened:
        yield opened


@pytest.mark.parametrize(
    ("name", "direction"), [("blackhole", "both"), ("one_way", "up"), ("one_way", "down")]
)
def test_a_hole_swallows_its_directions_and_no_others(
    routed: Routed, flow: Datagrams, name: str, direction: str
) -> None:
    ways = {"up", "down"} if direction == "both" else {direction}
    # Link A is the device with the router's address on it, also where the runner names the emulator's socket.
    where = ("--wire", str(routed.control), "--link", "A")
    with Fault(routed, name, *where, "--direction", direction) as fault:
        up, down = flow.up(20), flow.down(20)
    assert fault.began["parameters"]["device"] == "rA"
    assert fault.summary["counters"] == {f"{way}_dropped": 20 for way in ways}
    assert (len(up), len(down)) == (0 if "up" in ways else 20, 0 if "down" in ways else 20)
    assert not missing(flow.up(20), 20)


def test_a_hole_that_opens_and_closes(routed: Routed, flow: Datagrams) -> None:
    with Fault(routed, "blackhole", *AT, "--period", "0.6", "--duty", "0.5") as fault:
        sent = 150
        came = flow.up(sent, pause_s=0.01)
    lost = missing(came, sent)
    assert lost
    assert came
    holes = 1 + sum(1 for n in range(1, len(lost)) if lost[n] != lost[n - 1] + 1)
    assert holes >= 2
    assert fault.summary["counters"]["periods"] >= 1
    assert fault.summary["counters"]["up_dropped"] == len(lost)


def test_the_droplist_takes_the_nth_of_each_direction(routed: Routed, flow: Datagrams) -> None:
    with (
        Fault(routed, "droplist", *AT, "--numbers", "1,3,8") as fault,
        Datagrams(routed, port=PORT + 1) as other,
    ):
        # Of another port, and so not counted.
        assert not missing(other.up(5), 5)
        up, down = flow.up(20), flow.down(20)
    assert missing(up, 20) == missing(down, 20) == [0, 2, 7]
    assert fault.summary["counters"] == {
        "up_offered": 20, "up_dropped": 3, "down_offered": 20, "down_dropped": 3,
    }  # fmt: skip


def test_a_nat_gives_the_flow_another_port_then_another_address(routed: Routed, lab_flow: Datagrams) -> None:
    flow = lab_flow
    own = flow.greet()
    assert own[0] == CLIENT
    argv = (*AT, "--port", "41000,41001", "--address", f"{CLIENT},{SPARE}", "--every", "1.5")
    with Datagrams(routed, port=PORT + 1) as other, Fault(routed, "nat_rebind", *argv) as fault:
        assert flow.greet() == (CLIENT, 41_000)
        assert not missing(flow.down(5), 5)
        # To where it was before: no mapping leads there.
        flow.source = own
        assert not flow.down(5)
        wait_for("the next mapping", lambda: flow.greet() == (SPARE, 41_001))
        assert not missing(flow.down(5), 5)
        flow.source = (CLIENT, 41_000)
        assert not flow.down(5)
        assert other.greet() == other.source  # another flow keeps its source
        assert other.source[1] not in (41_000, 41_001)
    assert fault.summary["counters"]["down_dropped"] == 10
    assert fault.summary["counters"]["mappings"] == 2
    assert fault.summary["counters"]["forgotten"] >= 1
    assert flow.greet() == own


@pytest.fixture
def lab_flow(routed: Routed, flow: Datagrams) -> Iterator[Datagrams]:
    """The flow, whose answers go to where it comes from again afterwards."""
    yield flow
    flow.greet()


def test_a_nat_takes_a_flow_that_the_gateway_seems_to_have_begun(routed: Routed, lab_flow: Datagrams) -> None:
    """Who has connections tracked in the middle of a flow sees either end first."""
    chain = "add chain inet tracked every { type filter hook forward priority 10; }"
    for rule in ("add table inet tracked", chain, "add rule inet tracked every ct state established"):
        routed.router.run(["nft", rule])
    try:
        assert not missing(lab_flow.down(1), 1)
        with Fault(routed, "nat_rebind", *AT, "--port", "41000") as fault:
            assert lab_flow.greet() == (CLIENT, 41_000)
        assert fault.summary["counters"]["forgotten"] == 1
    finally:
        routed.router.run(["nft", "delete table inet tracked"])


def test_a_nat_for_ipv6_and_a_port_alone(routed: Routed) -> None:
    with (
        Datagrams(routed, CLIENT6, GATEWAY6, PORT) as six,
        Fault(routed, "nat_rebind", *AT, "--port", "41005"),
    ):
        assert six.greet()[:2] == (CLIENT6, 41_005)
    with Datagrams(routed, CLIENT6, GATEWAY6, PORT) as six:
        with Fault(routed, "nat_rebind", *AT, "--address", "fd00:201:1::77"):
            assert six.greet()[0] == "fd00:201:1::77"
            assert not missing(six.down(5), 5)
        assert six.greet()[0] == CLIENT6


@pytest.mark.parametrize("direction", ["up", "both"])
def test_larger_packets_vanish_without_a_word(routed: Routed, flow: Datagrams, direction: str) -> None:
    with Fault(routed, "mtu", *AT, "--bytes", "1280", "--direction", direction) as fault:
        assert not missing(flow.up(5, 1252), 5)
        assert not flow.up(5, 1253)
        assert len(flow.down(5, 1253)) == (5 if direction == "up" else 0)
    assert fault.summary["counters"]["up_dropped"] == 5
    assert not missing(flow.up(5, 1400), 5)


def path_mtu(routed: Routed, version: int) -> int:
    """What the client's kernel takes for the gateway's path MTU after a datagram of 1400 bytes that must not be cut."""
    family, level = (
        (socket.AF_INET, socket.IPPROTO_IP) if version == 4 else (socket.AF_INET6, socket.IPPROTO_IPV6)
    )
    with closing(routed.client.socket(family, socket.SOCK_DGRAM)) as sock:
        sock.setsockopt(level, IP_MTU_DISCOVER if version == 4 else IPV6_MTU_DISCOVER, IP_PMTUDISC_DO)
        sock.connect((GATEWAY if version == 4 else GATEWAY6, 9))
        before = routed.counters("down")["offered"]
        sock.send(bytes(1400))
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            found = sock.getsockopt(level, IP_MTU if version == 4 else IPV6_MTU)
            if found != 1500 or routed.counters("down")["offered"] > before:
                return found
            time.sleep(0.01)
        return 1500


@pytest.fixture
def forgetful(routed: Routed) -> Iterator[None]:
    """Client and gateway know no path MTU afterwards."""
    yield
    for namespace in (routed.client, routed.gateway):
        namespace.run(["ip", "route", "flush", "cache"])
        namespace.run(["ip", "-6", "route", "flush", "cache"])


@pytest.mark.usefixtures("forgetful")
def test_larger_packets_are_answered_with_what_may_pass(routed: Routed) -> None:
    with (
        Datagrams(routed, port=PORT + 2) as flow,
        Fault(routed, "mtu", *AT, "--bytes", "1300", "--answer") as fault,
    ):
        assert path_mtu(routed, 4) == 1300
        assert path_mtu(routed, 6) == 1300
        assert not missing(flow.up(5, 1272), 5)
        flow.gateway.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        assert not flow.down(1, 1400)
        with pytest.raises(OSError, match="too long"):  # the gateway has been told as well
            flow.down(1, 1400)
    assert fault.summary["counters"] == {"up_dropped": 2, "down_dropped": 1}


@pytest.mark.usefixtures("forgetful")
def test_filtered_icmp_errors_tell_nobody_and_echo_goes_through(routed: Routed) -> None:
    with (
        Fault(routed, "mtu", *AT, "--bytes", "1300", "--answer"),
        Fault(routed, "icmp", *AT) as fault,
        closing(routed.client.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock,
    ):
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        sock.connect((GATEWAY, 9))
        sock.send(bytes(1400))
        sock.send(bytes(100))  # nobody listens: an error from the gateway itself
        routed.client.run(["ping", "-c", "1", "-W", "5", GATEWAY])
        wait_for("both errors to be filtered", lambda: dropped(routed) == 2)
        assert sock.getsockopt(socket.IPPROTO_IP, IP_MTU) == 1500
        sock.send(bytes(100))  # would fail with the error that had come
    assert fault.summary["counters"]["down_dropped"] >= 2
    assert fault.summary["counters"]["up_dropped"] == 0


def dropped(routed: Routed) -> int:
    """What all counters of the router named so have."""
    rows = json.loads(routed.router.run(["nft", "-j", "list", "counters"]).stdout)["nftables"]
    return sum(
        row["counter"]["packets"] for row in rows if row.get("counter", {}).get("name") == "down_dropped"
    )


def test_what_a_killed_script_left_is_taken_back_by_the_next(routed: Routed, flow: Datagrams) -> None:
    before = in_force(routed)
    for argv in (("nat_rebind", "--port", "41000"), ("mtu", "--bytes", "1300", "--answer"), ("blackhole",)):
        killed = Fault(routed, argv[0], *AT, *argv[1:]).__enter__()
        killed.process.kill()
        killed.process.wait(10)
        assert in_force(routed) != before
    assert not flow.up(5)
    with Fault(routed, "icmp", *AT):
        assert not missing(flow.up(5), 5)
        assert flow.greet()[1] != 41_000
    assert in_force(routed) == before


def test_what_is_not_the_labs_is_refused(routed: Routed) -> None:
    for namespace, words in (
        (("--device", "lo"), "lo has the address 127.0.0.1, which is not one of the lab's"),
        (("--device", "nosuch"), "there is no device nosuch here"),
        (("--wire", "/x", "--link", "B"), "no device here has 10.201.2.1"),
        ((), "say where: --device DEV"),
    ):
        done = script(routed, "blackhole", *namespace, "--for", "0.1")
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
    routed.router.ip("addr add 198.51.100.1/24 dev rA")
    try:
        assert script(routed, "icmp", *AT, "--for", "0.1").returncode == 2
        assert script(routed, "icmp", *AT, "--for", "0.1", "--i-own", "198.51.100.1").returncode == 0
    finally:
        routed.router.ip("addr del 198.51.100.1/24 dev rA")
    done = script(routed, "nat_rebind", *AT, "--address", "198.51.100.9", "--for", "0.1")
    assert done.returncode == 2
    assert "--i-own 198.51.100.9" in done.stderr
