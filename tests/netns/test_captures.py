"""What the kernel makes of the superpackets that come out of a tunnel, judged by Wireshark's dissectors.

Two hosts, one behind the client and one behind the gateway. They send superpackets, and are sent nothing but what would
leave a network card, since the other end of their veth offloads nothing: cut, and with its checksum. (On a TUN itself
checksums are partial.)
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from worker_pair import MTU, Tunnel, stream

from jvpn.lab.capture import Capture
from jvpn.lab.faults import EmulatedLink
from jvpn.lab.links import Network, direct_links, uplinks
from jvpn.lab.namespaces import Lab, Namespace
from workers.counters import Counter

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
    pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark: apt-get install tshark"),
]

#: A host's link address: what is sent to it came out of the tunnel.
HOST = "02:00:00:00:00:02"
#: Networks of the hosts: (IPv4, IPv6) without the host part.
BEHIND_CLIENT, BEHIND_GATEWAY = ("10.9.0.", "fd09::"), ("10.7.0.", "fd07::")
#: Linux writes a sum of zero as 0xffff in TCP too (skb_checksum_help), the same number in one's complement (RFC 1071);
#: the dissector knows only zero for it and would call one segment in 65 536 bad.
BAD = (
    "_ws.malformed || ip.checksum.status == 0 || udp.checksum.status == 0"
    " || (tcp.checksum.status == 0 && tcp.checksum != 0xffff)"
    " || ip.bogus_ip_length || ip.bogus_header_length || tcp.bogus_header_length"
)
CHECKED = [
    argument for protocol in ("ip", "tcp", "udp") for argument in ("-o", f"{protocol}.check_checksum:TRUE")
]

#: The ports are whichever were free: by some of them it would take the payload for a protocol, and find that malformed.
PAYLOAD = [argument for protocol in ("tcp", "udp") for argument in ("-d", f"{protocol}.port==1-65535,data")]


def host_behind(
    lab: Lab, end: Namespace, label: str, net: tuple[str, str], far: tuple[str, str]
) -> Namespace:
    """A namespace on a veth to `end`, which forwards between it and the tunnel."""
    host = lab.namespace(label)
    end.ip(f"link add lan type veth peer name eth0 netns {host.name}")
    for space, device, number in ((end, "lan", 1), (host, "eth0", 2)):
        space.ip(
            f"link set {device} mtu {MTU} up",
            f"addr add {net[0]}{number}/24 dev {device}",
            f"addr add {net[1]}{number}/64 dev {device} nodad",
        )
    end.run(["ethtool", "-K", "lan", "tx", "off", "tso", "off", "gso", "off"])
    host.ip(
        f"link set eth0 address {HOST}",
        f"route add default via {net[0]}1",
        f"route add default via {net[1]}1",
    )
    end.sysctl({"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})
    end.ip(f"route add {far[0]}0/24 dev jvpn0", f"route add {far[1]}/64 dev jvpn0")
    return host


def datagrams_arrive(source: Namespace, sink: Namespace, address: str) -> None:
    """UDP of all sizes, also longer than the MTU, until enough of each has come."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        sink.socket(family, socket.SOCK_DGRAM) as receiver,
        source.socket(family, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((address, 0))
        receiver.settimeout(0.05)
        for size in (1, 63, 500, MTU - 48, 4000):
            data = os.urandom(size)
            got = 0
            until = time.monotonic() + 30
            while got < 20:
                assert time.monotonic() < until, f"UDP of {size} bytes does not come"
                for _ in range(20):
                    sender.sendto(data, receiver.getsockname()[:2])
                with contextlib.suppress(TimeoutError):
                    while got < 20:
                        received = receiver.recv(65_536)
                        # Late ones, held back or doubled on the way, may be of the size before.
                        got += received == data


def dissected(path: Path, wanted: str) -> list[str]:
    """Numbers and summaries of the frames that match; sums are checked."""
    done = subprocess.run(
        ["tshark", "-n", "-r", str(path), *CHECKED, *PAYLOAD, "-Y", wanted],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.splitlines()


@pytest.fixture(params=["faults", "superpackets"])
def hosts(request: pytest.FixtureRequest) -> Iterator[tuple[Tunnel, Namespace, Namespace]]:
    with Lab("captures") as lab, contextlib.ExitStack() as stack:
        # Either each datagram by itself, some lost, late or twice, or superpackets whole from end to end.
        network: Network[Any] = (
            uplinks(lab, ("A", "B"), rtt_ms=2, native_xdp=False)
            if request.param == "faults"
            else direct_links(lab, ("A", "B"))
        )
        tunnel = Tunnel(lab, network=network)
        stack.callback(tunnel.client.end)
        stack.callback(tunnel.gateway.end)
        tunnel.open(behind=(BEHIND_CLIENT[0] + "0/24", BEHIND_CLIENT[1] + "/64"))
        left = host_behind(lab, network.client, "left", BEHIND_CLIENT, BEHIND_GATEWAY)
        right = host_behind(lab, network.gateway, "right", BEHIND_GATEWAY, BEHIND_CLIENT)
        yield tunnel, left, right


def test_every_segment_behind_the_tunnel_is_well_formed(
    hosts: tuple[Tunnel, Namespace, Namespace], tmp_path: Path
) -> None:
    tunnel, left, right = hosts
    link = tunnel.network["A"]
    if isinstance(link, EmulatedLink):
        link.impair(loss=0.005, reorder=0.01, reorder_ms=3, duplicate=0.01)
    with Capture(left, "eth0") as at_left, Capture(right, "eth0") as at_right:
        for net, source, sink in ((BEHIND_GATEWAY, left, right), (BEHIND_CLIENT, right, left)):
            for prefix in net:
                stream(source, sink, f"{prefix}2", 2 << 20)
                datagrams_arrive(source, sink, f"{prefix}2")
        captures = {"left": at_left, "right": at_right}
        for name, capture in captures.items():
            capture.stop()
            capture.save(tmp_path / f"{name}.pcap")
    for name in captures:
        path = tmp_path / f"{name}.pcap"
        arrived = f"eth.dst == {HOST}"
        assert dissected(path, f"{arrived} && ({BAD})") == []
        # It looked at the sums, of both families.
        for family in ("ip", "ipv6"):
            assert (
                len(dissected(path, f"{arrived} && {family} && tcp.len > 1000 && tcp.checksum.status == 1"))
                > 1000
            )
            assert len(dissected(path, f"{arrived} && {family} && udp.checksum.status == 1")) >= 80
        assert dissected(path, f"{arrived} && frame.len > {MTU + 14}") == []
    for worker in (tunnel.client, tunnel.gateway):
        # Superpackets, not only packets, went into the tunnel; without faults they came out of it.
        assert worker.counted(Counter.TUN_READS) < worker.counted(Counter.SENT_PACKETS)
        joined = worker.counted(Counter.TUN_WRITES) < worker.counted(Counter.DELIVERED_PACKETS) / 2
        assert joined or isinstance(link, EmulatedLink)


def test_a_broken_sum_would_be_seen(lab: Lab, tmp_path: Path) -> None:
    end, host = lab.namespace("end"), lab.namespace("host")
    end.ip(
        f"link add lan type veth peer name eth0 netns {host.name}",
        "link set lan up",
        "addr add 10.9.0.1/24 dev lan",
    )
    host.ip("link set eth0 up", "addr add 10.9.0.2/24 dev eth0")
    # Left to the card, which a veth has not: the sum on the wire is only of the pseudo header.
    end.run(["ethtool", "-K", "lan", "tx", "on"])
    with Capture(host, "eth0") as capture, end.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x" * 500, ("10.9.0.2", 9))
        capture.wait_for(lambda frame: len(frame.data) > 500)
        capture.stop()
        capture.save(tmp_path / "host.pcap")
    assert dissected(tmp_path / "host.pcap", BAD)
