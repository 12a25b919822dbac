"""What a killed lab has left goes when the next one begins, and what runs stays."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from jvpn.lab.backends import netns


def test_folders_and_pins_of_the_dead_go_and_those_of_the_living_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(netns, "PINS", tmp_path / "pins")
    left = [tmp_path / f"jvpn-lab-{ended.pid}-abc", tmp_path / "pins" / f"gw2-lab{ended.pid}-0a1b"]
    kept = [
        tmp_path / f"jvpn-lab-{os.getpid()}-abc",
        tmp_path / "jvpn-lab-another",
        tmp_path / "pins" / f"gw1-lab{os.getpid()}-0a1b",
        tmp_path / "pins" / "gw-branch-office",
        tmp_path / "pins" / "gw1-label-x",
    ]
    for folder in (*left, *kept):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    netns.sweep()
    assert not any(folder.exists() for folder in left)
    assert all((folder / "file").exists() for folder in kept)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: needs root")
def test_what_a_killed_lab_had_mounted_goes_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(netns, "PINS", tmp_path / "pins")
    disk = tmp_path / f"jvpn-lab-{ended.pid}-abc" / "gw1" / "disk-store"
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "jvpn-lab", str(disk)], check=True)
    try:
        netns.sweep()
        assert not disk.parents[1].exists()
        assert str(disk) not in Path("/proc/self/mounts").read_text()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False, stderr=subprocess.DEVNULL)
