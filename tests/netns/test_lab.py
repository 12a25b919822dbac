"""The lab itself, seen from outside: what it promises is what the sockets in its namespaces meet."""

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from jvpn.lab import links
from jvpn.lab.capture import Capture
from jvpn.lab.faults import EmulatedLink, packet_sockets_carry_udp_gso
from jvpn.lab.gauge import StreamGauge
from jvpn.lab.iperf import Iperf
from jvpn.lab.link_model import LinkModel, LinkParams
from jvpn.lab.namespaces import NETNS_DIR, Lab, LabError, Namespace, module_environment

pytestmark = pytest.mark.netns

PORT = 7_100
RTMGRP_LINK, RTM_NEWLINK = 1, 16
IFF_UP, IFF_LOWER_UP = 0x1, 0x10000
UDP_SEGMENT = 103
Net = links.Network[EmulatedLink]


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"gave up waiting until {what}"
        time.sleep(0.01)


def udp(namespace: Namespace, address: str, port: int = 0, timeout_s: float = 10.0) -> socket.socket:
    sock = namespace.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(timeout_s)
    sock.bind((address, port))
    return sock


def receive_all(sock: socket.socket) -> Iterator[bytes]:
    while select.select((sock,), (), (), 0)[0]:
        yield sock.recv(65_536)


def exchange(
    client: socket.socket, server: socket.socket, target: tuple[str, int], data: bytes
) -> tuple[str, int]:
    """Send *data* to the server and back; returns the source that the server saw."""
    client.sendto(data, target)
    seen, source = server.recvfrom(65_536)
    assert seen == data
    server.sendto(data + b" back", source)
    assert client.recv(65_536) == data + b" back"
    return source[0], source[1]


def test_delay_applies_in_both_directions_and_both_families(two_uplinks: Net) -> None:
    for address in (two_uplinks.service_ip, two_uplinks.service_ip6):
        with StreamGauge(two_uplinks.client, two_uplinks.gateway, address, hz=200) as gauge:
            wait_until(lambda: gauge.snapshot().down.received >= 50, "50 datagrams have come back")
            result = gauge.stop()
        assert result.up.delay_ms.min() >= 10.0
        assert result.down.delay_ms.min() >= 10.0
        assert result.up.lost == result.down.lost == result.up.duplicated == result.down.duplicated == 0


def test_delay_changes_while_running(two_uplinks: Net) -> None:
    link = two_uplinks["A"]
    with StreamGauge(two_uplinks.client, two_uplinks.gateway, link.gateway_ip, hz=200) as gauge:
        link.set(delay_ms=60, direction="up")
        changed_ns = time.monotonic_ns()
        wait_until(lambda: int(gauge.snapshot().up.departure_ns[-1]) > changed_ns, "new datagrams arrive")
        up = gauge.stop().up
    assert up.delay_ms[up.departure_ns > changed_ns].min() >= 60.0
    assert link.params("down").delay_ms == 10.0


def test_service_address_moves_to_the_next_uplink_and_back(two_uplinks: Net) -> None:
    link, target = two_uplinks["A"], (two_uplinks.service_ip, PORT)
    with closing(udp(two_uplinks.gateway, two_uplinks.service_ip, PORT)) as server, closing(
        udp(two_uplinks.client, "0.0.0.0")
    ) as client:  # fmt: skip
        assert exchange(client, server, target, b"1")[0] == link.client_ip
        link.admin_down()
        assert exchange(client, server, target, b"2")[0] == two_uplinks["B"].client_ip
        link.up()
        assert exchange(client, server, target, b"3")[0] == link.client_ip


def test_loss_on_the_wire_is_the_seeded_models(lab: Lab) -> None:
    net = links.uplinks(lab, ("A",), seed=42)
    link = net["A"]
    # Only numbered datagrams may travel while loss is on: no neighbour discovery of either family.
    for namespace, device, ip, peer in (
        (net.client, link.client_device, link.gateway_ip, net.gateway),
        (net.gateway, link.gateway_device, link.client_ip, net.client),
    ):
        namespace.sysctl({f"net.ipv6.conf.{device}.disable_ipv6": 1})
        peer_device = link.gateway_device if peer is net.gateway else link.client_device
        mac = peer.run(["ip", "-br", "link", "show", peer_device]).stdout.split()[2]
        namespace.ip(f"neigh replace {ip} lladdr {mac} nud permanent dev {device}")
    model = LinkModel("42/A/up", LinkParams(loss=0.3))
    expected = [n for n in range(300) if model.offer(n, 100)]
    with closing(udp(net.gateway, link.gateway_ip, PORT)) as server, closing(
        udp(net.client, link.client_ip)
    ) as client:  # fmt: skip
        link.impair(loss=0.3, direction="up")
        for n in range(300):
            client.sendto(struct.pack("!I", n), (link.gateway_ip, PORT))
        wait_until(lambda: link.counters()["up"]["offered"] >= 300, "the emulator has seen all")
        client.sendto(b"", (link.gateway_ip, PORT))
        link.heal()
        client.sendto(b"end", (link.gateway_ip, PORT))
        arrived = []
        while (data := server.recv(100)) != b"end":
            arrived += [struct.unpack("!I", data)[0]] if data else []
    assert arrived == expected
    assert 0 < link.counters()["up"]["lost"] < 150


@pytest.mark.parametrize("direction", ["up", "down", "both"])
def test_blackhole_swallows_one_direction_and_heals(two_uplinks: Net, direction: str) -> None:
    link = two_uplinks["A"]
    ways = {"up", "down"} if direction == "both" else {direction}
    with StreamGauge(two_uplinks.client, two_uplinks.gateway, link.gateway_ip, hz=500) as gauge:
        link.blackhole(direction)
        wait_until(
            lambda: all(link.counters()[way]["swallowed"] >= 100 for way in ways), "datagrams are swallowed"
        )
        link.heal()
        healed_ns = time.monotonic_ns()
        wait_until(
            lambda: all(s.departure_ns[-1] > healed_ns for s in (gauge.snapshot().up, gauge.snapshot().down)),
            "both directions flow again",
        )
        result = gauge.stop()
    for way, stream in (("up", result.up), ("down", result.down)):
        lost = np.setdiff1d(np.arange(stream.sent), stream.seq)
        if way in ways:
            assert len(lost) > 50  # of those swallowed, a few may be no datagrams of ours
            assert np.all(
                np.diff(lost) == 1
            )  # from the first on nothing came through, and after the last all did
        else:
            assert len(lost) == 0


def test_duplicate_and_reorder_reach_the_receiver(two_uplinks: Net) -> None:
    link = two_uplinks["A"]
    with StreamGauge(two_uplinks.client, two_uplinks.gateway, link.gateway_ip, hz=500) as gauge:
        link.impair(duplicate=0.2, reorder=0.2, reorder_ms=10, direction="up")
        wait_until(lambda: gauge.snapshot().up.duplicated >= 10, "duplicates arrive")
        wait_until(lambda: gauge.snapshot().up.reordered >= 10, "reordered datagrams arrive")
        link.heal()
        result = gauge.stop()
    assert result.up.lost == 0
    assert result.down.duplicated == result.down.reordered == 0


def test_a_bottleneck_drops_what_its_queue_cannot_hold(two_uplinks: Net) -> None:
    link = two_uplinks["A"]
    link.rate(1, queue_ms=20, direction="up")
    with closing(udp(two_uplinks.client, link.client_ip)) as client:
        for _ in range(100):
            client.sendto(bytes(1_400), (link.gateway_ip, PORT))
    wait_until(lambda: link.counters()["up"]["offered"] >= 100, "the emulator has seen all")
    counts = link.counters()["up"]
    assert counts["queue_dropped"] > 50
    assert counts["offered"] == counts["delivered"] + counts["queue_dropped"]


def link_events(namespace: Namespace) -> socket.socket:
    events = namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    events.settimeout(10)
    events.bind((0, RTMGRP_LINK))
    return events


def wait_for_flags(events: socket.socket, index: int, up: bool, carrier: bool) -> None:
    """Read link events (rtnetlink(7)) until one says that interface *index* is in this state."""
    while True:
        data = events.recv(65_536)
        kind, seen_index, flags = struct.unpack_from("=4xH10x4xiI", data)
        state = (bool(flags & IFF_UP), bool(flags & IFF_LOWER_UP))
        if kind == RTM_NEWLINK and seen_index == index and state == (up, carrier):
            return


def test_a_pulled_cable_is_a_link_event_at_the_client(two_uplinks: Net) -> None:
    link, client = two_uplinks["A"], two_uplinks.client
    index = client.call(lambda: socket.if_nametoindex(link.client_device))
    with closing(link_events(client)) as events:
        link.carrier_down()
        wait_for_flags(events, index, up=True, carrier=False)
        link.carrier_up()
        wait_for_flags(events, index, up=True, carrier=True)
        link.admin_down()
        wait_for_flags(events, index, up=False, carrier=False)
        link.up()
        wait_for_flags(events, index, up=True, carrier=True)
    routes = client.run(["ip", "route", "show", two_uplinks.service_ip]).stdout
    assert [line.split()[4] for line in routes.splitlines()] == ["upA", "upB"]
    with (
        closing(udp(two_uplinks.gateway, two_uplinks.service_ip6, PORT)) as server,
        closing(udp(client, "::")) as sock,
    ):
        wait_until(lambda: crosses(sock, server, (two_uplinks.service_ip6, PORT)), "IPv6 works again")


def crosses(client: socket.socket, server: socket.socket, target: tuple[str, int]) -> bool:
    client.sendto(b"hello", target)
    return bool(select.select((server,), (), (), 0.1)[0])


def test_nat_gives_the_same_socket_a_new_source(two_uplinks: Net) -> None:
    link, nat, target = two_uplinks["A"], two_uplinks.nat, (two_uplinks.service_ip, PORT)
    with closing(udp(two_uplinks.gateway, two_uplinks.service_ip, PORT)) as server, closing(
        udp(two_uplinks.client, "0.0.0.0")
    ) as client:  # fmt: skip
        own_port = client.getsockname()[1]
        assert exchange(client, server, target, b"before") == (link.client_ip, own_port)
        nat.enable(link, port=40_001)
        old = exchange(client, server, target, b"mapped")
        assert old == (link.client_ip, 40_001)
        nat.rebind(link, port=40_002)
        assert exchange(client, server, target, b"new port") == (link.client_ip, 40_002)
        nat.rebind(link, port=40_003, address=link.spare_ip)
        assert exchange(client, server, target, b"new address") == (link.spare_ip, 40_003)
        server.sendto(b"to the old mapping", old)
        server.sendto(b"to the socket's own port", (link.client_ip, own_port))
        assert exchange(client, server, target, b"last") == (link.spare_ip, 40_003)
        assert list(receive_all(client)) == []
        nat.disable(link)
        assert exchange(client, server, target, b"no nat") == (link.client_ip, own_port)


def test_nat_of_ipv6(two_uplinks: Net) -> None:
    link, nat, target = two_uplinks["A"], two_uplinks.nat, (two_uplinks.service_ip6, PORT)
    with (
        closing(udp(two_uplinks.gateway, two_uplinks.service_ip6, PORT)) as server,
        closing(udp(two_uplinks.client, "::")) as client,
    ):
        nat.enable(link, port=40_001)
        assert exchange(client, server, target, b"mapped") == (link.client_ip6, 40_001)
        nat.rebind(link, port=40_002, address=link.spare_ip6)
        assert exchange(client, server, target, b"rebound") == (link.spare_ip6, 40_002)


def test_rebind_needs_a_mapping_and_a_real_port(two_uplinks: Net) -> None:
    with pytest.raises(LabError, match="enable"):
        two_uplinks.nat.rebind(two_uplinks["A"], port=1)
    with pytest.raises(ValueError, match="port"):
        two_uplinks.nat.enable(two_uplinks["A"], port=70_000)


def send_superpacket(net: Net, link: EmulatedLink, way: str, segments: int) -> list[bytes]:
    near, far = (net.client, net.gateway) if way == "up" else (net.gateway, net.client)
    source, target = (link.client_ip, link.gateway_ip) if way == "up" else (link.gateway_ip, link.client_ip)
    with closing(udp(near, source)) as sender, closing(udp(far, target, PORT)) as receiver:
        payload = b"".join(bytes([n]) * 1_000 for n in range(segments))
        sender.sendmsg(
            [payload], [(socket.SOL_UDP, UDP_SEGMENT, struct.pack("=H", 1_000))], 0, (target, PORT)
        )
        return [receiver.recv(65_536) for _ in range(segments)]


@pytest.mark.parametrize("way", ["up", "down"])
def test_superpackets_pass_whole_until_frames_are_treated_singly(lab: Lab, way: str) -> None:
    net = links.uplinks(lab, ("A",))
    link = net["A"]
    expected = [bytes([n]) * 1_000 for n in range(40)]
    far = (net.gateway, link.gateway_device) if way == "up" else (net.client, link.client_device)
    near = (net.client, link.client_device) if way == "up" else (net.gateway, link.gateway_device)
    with Capture(*near, f"udp port {PORT}") as whole:
        assert send_superpacket(net, link, way, 40) == expected
        wait_until(lambda: len(whole.frames()) > 0, "the sender's device has shown it")
    sizes = [len(frame.data) for frame in whole.frames()]
    # The tap of a sending device stands before segmentation in software, so only counters tell what travelled.
    assert sizes == [40_042]
    link.impair(direction=way, loss=1e-9)
    with Capture(*far, f"udp port {PORT}") as single:
        assert send_superpacket(net, link, way, 40) == expected
        wait_until(lambda: sum(len(f.data) for f in single.frames()) >= 40_000, "all have been seen")
    counts = link.counters()[way]
    assert counts["unsplit_superpackets"] == 0
    assert counts["offered"] >= 80
    assert counts["input_overflow"] == counts["output_refused"] == 0


def test_old_kernels_are_told_from_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    for release, carries in (
        ("6.1.0-28-amd64", False),
        ("6.2.0", True),
        ("5.15.1", False),
        ("6.18.44-x", True),
    ):
        monkeypatch.setattr(os, "uname", lambda r=release: os.uname_result(("Linux", "h", r, "v", "m")))
        assert packet_sockets_carry_udp_gso() is carries


def test_iperf_reports_the_receivers_intervals_and_survives_an_outage(two_uplinks: Net) -> None:
    live: list[float] = []
    iperf = Iperf(
        two_uplinks.client, two_uplinks.gateway, two_uplinks["A"].gateway_ip,
        seconds=3, interval_s=0.25, on_interval=lambda i: live.append(i.gbit_s),
    )  # fmt: skip
    two_uplinks["A"].rate(50)
    iperf.start()
    wait_until(lambda: len(live) >= 2, "intervals are reported")
    two_uplinks["A"].blackhole()
    two_uplinks["A"].impair(drop=False)
    healed_ns = time.monotonic_ns()
    result = iperf.wait()
    assert result.ok, result.error
    assert result.alive(healed_ns)
    assert [i.gbit_s for i in result.intervals] == live
    assert 0.0 < result.gbit_s <= 0.05


def test_iperf_without_a_way_says_so(two_uplinks: Net) -> None:
    result = Iperf(two_uplinks.client, two_uplinks.gateway, "127.0.0.1", seconds=1, margin_s=5).run()
    assert not result.ok
    assert "refused" in result.error


def test_direct_link_carries_and_breaks(lab: Lab) -> None:
    net = links.direct_links(lab, native_xdp=True)
    link = net["A"]
    with (
        closing(udp(net.gateway, net.service_ip, PORT)) as server,
        closing(udp(net.client, "0.0.0.0")) as client,
    ):
        assert exchange(client, server, (net.service_ip, PORT), b"1")[0] == link.client_ip
        index = net.client.call(lambda: socket.if_nametoindex(link.client_device))
        with closing(link_events(net.client)) as events:
            link.down()
            wait_for_flags(events, index, up=True, carrier=False)
            link.up()
            wait_for_flags(events, index, up=True, carrier=True)
        assert exchange(client, server, (net.service_ip, PORT), b"2")[0] == link.client_ip


def test_capture_holds_what_matches_and_writes_pcap(two_uplinks: Net, tmp_path: Path) -> None:
    link = two_uplinks["A"]
    with Capture(two_uplinks.gateway, link.gateway_device, f"udp port {PORT}") as capture, closing(
        udp(two_uplinks.client, link.client_ip)
    ) as client:  # fmt: skip
        client.sendto(b"unwanted", (link.gateway_ip, PORT + 1))
        client.sendto(b"wanted", (link.gateway_ip, PORT))
        frame = capture.wait_for(lambda f: f.data.endswith(b"wanted"))
    assert not frame.outgoing
    assert [f.data for f in capture.frames()] == [frame.data]
    capture.save(tmp_path / "seen.pcap")
    shown = subprocess.run(
        ["tcpdump", "-nr", tmp_path / "seen.pcap"], capture_output=True, text=True, check=True
    )
    assert f"{link.gateway_ip}.{PORT}: UDP, length 6" in shown.stdout
    with pytest.raises(LabError, match="no such frame"):
        capture.wait_for(lambda f: False, timeout_s=0.01)


def test_errors_are_readable(lab: Lab) -> None:
    namespace = lab.namespace("one")
    with pytest.raises(LabError, match=r"'ip link set nosuch up' in one failed .*nosuch"):
        namespace.run(["ip", "link", "set", "nosuch", "up"])
    with pytest.raises(LabError, match="not installed"):
        namespace.run(["no-such-tool-anywhere"])
    with pytest.raises(LabError, match=r"did not end in 0\.2 s"):
        namespace.run(["sleep", "60"], timeout_s=0.2)
    with pytest.raises(LabError, match="capture on nosuch"):
        Capture(namespace, "nosuch")


def test_a_bad_impairment_changes_nothing(two_uplinks: Net) -> None:
    link = two_uplinks["A"]
    before = (link.params("up"), link.params("down"))
    for changes in ({"loss": 2.0}, {"speed": 1}):
        with pytest.raises((ValueError, TypeError)):
            link.impair(**changes)
    with pytest.raises(ValueError, match="direction"):
        link.blackhole("sideways")
    assert (link.params("up"), link.params("down")) == before


def test_processes_share_the_mount_namespace(lab: Lab) -> None:
    namespace = lab.namespace("one")
    seen = namespace.run(["readlink", "/proc/self/ns/mnt", "/proc/self/ns/net"]).stdout.split()
    assert seen[0] == os.readlink("/proc/self/ns/mnt")
    assert seen[1] != os.readlink("/proc/self/ns/net")


def test_everything_is_gone_afterwards() -> None:
    with Lab("gone") as lab:
        net = links.two_uplinks(lab)
        stubborn = net.client.popen(["sh", "-c", "trap '' TERM; setsid sleep 1000 & wait"])
        wait_until(lambda: len(net.client.pids()) >= 2, "the grandchild runs")
        names = [net.client.name, net.gateway.name, net.wan.name if net.wan else ""]
        pids = [pid for ns in (net.client, net.gateway, lab["wan"]) for pid in ns.pids()]
        assert stubborn.pid in pids
    assert not any((NETNS_DIR / name).exists() for name in names)
    wait_until(lambda: not any(Path(f"/proc/{pid}/ns/net").exists() for pid in pids), "all have ended")


OWNER = """
import signal, sys, time
from jvpn.lab.namespaces import Lab
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
from jvpn.lab.links import two_uplinks
lab = Lab("orphan").__enter__()
net = two_uplinks(lab)
sleeper = net.client.popen(["sleep", "1000"])
print(lab.name, sleeper.pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_dead_owner_leaves_nothing(lab: Lab, number: signal.Signals) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=module_environment(),
    )  # fmt: skip
    assert owner.stdout is not None
    with owner.stdout:
        name, pid = owner.stdout.readline().split()
    mine = [NETNS_DIR / f"{name}.{label}" for label in ("client", "gateway", "wan")]
    assert all(path.exists() for path in mine)
    owner.send_signal(number)
    owner.wait()
    wait_until(lambda: not any(path.exists() for path in mine), "the namespaces are gone")
    wait_until(lambda: not Path(f"/proc/{pid}/ns/net").exists(), "its process is gone")


def test_sweep_takes_only_what_belongs_to_the_dead(lab: Lab) -> None:
    kept = lab.namespace("kept")
    ended = subprocess.Popen(["true"])
    ended.wait()
    stale = f"left.lab{ended.pid}.abcdef.client"
    subprocess.run(["ip", "netns", "add", stale], check=True)
    assert stale in Lab.sweep()
    assert not (NETNS_DIR / stale).exists()
    assert kept.path.exists()
