"""A client, the router that attackers stand on, and a gateway, with the addresses of the lab; attacks run there."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jvpn.lab.faults import DirectLink
from jvpn.lab.links import Network
from jvpn.lab.namespaces import Lab, Namespace
from jvpn.lab.nat import Nat

GATEWAY_IP, ROUTER_IP = "10.202.1.2", "10.202.1.1"
#: The router's interface towards the client, and towards the gateway.
NEAR, FAR = "rA", "w1"
PATIENCE_S = 60.0


@dataclass
class Routed:
    """The network that a `Running` takes, and its router."""

    net: Network[DirectLink]
    router: Namespace


def routed(lab: Lab) -> Routed:
    """client upA 10.201.1.2 – rA 10.201.1.1 router w1 10.202.1.1 – eth0 10.202.1.2 gateway."""
    client, router, gateway = (lab.namespace(label) for label in ("client", "router", "gateway"))
    client.ip(f"link add upA type veth peer name {NEAR} netns {router.name}")
    router.ip(f"link add {FAR} type veth peer name eth0 netns {gateway.name}")
    link = DirectLink("A", 1, client, router, NEAR, router)
    link.gateway_device = NEAR
    for space in (client, router, gateway):
        space.sysctl(
            {f"net.ipv4.conf.{scope}.rp_filter": 0 for scope in ("all", "default")}
            | {"net.ipv4.ip_forward": 1}
        )
    link.address()
    router.ip(f"addr add {ROUTER_IP}/24 dev {FAR}", f"link set {FAR} up")
    gateway.ip(
        f"addr add {GATEWAY_IP}/24 dev eth0", "link set eth0 up", f"route add 10.201.0.0/16 via {ROUTER_IP}"
    )
    client.ip(f"route add {GATEWAY_IP}/32 via {link.gateway_ip} dev upA")
    # Native XDP on a veth: whoever sends into it fills in sums, and its own end has GRO (jvpn/lab/links.py).
    router.run(["ethtool", "-K", FAR, "tx", "off"])
    gateway.run(["ethtool", "-K", "eth0", "gro", "on"])
    return Routed(Network(client, gateway, {"A": link}, Nat(client), service_ip=GATEWAY_IP), router)


@dataclass
class Attack:
    """One that runs: `in_force` is its first line, and `summary` its last when it has ended."""

    process: subprocess.Popen[str]
    in_force: dict[str, Any]
    summary: dict[str, Any] | None = None

    @property
    def counters(self) -> dict[str, int]:
        assert self.summary is not None
        found: dict[str, int] = self.summary["counters"]
        return found

    def ended(self) -> None:
        """Wait for its end, which is at once if it was told no other. AssertionError with what it said unless it ended
        well. Safe to call twice."""
        if self.summary is not None:
            return
        out, err = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0, err
        self.summary = json.loads(out)


@contextmanager
def attack(router: Namespace, name: str, *more: str) -> Iterator[Attack]:
    """One of vagrant.traffic.attacks in the router, in force; ended and summed up behind the block."""
    process = router.popen_module(
        f"vagrant.traffic.attacks.{name}",
        *("--device", NEAR, "--gateway", GATEWAY_IP, "--quiet", *more),
        *(() if "--count" in more else ("--until-eof",)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    running = Attack(process, json.loads(line))
    yield running
    running.ended()
