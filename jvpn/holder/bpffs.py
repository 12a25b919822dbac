"""The file system in which programs and maps have names, and live as long as these."""

import ctypes
import fcntl
import os
from pathlib import Path
from typing import Final

_MAGIC: Final = 0xCAFE4A11


def is_bpffs(path: Path) -> bool:
    """statfs(2): f_type is the first long of struct statfs."""
    buffer = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), buffer) != 0:
        return False
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF == _MAGIC


def mount(mountpoint: Path) -> None:
    """mount(2), unless it is one; under a lock, since a second mount would hide what is pinned in the first."""
    lock = os.open(mountpoint.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_bpffs(mountpoint):
            return
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"bpf", os.fsencode(mountpoint), b"bpf", 0, b"mode=0700") != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(mountpoint))
    finally:
        os.close(lock)
