"""The lab in network namespaces of this host: one for each machine, and one between client and router.

Each uplink is two veth pairs, `upA ─ cA` and `gA ─ rA`, and an emulator process that carries frames from cA to gA and
back in the namespace "wire". Frames pass it, and the router, one by one, as on a real line: senders segment first.
Everything else is plain veth; the router forwards in the kernel, and native XDP runs on the gateways' `out`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from jvpn.lab.backends.machine import About
from jvpn.lab.backends.topology import (
    CLIENT,
    ROUTER,
    Topology,
    UplinkShape,
    further_addresses,
    gateway_number,
    roles,
    routes,
    uplink_number,
)
from jvpn.lab.faults import SEGMENTATION
from jvpn.lab.link_model import LinkParams
from jvpn.lab.links import carry_as_is, end, prepare_for_xdp, quiet_namespace
from jvpn.lab.namespaces import Lab, LabError, Namespace, module_environment
from jvpn.lab.places import ROOT
from jvpn.lab.wire import Wire

PREFIX: Final = "jvpn-lab-"
PINS: Final = Path("/sys/fs/bpf/jvpn")
#: A frame that is forwarded goes where routes say, also back where it came from, and without a redirect.
_FORWARDING: Final = {
    "net.ipv4.ip_forward": 1,
    "net.ipv6.conf.all.forwarding": 1,
    "net.ipv4.conf.all.send_redirects": 0,
    "net.ipv4.conf.default.send_redirects": 0,
}


class NetnsMachine:
    """A namespace as a machine. Its files and its clock are this host's."""

    def __init__(self, name: str, namespace: Namespace, folder: Path) -> None:
        self.name = name
        self.namespace = namespace
        self.folder = folder
        self.python: Sequence[str] = (sys.executable,)

    def run(
        self, argv: Sequence[str], *, check: bool = True, input: bytes = b"", timeout_s: float = 30.0
    ) -> subprocess.CompletedProcess[bytes]:
        process = self.popen(argv)
        shown = " ".join(argv)
        try:
            out, err = process.communicate(input, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise LabError(f"{shown!r} on {self.name} did not end in {timeout_s:g} s") from None
        finally:
            self.namespace.lab.forget(process)
        if check and process.returncode != 0:
            said = (err.strip() or out.strip()).decode(errors="replace") or "it said nothing"
            raise LabError(f"{shown!r} on {self.name} failed with status {process.returncode}: {said}")
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def popen(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = self.namespace.popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=module_environment(),
        )
        return process

    def read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as refused:
            raise LabError(f"cannot read {path} on {self.name}: {refused.strerror}") from refused

    def write(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        try:
            path.touch(mode)
            path.chmod(mode)
            path.write_bytes(data)
        except OSError as refused:
            raise LabError(f"cannot write {path} on {self.name}: {refused.strerror}") from refused

    def device(self, role: str) -> str:
        """Devices are called what they are."""
        return role

    def clock_offset_ns(self) -> int:
        return 0


class NetnsBackend:
    """Use as a context manager, or call ``down``. Needs root. LabError as namespaces and emulator raise it."""

    name: Final = "netns"

    def __init__(self) -> None:
        self._lab: Lab | None = None
        self._folder: Path | None = None
        self._wire_space: Namespace | None = None
        self._machines: dict[str, NetnsMachine] = {}
        self._wires: dict[str, Wire] = {}

    def __enter__(self) -> NetnsBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def machines(self) -> Mapping[str, NetnsMachine]:
        return self._machines

    def up(self, topology: Topology) -> None:
        self.down()
        sweep()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        self._lab = Lab("jvpn-lab")
        try:
            self._lab.__enter__()
            self._make(self._lab, self._folder, topology)
        except BaseException:
            self.down()
            raise

    def _make(self, lab: Lab, folder: Path, topology: Topology) -> None:
        for name in topology.machine_names:
            space = quiet_namespace(lab, name) if name == ROUTER else end(lab, name)
            if name != CLIENT:
                space.sysctl(_FORWARDING)
            (folder / name).mkdir()
            self._machines[name] = NetnsMachine(name, space, folder / name)
        self._wire_space = quiet_namespace(lab, "wire")
        for name, shape in topology.uplinks.items():
            self._join_uplink(name, shape, topology.seed)
        for name in topology.gateway_names:
            self._join_gateway(name)
        self._join_lan(topology)
        for machine in self._machines.values():
            self._address(machine, topology)

    def _join_uplink(self, name: str, shape: UplinkShape, seed: int) -> None:
        assert self._wire_space is not None
        assert self._folder is not None
        wire, number = self._wire_space, uplink_number(name)
        # The two ends' interfaces have different indices: links.uplinks says why.
        wire.ip(
            f"link add c{name} index {100 + number} type veth peer name up{name} index {200 + number} "
            f"netns {self._machines[CLIENT].namespace.name}",
            f"link add g{name} index {300 + number} type veth peer name r{name} index {400 + number} "
            f"netns {self._machines[ROUTER].namespace.name}",
        )
        carry_as_is(wire, (f"c{name}", f"g{name}"))
        self._one_by_one(CLIENT, f"up{name}")
        self._one_by_one(ROUTER, f"r{name}")
        made = Wire(
            wire, [(name, f"c{name}", f"g{name}")], seed, number, control=self._folder / f"wire{name}"
        )
        params = LinkParams(
            delay_ms=shape.rtt_ms / 2,
            jitter_ms=shape.jitter_ms,
            loss=shape.loss,
            rate_mbit=shape.rate_mbit,
            queue_ms=shape.queue_ms,
            mtu=shape.mtu,
        )
        for way in ("up", "down"):
            made.set(name, way, params)
        self._wires[name] = made

    def _join_gateway(self, name: str) -> None:
        router, gateway = self._machines[ROUTER].namespace, self._machines[name].namespace
        number = gateway_number(name)
        router.ip(
            f"link add w{number} index {500 + number} type veth peer name out index {600 + number} "
            f"netns {gateway.name}"
        )
        prepare_for_xdp(gateway, "out", router, f"w{number}")
        self._one_by_one(name, "out")

    def _one_by_one(self, machine: str, device: str) -> None:
        """What is sent there is segmented first."""
        off = [word for feature in SEGMENTATION for word in (feature, "off")]
        self._machines[machine].namespace.run(["ethtool", "-K", device, *off])

    def _join_lan(self, topology: Topology) -> None:
        router = self._machines[ROUTER].namespace
        router.ip("link add lan type bridge", "link set lan up")
        for name in topology.gateway_names:
            gateway, port = self._machines[name].namespace, f"lan{gateway_number(name)}"
            router.ip(
                f"link add {port} type veth peer name lan netns {gateway.name}", f"link set {port} master lan"
            )
            router.ip(f"link set {port} up")

    def _address(self, machine: NetnsMachine, topology: Topology) -> None:
        lines = []
        for role, address in roles(machine.name, topology).items():
            lines += [f"addr add {address} dev {role}"]
            lines += [f"addr add {_placed(more, role)}" for more in further_addresses(machine.name, role)]
            lines += [f"link set {role} up"]
        devices = {role: role for role in roles(machine.name, topology)}
        lines += [f"route replace {route}" for route in routes(machine.name, topology, devices)]
        machine.namespace.ip(*lines)

    def down(self) -> None:
        if self._lab is not None:
            self._lab.close()
        if self._folder is not None:
            _remove(self._folder)
        self._lab = self._folder = self._wire_space = None
        self._machines, self._wires = {}, {}

    def close(self) -> None:
        self.down()

    def carrier(self, uplink: str, up: bool) -> None:
        """The client's device stays up and loses carrier, as when a cable is pulled."""
        if self._wire_space is None:
            raise LabError("the lab is not up: there is no cable to pull")
        self._wire_space.ip(f"link set c{uplink} {'up' if up else 'down'}")

    def wire(self, uplink: str) -> Sequence[str]:
        if self._folder is None:
            raise LabError("the lab is not up: there is no wire")
        return ("--wire", str(self._folder / f"wire{uplink}"), "--link", uplink)

    def about(self) -> About:
        kernel = os.uname()
        return About(
            self.name,
            "emulator",
            details={
                "kernel": f"{kernel.sysname} {kernel.release} {kernel.machine}",
                "python": sys.version.split()[0],
                "cpus": str(len(os.sched_getaffinity(0))),
            },
        )


def _placed(address: str, device: str) -> str:
    """`ip addr add` arguments with the device behind the address, where flags may follow."""
    prefix, _, flags = address.partition(" ")
    return f"{prefix} dev {device} {flags}".rstrip()


def _remove(folder: Path) -> None:
    """With what is mounted in it."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        place = line.split()[1]
        if place.startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", place], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Remove folders and pins of labs whose process was killed; ``Lab.sweep`` does so with their namespaces."""
    folders = (
        (left, left.name.removeprefix(PREFIX)) for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*")
    )
    pins = ((left, left.name.partition("-lab")[2]) for left in PINS.glob("gw?-lab*-*"))
    for left, name in (*folders, *pins):
        owner = name.partition("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            _remove(left)
