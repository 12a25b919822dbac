"""The units of systemd/: valid for systemd itself, and they run commands that there are."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from jvpn.cli import build_parser

UNITS = sorted((Path(__file__).parents[2] / "systemd").glob("*.service"))
JVPN = "/opt/jvpn/.venv/bin/jvpn"


def commands(unit: Path) -> list[list[str]]:
    lines = re.findall(rf"^Exec\w+=-?{JVPN} (.*)$", unit.read_text(), re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_there_are_a_data_plane_and_a_supervisor() -> None:
    assert [unit.name for unit in UNITS] == ["jvpn-dataplane.service", "jvpn.service"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_every_command_is_one(unit: Path) -> None:
    assert commands(unit)
    for arguments in commands(unit):
        assert str(build_parser().parse_args(arguments).config) == "/etc/jvpn/gateway.yaml"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_takes_them(tmp_path: Path) -> None:
    for unit in UNITS:
        # It asks whether programs and pages are there.
        text = unit.read_text().replace(JVPN, shutil.which("true") or "")
        (tmp_path / unit.name).write_text(re.sub(r"^Documentation=.*\n", "", text, flags=re.MULTILINE))
    files = [str(tmp_path / unit.name) for unit in UNITS]
    done = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
