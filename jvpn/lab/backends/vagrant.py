"""The lab in virtual machines that Vagrant made: real kernels and NICs, with netem where faults strike.

``jvpn lab up`` makes the machines; here they are reset for one scenario after the other. What an uplink is like from
the beginning a process on the router has in force until its stdin closes (vagrant/traffic/faults/means/shape.py).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from jvpn.lab import vagrant
from jvpn.lab.answers import answer_of
from jvpn.lab.backends.machine import About
from jvpn.lab.backends.topology import CLIENT, ROUTER, Topology, UplinkShape, roles, routes
from jvpn.lab.namespaces import LabError
from jvpn.lab.ssh import SshMachine

#: Machines up to so much slower are as fast as this one: KVM, and a busy host.
SAME_SPEED: Final = 2.0
#: No limit is stretched further than this, however slowly an interpreter runs: what waits for links is no slower.
MOST_SLOWER: Final = 10.0
_ROUNDS: Final = 7
_LOOP: Final = """
import time
def once():
    begun = time.perf_counter()
    sum(n * n for n in range(30_000))
    return time.perf_counter() - begun
print(min(once() for _ in range({rounds})))
"""
_FRESH: Final = ("/usr/bin/python3", "-m", "vagrant.fresh")


class VagrantBackend:
    """Use as a context manager, or call ``down``. The machines stay when it goes."""

    name: Final = "vagrant"

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._connections: dict[str, SshMachine] = {}
        self._machines: dict[str, SshMachine] = {}
        self._shapes: subprocess.Popen[bytes] | None = None
        self._about: About | None = None

    def __enter__(self) -> VagrantBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def machines(self) -> Mapping[str, SshMachine]:
        return self._machines

    def up(self, topology: Topology) -> None:
        self.down()
        try:
            self._connect(topology.machine_names)
            about = self.about()
            names = topology.machine_names
            with ThreadPoolExecutor(len(names)) as pool:
                try:
                    found = list(pool.map(lambda name: self._reset(name, topology), names))
                except BaseException:
                    self.close()  # else the pool would wait for what still runs there, on the way out
                    raise
            for name, devices in zip(names, found, strict=True):
                machine = self._connections[name]
                machine.devices, machine.slower = devices, about.time_factor
                self._machines[name] = machine
            self._shape(topology.uplinks, topology.seed)
        except BaseException:
            self.close()
            raise

    def _connect(self, names: Sequence[str]) -> None:
        missing = [name for name in names if name not in self._connections]
        if not missing:
            return
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="jvpn-lab-"))
        config = self._folder / "-".join(missing)
        vagrant.write_ssh_config(missing, config)
        for name in missing:
            self._connections[name] = SshMachine(name, config, {})

    def _reset(self, name: str, topology: Topology) -> dict[str, str]:
        """Nothing runs there, and addresses and routes are the topology's; role → device."""
        machine = self._connections[name]
        machine.run([*_FRESH, name], timeout_s=300.0)
        devices = _devices(machine, roles(name, topology))
        wanted = "".join(f"route replace {route}\n" for route in routes(name, topology, devices))
        if name == ROUTER:
            machine.run(["ip", "route", "flush", "10.8.0.0/24"], check=False)
        machine.run(["ip", "-batch", "-"], input=wanted.encode())
        return devices

    def _shape(self, uplinks: Mapping[str, UplinkShape], seed: int) -> None:
        router = self._machines[ROUTER]
        wanted = {
            router.device(f"r{name}"): {
                "delay_ms": shape.rtt_ms / 2,
                "jitter_ms": shape.jitter_ms,
                "loss": shape.loss,
                "rate_mbit": shape.rate_mbit,
                "queue_ms": shape.queue_ms,
            }
            for name, shape in uplinks.items()
        }
        argv = [*router.python, "-m", "vagrant.traffic.faults.means.shape", "--seed", str(seed)]
        for name, shape in uplinks.items():
            if shape.mtu:
                argv += ["--mtu", f"{router.device(f'r{name}')}={shape.mtu}"]
        self._shapes = router.popen([*argv, json.dumps(wanted)])
        answer_of(self._shapes, "what shapes the uplinks", timeout_s=30.0 * router.slower)

    def down(self) -> None:
        """What ``up`` did is taken back, all but the connections."""
        shapes, self._shapes = self._shapes, None
        self._machines = {}
        if shapes is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                shapes.communicate(timeout=60.0)
            shapes.kill()
            shapes.wait()
        if CLIENT in self._connections:
            with contextlib.suppress(LabError):
                self._set_links("up")

    def close(self) -> None:
        """``down``, and the connections end."""
        self.down()
        connections, self._connections = self._connections, {}
        for machine in connections.values():
            machine.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def carrier(self, uplink: str, up: bool) -> None:
        """With libvirt the client's NIC loses its link; otherwise the router's end goes down, unseen by the client."""
        state = "up" if up else "down"
        domain = vagrant.domain(CLIENT)
        if not domain:
            router = self._machines[ROUTER]
            router.run(["ip", "link", "set", router.device(f"r{uplink}"), state])
            return
        _set_link(domain, _mac(uplink), state)

    def _set_links(self, state: str) -> None:
        if domain := vagrant.domain(CLIENT):
            for uplink in ("A", "B"):
                _set_link(domain, _mac(uplink), state)

    def wire(self, uplink: str) -> Sequence[str]:
        if ROUTER not in self._machines:
            raise LabError("the lab is not up: there is no wire")
        return ("--device", self._machines[ROUTER].device(f"r{uplink}"))

    def about(self) -> About:
        if self._about is None:
            self._connect([CLIENT])
            self._about = self._look(self._connections[CLIENT])
        return self._about

    def _look(self, machine: SshMachine) -> About:
        loop = _LOOP.format(rounds=_ROUNDS)
        there_s = float(machine.run(["/usr/bin/python3", "-I", "-S", "-c", loop], timeout_s=300.0).stdout)
        done = subprocess.run(
            ["/usr/bin/python3", "-I", "-S", "-c", loop], capture_output=True, check=True, timeout=300.0
        )
        ratio = there_s / float(done.stdout)
        kernel, cpus, how = machine.run(
            ["sh", "-c", "uname -srm; nproc; systemd-detect-virt || true"]
        ).stdout.decode().split("\n")[:3]  # fmt: skip
        emulated = how == "qemu"
        return About(
            self.name,
            "netem",
            time_factor=min(round(ratio, 1), MOST_SLOWER) if ratio > SAME_SPEED else 1.0,
            details={
                "kernel": kernel,
                "cpus": f"{cpus} each",
                "machines": "emulated by QEMU in software" if emulated else f"virtual ({how})",
                "vagrant": vagrant.vagrant("--version", quiet=True).removeprefix("Vagrant").strip(),
            },
        )


def _devices(machine: SshMachine, wanted: Mapping[str, str]) -> dict[str, str]:
    """role → name of the device that has the role's address."""
    found: dict[str, str] = {}
    links: list[dict[str, Any]] = json.loads(machine.run(["ip", "-json", "-4", "address"]).stdout)
    for role, address in wanted.items():
        local = address.partition("/")[0]
        for link in links:
            if any(row.get("local") == local for row in link["addr_info"]):
                found[role] = link["ifname"]
    if missing := sorted(set(wanted) - set(found)):
        raise LabError(
            f"{machine.name} has no interface with the address of {', '.join(missing)}: "
            "`jvpn lab up` provisions it again"
        )
    return found


def _mac(uplink: str) -> str:
    topology = json.loads((vagrant.FOLDER / "topology.json").read_text())
    return str(topology[CLIENT]["interfaces"][f"up{uplink}"]["mac"])


def _set_link(domain: str, mac: str, state: str) -> None:
    done = subprocess.run(
        ["virsh", "-c", "qemu:///system", "domif-setlink", domain, mac, state],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise LabError(f"libvirt cannot set the client's link {state}: {done.stderr.strip()}")
