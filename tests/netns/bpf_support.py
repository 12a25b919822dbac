"""The BPF programs, loaded once for all tests of a run, and what tests need to speak to them."""

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jvpn.holder import bpf_syscall as bpf
from jvpn.lab.namespaces import module_environment
from jvpn.protocol.constants import HEADER_SIZE, REATTACH_REQUEST_SIZE, VERSION, PacketType
from jvpn.supervisor.steering import COUNTERS, Rates, Steering

RUN = Path("/run")
PREFIX = "jvpn-bpf-test-"
PORT = 7788
ID = b"steering"
OTHER_ID = b"stranger"


def run_loader(*arguments: str) -> tuple[int, Any]:
    """Exit status and the JSON that the loader printed."""
    done = subprocess.run(
        [sys.executable, "-m", "jvpn.holder.loader", "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=module_environment(),
    )
    return done.returncode, json.loads(done.stdout)


def remove_pins(directory: Path) -> None:
    """Unmount and remove what the loader mounted on `directory`."""
    while os.path.ismount(directory):
        subprocess.run(["umount", directory], check=True)
    shutil.rmtree(directory, ignore_errors=True)


def sweep() -> None:
    """Remove what earlier runs left that did not live to clean up."""
    for directory in RUN.glob(f"{PREFIX}*"):
        pid = directory.name.removeprefix(PREFIX).split("-")[0]
        if not Path("/proc", pid).exists():
            for pins in directory.iterdir():
                remove_pins(pins)
            shutil.rmtree(directory, ignore_errors=True)


def workspace() -> Path:
    """A folder of this run, on a tmpfs, gone with the process."""
    directory = RUN / f"{PREFIX}{os.getpid()}"
    if not directory.exists():
        sweep()
        directory.mkdir()
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


@functools.cache
def loaded_pins() -> Path:
    if os.geteuid() != 0:
        pytest.skip("needs root: loads BPF programs")
    directory = workspace() / "pins"
    atexit.register(remove_pins, directory)
    status, report = run_loader("--pin-dir", str(directory), "--capacity", "4096")
    if status in (10, 11):
        pytest.skip(f"{report['error']}: {report['remedy']}")
    assert status == 0, report
    return Path(report["pin_dir"])


@pytest.fixture
def steering() -> Iterator[Steering]:
    """Fresh maps: our port, three slots on any CPU, no ids, no limits reached."""
    pins = loaded_pins()
    with Steering(pins) as opened:
        for steering_id in opened.steering_ids():
            opened.remove_id(steering_id)
        for prefix in opened.prefixes():
            opened.remove_prefix(prefix)
        for name, key_size in (("source_buckets", 16), ("id_buckets", 8)):
            fd = bpf.obj_get(pins / name)
            for key in list(bpf.map_keys(fd, key_size)):
                bpf.map_delete(fd, key)
            os.close(fd)
        fd = bpf.obj_get(pins / "global_bucket")
        bpf.map_update(fd, bytes(4), bytes(8))
        os.close(fd)
        opened.set_rates(Rates())
        opened.set_xdp_mode("native")
        opened.allow_cpumap(False)
        opened.set_ports([PORT])
        opened.set_fence(0)
        for slot in (2, 3, 4):
            opened.set_slot(slot, None, slot, slot - 2)
        yield opened


def counted(steering: Steering, before: dict[str, int]) -> dict[str, int]:
    """Counters that moved since `before`, by how much."""
    now = steering.counters()
    return {name: now[name] - before[name] for name in COUNTERS if now[name] != before[name]}


def datagram(
    kind: int,
    steering_id: bytes = ID,
    size: int | None = None,
    version_phase: int = VERSION << 4,
    suite: int = 0,
    zero: int = 0,
    counter: int = 0,
) -> bytes:
    """A JVP datagram of `size` bytes (the type's own, else 60) with zeros behind the header."""
    if size is None:
        own: dict[int, int] = {PacketType.REATTACH_REQUEST: REATTACH_REQUEST_SIZE, PacketType.RESET: 36}
        size = own.get(kind, 60)
    header = bytes([kind, version_phase, suite, zero]) + steering_id + counter.to_bytes(8, "big")
    assert len(header) == HEADER_SIZE
    return (header + bytes(max(0, size - HEADER_SIZE)))[:size]
