"""What processes give up: a worker everything before it reads its first packet, holder and supervisor what they have
no more use for (credentials(7), capabilities(7), prctl(2))."""

import ctypes
import os
import resource
import signal
import struct
from typing import Final

from workers import seccomp

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION_3: Final = 0x20080522
_CAPABILITIES: Final = 64
CAP_DAC_OVERRIDE: Final = 1
CAP_DAC_READ_SEARCH: Final = 2
CAP_KILL: Final = 5
CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
CAP_SETPCAP: Final = 8
CAP_NET_ADMIN: Final = 12
CAP_SYS_ADMIN: Final = 21
CAP_BPF: Final = 39

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
    """Become `uid` and `gid` (-1: stay) with no capability and no way to any, no core dump, and the system calls of
    workers.seccomp.

    Raises OSError: a process that could not give up what it was told to must not go on.
    """
    parent_pid = os.getppid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _bound(frozenset())
    if gid >= 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
    if uid >= 0:
        os.setresuid(uid, uid, uid)
    die_with_parent(parent_pid)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _set_capabilities(frozenset())
    _prctl(_PR_SET_DUMPABLE, 0)
    seccomp.install()


def keep(capabilities: frozenset[int]) -> None:
    """Keep of the capabilities that there are only these, for this process and what it starts. Before any thread.

    Raises OSError.
    """
    _bound(capabilities)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _set_capabilities(capabilities & _permitted())


def _bound(capabilities: frozenset[int]) -> None:
    """Without CAP_SETPCAP the set stays; no_new_privs makes it useless."""
    for capability in range(_CAPABILITIES):
        if capability not in capabilities and _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) == 1:
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def _permitted() -> frozenset[int]:
    """struct __user_cap_data_struct, twice: effective, permitted, inheritable, of 32 capabilities each."""
    data = ctypes.create_string_buffer(24)
    _check(_libc.capget(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), data))
    _effective, low, _inheritable, _effective2, high, _inheritable2 = struct.unpack("=6I", data.raw)
    return frozenset(n for n in range(_CAPABILITIES) if (high << 32 | low) >> n & 1)


def _set_capabilities(capabilities: frozenset[int]) -> None:
    mask = sum(1 << number for number in capabilities)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, struct.pack("=6I", low, low, 0, high, high, 0)))


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, value, 0, 0, 0))


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
