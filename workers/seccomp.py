"""The system calls that a worker needs once it works; any other ends it (seccomp(2), classic BPF).

A worker parses what strangers send, in a process that holds keys. What it still has to do then is small: read and
write descriptors that it was given, wait, manage its own memory. It never opens, connects, forks, executes or signals.
The list was made with strace over both workers' lives (gateway and client: traffic both ways, reattach, rekey, end)
and with what Python and glibc do now and then (memory, locks, abort). Calls by which Python looks for a file, such as
for the source lines of a traceback, are refused instead, so that the worker can still say what went wrong.
"""

import ctypes
import os
import platform
import struct
from typing import Final

#: System call numbers: (x86_64, aarch64); -1 where there is no such call. Hot ones first.
_CALLS: Final[dict[str, tuple[int, int]]] = {
    "readv": (19, 65),
    "writev": (20, 66),
    "recvmsg": (47, 212),
    "sendmsg": (46, 211),
    "epoll_wait": (232, -1),
    "epoll_pwait": (281, 22),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "futex": (202, 98),
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "brk": (12, 214),
    "madvise": (28, 233),
    "epoll_ctl": (233, 21),
    "fcntl": (72, 25),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "getsockname": (51, 204),
    "getpeername": (52, 205),
    "setsockopt": (54, 208),
    "getsockopt": (55, 209),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "getrandom": (318, 278),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "restart_syscall": (219, 128),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
#: Refused with EACCES: Python asks for files when it prints a traceback or imports something late.
_REFUSED: Final[dict[str, tuple[int, int]]] = {
    "open": (2, -1),
    "openat": (257, 56),
    "stat": (4, -1),
    "lstat": (6, -1),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, -1),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, -1),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
}
_IOCTL, _MMAP, _MPROTECT, _TGKILL = (16, 29), (9, 222), (10, 226), (234, 131)
#: TUNSETOFFLOAD, TUNSETVNETHDRSZ (a client attaches its TUN while it works), FIONBIO, TCGETS (isatty).
_IOCTLS: Final = (0x400454D0, 0x400454D8, 0x5421, 0x5401)
_PROT_EXEC: Final = 4

_ARCHITECTURES: Final = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}
_SET_MODE_FILTER: Final = 1
#: TSYNC: for every thread. SPEC_ALLOW: a filter is no reason to slow the process down with speculation barriers.
_FLAGS: Final = 1 | 4

_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_EACCES: Final = 0x00050000 | 13
_LOAD, _EQUAL, _BITS, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16

Instruction = tuple[int, int, int, int]


def install() -> bool:
    """Allow this process what a worker needs and nothing more, for good. False on an architecture without a table.

    It needs no_new_privs. Raises OSError when the kernel refuses.
    """
    known = _ARCHITECTURES.get(platform.machine())
    if known is None:
        return False
    column, architecture, seccomp_call = known
    code = b"".join(struct.pack("=HBBI", *each) for each in program(column, architecture, os.getpid()))
    instructions = ctypes.create_string_buffer(code, len(code))
    described = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(seccomp_call, _SET_MODE_FILTER, _FLAGS, described) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"seccomp filter: {os.strerror(error)}")
    return True


def program(column: int, architecture: int, pid: int) -> list[Instruction]:
    """struct sock_filter's of the filter: (code, jump if true, jump if false, constant)."""
    made: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    for calls, verdict in ((_CALLS, _ALLOW), (_REFUSED, _EACCES)):
        for numbers in calls.values():
            if numbers[column] >= 0:
                made += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, verdict)]
    executable = [(_BITS, 0, 1, _PROT_EXEC), (_RETURN, 0, 0, _KILL), (_RETURN, 0, 0, _ALLOW)]
    made += _with_argument(_MMAP[column], 2, executable)
    made += _with_argument(_MPROTECT[column], 2, executable)
    made += _with_argument(_IOCTL[column], 1, _one_of(*_IOCTLS))
    # abort(3) signals the process itself; signals to the other workers, which have the same user, are not for us.
    made += _with_argument(_TGKILL[column], 0, _one_of(pid))
    return [*made, (_RETURN, 0, 0, _KILL)]


def _with_argument(number: int, argument: int, judged: list[Instruction]) -> list[Instruction]:
    """Judge a call by the low half of one of its arguments; `judged` always returns."""
    load = (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument)
    return [(_EQUAL, 0, len(judged) + 1, number), load, *judged]


def _one_of(*values: int) -> list[Instruction]:
    allowed = [step for value in values for step in ((_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW))]
    return [*allowed, (_RETURN, 0, 0, _KILL)]
