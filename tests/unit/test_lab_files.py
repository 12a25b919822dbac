"""The files that Vagrant and the box are made of: they parse, and say the same as each other."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from jvpn.lab.backends.topology import Topology, further_addresses, roles, routes

VAGRANT = Path(__file__).resolve().parents[2] / "vagrant"
SCRIPTS = ("provision.sh", "box/build", "box/lab-here")
TOPOLOGY = json.loads((VAGRANT / "topology.json").read_text())
INTERFACES = [
    (machine, role, interface)
    for machine, described in TOPOLOGY.items()
    for role, interface in described["interfaces"].items()
]


def checked(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=VAGRANT.parent, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_shell_and_may_be_run(script: str) -> None:
    path = VAGRANT / script
    assert path.stat().st_mode & 0o111
    assert path.read_text().startswith("#!/bin/sh\n")
    done = checked("sh", "-n", path)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_has_nothing_to_say(script: str) -> None:
    done = checked("shellcheck", VAGRANT / script)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("ruby") is None, reason="ruby is not installed")
def test_the_vagrantfile_is_ruby() -> None:
    done = checked("ruby", "-c", VAGRANT / "Vagrantfile")
    assert done.returncode == 0, done.stderr


def test_machines_have_one_interface_for_each_address_of_the_wire() -> None:
    macs = [interface["mac"] for _, _, interface in INTERFACES]
    assert len(set(macs)) == len(macs)
    assert all(re.fullmatch("52:54:00(:[0-9a-f]{2}){3}", mac) for mac in macs)
    addresses = [address for *_, interface in INTERFACES for address in interface["addresses"]]
    assert len(set(addresses)) == len(addresses)


def test_machines_boot_with_the_addresses_and_routes_that_scenarios_have() -> None:
    topology = Topology(gateways=2)
    for machine, described in TOPOLOGY.items():
        assert set(described["interfaces"]) == set(roles(machine, topology))
        for role, address in roles(machine, topology).items():
            wanted = [address, *further_addresses(machine, role)]
            assert described["interfaces"][role]["addresses"] == wanted
        devices = {role: role for role in described["interfaces"]}
        assert described["routes"] == routes(machine, topology, devices)


def test_every_segment_joins_the_router_and_who_is_behind_it() -> None:
    ends: dict[str, set[str]] = {}
    for machine, _, interface in INTERFACES:
        ends.setdefault(interface["network"], set()).add(machine)
    assert ends == {
        "upA": {"client", "router"},
        "upB": {"client", "router"},
        "w1": {"gw1", "router"},
        "w2": {"gw2", "router"},
        "lan": {"gw1", "gw2", "router"},
    }


def test_routes_go_to_neighbours_of_the_interface_that_they_name() -> None:
    for machine in TOPOLOGY.values():
        for route in machine["routes"]:
            words = route.split()
            via, device = words[words.index("via") + 1], words[words.index("dev") + 1]
            own = machine["interfaces"][device]["addresses"]
            separator = ":" if ":" in via else "."
            assert any(address.startswith(via.rpartition(separator)[0] + separator) for address in own), route


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_machines_get_the_sources_and_the_compiled_modules_but_no_environment(tmp_path: Path) -> None:
    source = tmp_path / "from"
    wanted = {"jvpn/a.py", "vagrant/Vagrantfile", ".venv/compiled/0a/workers/udp.so"}
    unwanted = {
        ".git/config",
        ".venv/bin/python",
        ".venv/.setup-stamp",
        ".venv/lib/x.py",
        ".mypy_cache/x",
        "jvpn/__pycache__/a.pyc",
        "vagrant/.vagrant/machines/gw1/id",
        "lab-report/1/report.md",
    }
    for name in wanted | unwanted:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("x")
    target = tmp_path / "to"
    done = checked("rsync", "-a", f"--exclude-from={VAGRANT / 'rsync-exclude'}", f"{source}/", f"{target}/")
    assert done.returncode == 0, done.stderr
    assert {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()} == wanted


def test_the_boot_script_needs_nothing_but_the_library() -> None:
    """It runs at boot, before anything of the project is imported."""
    done = checked("/usr/bin/python3", "-S", "-m", "vagrant.network", "nobody")
    assert done.returncode == 1
    assert "no machine nobody; there are gw1, gw2, router, client" in done.stderr
