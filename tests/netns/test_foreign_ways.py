"""Attacks stand on the lab's router and send nothing by another way: not where routes lead elsewhere, not with sources
of others, who would get the answers."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attack_lab import FAR, GATEWAY_IP, NEAR, PATIENCE_S
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap

from jvpn.lab.namespaces import Lab, Namespace

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

#: By documentation's third network (RFC 5737), which is not the lab's.
ELSEWHERE = "198.51.100"


@pytest.fixture(scope="module")
def router() -> Iterator[Namespace]:
    """A router whose other routes lead out by a device that is not the lab's."""
    with Lab("foreign") as lab:
        space = lab.namespace("router")
        devices = {
            NEAR: "10.201.1.1/24",
            "wide": "10.201.3.1/8",
            FAR: "10.202.1.1/24",
            "out": f"{ELSEWHERE}.1/24",
        }
        for device, address in devices.items():
            space.ip(
                f"link add {device} type veth peer name {device}-end", f"link set {device}-end up",
                f"addr add {address} dev {device}", f"link set {device} up",
            )  # fmt: skip
        space.ip(f"route add default via {ELSEWHERE}.2")
        yield space


def said_by(router: Namespace, name: str, *more: str, device: str = NEAR) -> str:
    """What an attack that is refused says."""
    process = router.popen_module(
        f"vagrant.traffic.attacks.{name}", "--device", device, "--gateway", GATEWAY_IP, "--count", "5", "--for", "20",
        *more,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    said: str = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 2, said
    return said


def test_a_sink_that_is_reached_by_a_strange_device(router: Namespace) -> None:
    said = said_by(router, "session_flood", "--sink", "192.0.2.77:9")
    assert f"out has the address {ELSEWHERE}.1" in said


def test_a_device_in_whose_network_others_live_too(router: Namespace) -> None:
    assert "10.128.0.0/9 does not lie in one of the lab's networks" in said_by(
        router, "session_flood", device="wide"
    )


@pytest.mark.parametrize("name", ["replay", "fuzz"])
def test_a_capture_whose_client_is_somebody_else(router: Namespace, name: str, tmp_path: Path) -> None:
    client = f"{ELSEWHERE}.9"
    up = Ether() / IP(src=client, dst=GATEWAY_IP) / UDP(sport=4_000, dport=51_820) / bytes([0x10] * 60)
    down = Ether() / IP(src=GATEWAY_IP, dst=client) / UDP(sport=51_820, dport=4_000) / bytes([0x10] * 60)
    for direction, packet in (("up", up), ("down", down)):
        capture = tmp_path / f"{direction}.pcap"
        wrpcap(str(capture), [packet] * 20)
        said = said_by(router, name, "--capture", str(capture), "--direction", direction)
        assert f"{client} is not one of the lab's addresses" in said
