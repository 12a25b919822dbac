"""A client, a router that things are done to, and a gateway: the lab's addresses, with an emulated link in between."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jvpn.lab.emulator import SO_RCVBUFFORCE
from jvpn.lab.faults import SEGMENTATION
from jvpn.lab.link_model import LinkParams
from jvpn.lab.namespaces import Lab, Namespace, module_environment
from jvpn.lab.wire import Wire

CLIENT, CLIENT6 = "10.201.1.2", "fd00:201:1::2"
SPARE = "10.201.1.102"
GATEWAY, GATEWAY6 = "10.202.1.2", "fd00:202:1::2"
PORT = 51820


class Routed:
    """client upA ── cA wire gA ── rA router w1 ── out gateway. The wire answers on ``control`` as well."""

    def __init__(self, lab: Lab, work: Path, base: LinkParams | None = None) -> None:
        self.client, self.router, self.gateway = (lab.namespace(n) for n in ("client", "router", "gateway"))
        middle = lab.namespace("wire")
        for namespace in (self.client, self.router, self.gateway, middle):
            for scope in ("all", "default"):
                quiet = ("accept_dad", "router_solicitations")
                namespace.sysctl({f"net.ipv6.conf.{scope}.{key}": 0 for key in quiet})
        middle.sysctl({"net.ipv6.conf.default.disable_ipv6": 1})
        middle.ip(
            f"link add cA type veth peer name upA netns {self.client.name}",
            f"link add gA type veth peer name rA netns {self.router.name}",
            "link set cA up", "link set gA up",
        )  # fmt: skip
        self.router.ip(f"link add w1 type veth peer name out netns {self.gateway.name}")
        self.router.sysctl({"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})
        self._address(self.client, "upA", CLIENT, CLIENT6)
        self.client.ip(f"addr add {SPARE}/24 dev upA")
        self._address(self.router, "rA", "10.201.1.1", "fd00:201:1::1")
        self._address(self.router, "w1", "10.202.1.1", "fd00:202:1::1")
        self._address(self.gateway, "out", GATEWAY, GATEWAY6)
        self.client.ip("route add default via 10.201.1.1", "route add default via fd00:201:1::1")
        self.gateway.ip("route add default via 10.202.1.1", "route add default via fd00:202:1::1")
        self._introduce(self.client, "upA", self.router, "rA", CLIENT, CLIENT6)
        self._introduce(self.router, "rA", self.client, "upA", "10.201.1.1", "fd00:201:1::1")
        self.control = work / "wire.sock"
        self.wire = Wire(middle, [("A", "cA", "gA")], 1, control=self.control)
        for direction in ("up", "down"):
            self.wire.set("A", direction, base or LinkParams())

    def _address(self, namespace: Namespace, device: str, address: str, address6: str) -> None:
        namespace.ip(
            f"addr add {address}/24 dev {device}",
            f"addr add {address6}/64 dev {device} nodad",
            f"link set {device} up",
        )
        # What a fault does, it does to single packets.
        switches = [word for name in SEGMENTATION for word in (name, "off")]
        namespace.run(["ethtool", "-K", device, *switches])

    def _introduce(self, whom: Namespace, device: str, to: Namespace, over: str, *addresses: str) -> None:
        """Have *to* know the hardware address for good: while packets are lost, no neighbour has to be asked for."""
        shown = json.loads(whom.run(["ip", "-json", "link", "show", device]).stdout)
        hardware = shown[0]["address"]
        to.ip(*(f"neigh replace {one} lladdr {hardware} nud permanent dev {over}" for one in addresses))

    def counters(self, direction: str) -> dict[str, int]:
        return self.wire.counters()[f"A/{direction}"]

    def socket(self, namespace: Namespace, address: str, port: int = 0) -> socket.socket:
        """A UDP socket there, with a timeout for receiving."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = namespace.socket(family, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        sock.settimeout(10)
        sock.bind((address, port))
        return sock


class Fault:
    """A fault script in the router, in force while the context lasts; then ``summary`` is its last line."""

    def __init__(self, routed: Routed, name: str, *argv: str, kind: str = "fault") -> None:
        self._argv = [f"vagrant.traffic.{kind}s.{name}", *argv, "--until-eof"]
        self._router = routed.router
        self.began: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}

    def __enter__(self) -> Fault:
        self.process: subprocess.Popen[str] = self._router.popen_module(
            *self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"{self._argv}: {self.process.communicate()[1]}")
        self.began = json.loads(line)
        return self

    def __exit__(self, *_: object) -> None:
        out, err = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, err
        self.summary = json.loads(out)


def script(routed: Routed, name: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """A fault script run in the router to its end, whichever."""
    command: Sequence[str] = [sys.executable, "-m", f"vagrant.traffic.faults.{name}", *argv]
    return subprocess.run(
        routed.router.argv(command), env=module_environment(), capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
