"""What a worker gives up before it reads its first packet (credentials(7), capabilities(7), prctl(2))."""

import ctypes
import os
import resource
import signal
import struct
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION_3: Final = 0x20080522
_CAPABILITIES: Final = 64

_libc = ctypes.CDLL(None, use_errno=True)


class ParentDied(OSError):
    """Who started this process ended before it could be tied to it."""


def die_with_parent(parent_pid: int) -> None:
    """Be killed when `parent_pid` ends: on a gateway the holder, whose sockets and TUN queues would live on in us.

    Lost whenever user or group id change. Raises ParentDied when it has ended already.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise ParentDied(f"the parent process {parent_pid} has ended")


def drop(uid: int, gid: int) -> None:
    """Become `uid` and `gid` (-1: stay) with no capability and no way to any; its memory is in no core dump.

    Raises OSError: a process that could not give up what it was told to must not go on.
    """
    parent_pid = os.getppid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for capability in range(_CAPABILITIES):
        # Without CAP_SETPCAP the set stays; no_new_privs below makes it useless.
        if _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) == 1:
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    if gid >= 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
    if uid >= 0:
        os.setresuid(uid, uid, uid)
    die_with_parent(parent_pid)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)))
    _prctl(_PR_SET_DUMPABLE, 0)


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, value, 0, 0, 0))


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
