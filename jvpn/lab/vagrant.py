"""`vagrant` as the lab uses it: in the checkout's folder of that name, with machines named one by one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from jvpn.lab.namespaces import LabError
from jvpn.lab.places import ROOT

FOLDER: Final = ROOT / "vagrant"
MACHINES: Final = ("gw1", "gw2", "router", "client")
_LAST_LINES: Final = 8


def chosen(names: Sequence[str]) -> list[str]:
    """*names*, or those of LAB_MACHINES, or all. LabError for one that there is not."""
    wanted = list(names) or os.environ.get("LAB_MACHINES", "").split() or list(MACHINES)
    if unknown := [name for name in wanted if name not in MACHINES]:
        raise LabError(f"there is no machine {', '.join(unknown)}: the lab has {', '.join(MACHINES)}")
    return wanted


def vagrant(*argv: str, quiet: bool = False) -> str:
    """Run it; *quiet*: return what it says, otherwise that is shown. LabError when it fails."""
    if shutil.which("vagrant") is None:
        raise LabError(
            "vagrant is not installed: apt-get install vagrant vagrant-libvirt, or see docs/lab.md"
        )
    if not (FOLDER / "Vagrantfile").is_file():
        raise LabError(
            f"there is no {FOLDER / 'Vagrantfile'}: machines are made from a checkout of the project"
        )
    done = subprocess.run(
        ["vagrant", *argv], cwd=FOLDER, stdin=subprocess.DEVNULL, capture_output=quiet, text=True, check=False
    )
    if done.returncode != 0:
        said = " ".join((done.stderr or "").strip().splitlines()[-_LAST_LINES:]) or "its words are above"
        raise LabError(f"`vagrant {' '.join(argv)}` failed with status {done.returncode}: {said}")
    return done.stdout or ""


def up(names: Sequence[str]) -> None:
    """Machines that run, with the checkout as it is now, set up. What is there already stays."""
    vagrant("up", "--no-provision", *names)
    vagrant("rsync", *names)
    vagrant("provision", *names)


def destroy(names: Sequence[str]) -> None:
    """The machines are gone, with their disks."""
    vagrant("destroy", "--force", *names)


def halt(names: Sequence[str]) -> None:
    """The machines are off; their disks stay, and the next ``up`` is quick."""
    vagrant("halt", *names)


def ssh(name: str, command: Sequence[str]) -> int:
    """A shell, or *command*, there; its exit status."""
    [name] = chosen([name])
    argv = ["vagrant", "ssh", name, *(("-c", " ".join(command)) if command else ())]
    return subprocess.run(argv, cwd=FOLDER, check=False).returncode


def write_ssh_config(names: Sequence[str], path: Path) -> None:
    """How root of these machines is reached. LabError when one of them is not up."""
    try:
        config = vagrant("ssh-config", *names, quiet=True)
    except LabError as error:
        raise LabError(f"the lab's machines do not all run, `jvpn lab up` starts them: {error}") from error
    config = re.sub(r"(?m)^(\s*User) .*$", r"\1 root", config)
    path.write_text(f"{config}\nHost *\n  LogLevel ERROR\n  BatchMode yes\n  ServerAliveInterval 30\n")
    path.chmod(0o600)


def domain(name: str) -> str:
    """What libvirt calls a machine; empty with another provider."""
    path = FOLDER / ".vagrant" / "machines" / name / "libvirt" / "id"
    return path.read_text().strip() if path.is_file() else ""
