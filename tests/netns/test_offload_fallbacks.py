"""Whatever the kernel of one end cannot take over, or is not allowed to: TCP, UDP and ICMP pass between both ends."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from client_lab import ClientLab
from streams import TcpEcho
from worker_pair import CLIENT_4, CLIENT_6, GATEWAY_4, GATEWAY_6, Refusal, Tunnel, datagrams, echo, stream

from jvpn.cli.checks import USO_KERNEL, kernel_version
from jvpn.lab.links import direct_links
from jvpn.lab.namespaces import Lab
from jvpn.lab.running import GATEWAY_INNER
from workers.bulk import find
from workers.counters import Counter
from workers.offload import Offload
from workers.udp import UDP_GRO, UDP_SEGMENT

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454D0, 0x400454D8
CSUM_TSO_USO = 0x01 | 0x02 | 0x04 | 0x20 | 0x40

NO_VNET_HEADER: Refusal = ("ioctl", TUNSETVNETHDRSZ, None)
NO_TUN_OFFLOAD: Refusal = ("ioctl", TUNSETOFFLOAD, None)
NO_USO: Refusal = ("ioctl", TUNSETOFFLOAD, CSUM_TSO_USO)
NO_GRO: Refusal = ("setsockopt", UDP_GRO, None)
NO_GSO: Refusal = ("setsockopt", UDP_SEGMENT, None)

USO = kernel_version(os.uname().release) >= USO_KERNEL
BULK = find() is not None
ALL = Offload(vnet_header=True, tso=True, uso=USO, gso=True, gro=True, bulk=BULK)
OFF = Offload()
#: What an end is told or lacks, and what it finds then.
ENDS: dict[str, tuple[dict[str, Any], Offload]] = {
    "auto": ({}, ALL),
    "off": ({"wanted": False}, OFF),
    "no vnet header": ({"refused": (NO_VNET_HEADER,)}, Offload(gso=True, gro=True, bulk=BULK)),
    "no TUN offload": (
        {"refused": (NO_TUN_OFFLOAD,)},
        Offload(vnet_header=True, gso=True, gro=True, bulk=BULK),
    ),
    "no USO": ({"refused": (NO_USO,)}, Offload(vnet_header=True, tso=True, gso=True, gro=True, bulk=BULK)),
    "no GRO": ({"refused": (NO_GRO,)}, Offload(vnet_header=True, tso=True, uso=USO, gso=True, bulk=BULK)),
    "no GSO": ({"refused": (NO_GSO,)}, Offload(vnet_header=True, tso=True, uso=USO, gro=True, bulk=BULK)),
    "no libipsec-mb": (
        {"library": False},
        Offload(vnet_header=True, tso=True, uso=USO, gso=True, gro=True),
    ),
}


@contextlib.contextmanager
def tunnel(client: str, gateway: str) -> Iterator[Tunnel]:
    with Lab("offload") as lab, contextlib.ExitStack() as stack:
        made = Tunnel(lab, ENDS[client][0], ENDS[gateway][0])
        stack.callback(made.client.end)
        stack.callback(made.gateway.end)
        made.open()
        yield made


@pytest.mark.parametrize(
    ("client", "gateway"),
    [
        ("off", "auto"),
        ("auto", "off"),
        ("off", "off"),
        ("no vnet header", "no GSO"),
        ("no USO", "no TUN offload"),
        ("no GRO", "no USO"),
        ("no GSO", "no GRO"),
        ("no libipsec-mb", "auto"),
        ("auto", "no libipsec-mb"),
    ],
)
def test_everything_passes_with_what_the_kernels_of_both_ends_have(client: str, gateway: str) -> None:
    with tunnel(client, gateway) as made:
        for worker, name in ((made.client, client), (made.gateway, gateway)):
            assert msgspec.structs.replace(worker.found, compiled=False) == ENDS[name][1]
        ends = made.network.client, made.network.gateway
        for address in (GATEWAY_4, GATEWAY_6):
            for size in (0, 1300, 4000):
                echo(made.network.client, address, size)
            stream(*ends, address, 4 << 20)
            datagrams(*ends, address)
        for address in (CLIENT_4, CLIENT_6):
            stream(*reversed(ends), address, 4 << 20)
            datagrams(*reversed(ends), address)
        for worker, name in ((made.client, client), (made.gateway, gateway)):
            found = ENDS[name][1]
            assert worker.dropped().keys() <= {"SEND_FULL"}
            sent = worker.counted(Counter.SENT_PACKETS)
            # Superpackets come from the TUN where it has been asked for them, and only there.
            assert (worker.counted(Counter.TUN_READS) < sent / 2) is found.tso


def test_a_configuration_without_offload_is_obeyed_and_shown(lab: Lab, tmp_path: Path) -> None:
    network = direct_links(lab, ("A",))
    with ClientLab(network, tmp_path) as system:
        system.write_gateway(offload="off")
        system.write_client()
        system.start()
        with TcpEcho(network.client, network.gateway, GATEWAY_INNER) as connection:
            connection.goes_on()
        assert system.gateway.status()["offload"] == "off by configuration"
        assert system.status()["offload"].startswith("TUN vnet header, TSO")
        folder = str(tmp_path / "gateway")
        said = system.jvpn("status", "--run-dir", folder, where=network.gateway).stdout
        assert "offload   off by configuration" in said
        path = str(tmp_path / "client.yaml")
        assert "in use: TUN vnet header, TSO" in system.jvpn("doctor", "-c", path).stdout.replace("\n", " ")
