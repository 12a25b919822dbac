"""Give this machine of the lab back as it was before anything ran: ``python3 -m vagrant.fresh NAME`` as root.

What earlier scenarios left behind, because they were killed, ends and is removed; interfaces have their addresses and
routes again. Runs with the machine's own interpreter and nothing but its library.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from vagrant import network

INTERPRETER = b"/opt/jvpn/.venv/bin/python"
FOLDER = Path("/run/jvpn-lab")
LEFT = (FOLDER, Path("/run/jvpn-lab-faults"), Path("/sys/fs/bpf/jvpn"))


def quietly(*command: str) -> None:
    """For what need not be there to be taken away."""
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def end_processes() -> None:
    """Those of the project's interpreter, and stores: scenarios start nothing else that stays."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                first = (entry / "cmdline").read_bytes().split(b"\0")[0]
                if first == INTERPRETER or first.rpartition(b"/")[2] == b"etcd":
                    os.kill(int(entry.name), signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                continue


def clean(device: str) -> None:
    for kind in ("root", "ingress"):
        quietly("tc", "qdisc", "del", "dev", device, kind)
    quietly("ip", "link", "set", device, "xdpgeneric", "off")
    quietly("ip", "link", "set", device, "xdp", "off")


def main(machine: str) -> None:
    topology = json.loads((network.HERE / "topology.json").read_text())
    end_processes()
    for path in LEFT:
        shutil.rmtree(path, ignore_errors=True)
    quietly("nft", "flush", "ruleset")
    for device in Path("/sys/class/net").iterdir():
        if device.name.startswith("jv"):
            quietly("ip", "link", "del", device.name)
    for interface in topology[machine]["interfaces"].values():
        clean(network.device_of(interface["mac"]))
    FOLDER.mkdir(mode=0o700)
    network.main(machine)


if __name__ == "__main__":
    main(sys.argv[1])
