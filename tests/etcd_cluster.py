"""A real etcd for tests, and what they do where there is none."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jvpn.lab.etcd_cluster import Cluster, Member, fleet_key, installed, on_loopback, prepared

__all__ = ["Cluster", "Member", "fleet_key", "in_memory", "need_etcd", "on_loopback", "prepared"]

_MEMORY = Path("/dev/shm")
_PREFIX = "jvpn-test-etcd-"
#: Each member takes 64 MB for its log at once, and two processes of a run have three of them each at times, or more.
_ROOM_BYTES = 2 << 30


def need_etcd() -> None:
    if not installed():
        pytest.skip("etcd is not installed: script/setup installs Debian's etcd-server")


@contextmanager
def in_memory(folder: Path) -> Iterator[Path]:
    """A folder for members' data: in memory where there is room, else `folder`.

    What a member has written outlives its process either way, which is all that is killed here, and what a test waits
    for is etcd and not a disk.
    """
    if not _has_room():
        yield folder
        return
    for left in _MEMORY.glob(f"{_PREFIX}*"):
        pid = left.name.removeprefix(_PREFIX).split("-")[0]
        if not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_MEMORY))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _has_room() -> bool:
    try:
        found = os.statvfs(_MEMORY)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize > _ROOM_BYTES
