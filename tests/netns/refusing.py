"""`refusing.py CALL NUMBER COMMAND…` runs a command for which the kernel refuses one kind of ioctl or setsockopt.

CALL is `ioctl` or `setsockopt`, NUMBER the request or the option; the answer is EPERM. The filter (seccomp(2)) holds
for all descendants too.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

#: System call numbers, and which argument tells what is asked for.
_NUMBERS = {"x86_64": {"ioctl": 16, "setsockopt": 54}, "aarch64": {"ioctl": 29, "setsockopt": 208}}
_ARGUMENT = {"ioctl": 1, "setsockopt": 2}
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF_0000, 0x0005_0000
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


def refuse(call: str, number: int, value: int | None = None) -> None:
    """Install the filter for this thread and what it starts; with `value` only for calls whose next argument is that.

    Raises OSError.
    """
    argument_at = 16 + 8 * _ARGUMENT[call]
    more = [] if value is None else [(_LOAD, 0, 0, argument_at + 8), (_JUMP_IF_EQUAL, 0, 1, value)]
    steps = [
        (_LOAD, 0, 0, 0),
        (_JUMP_IF_EQUAL, 0, 3 + len(more), _NUMBERS[platform.machine()][call]),
        (_LOAD, 0, 0, argument_at),
        (_JUMP_IF_EQUAL, 0, 1 + len(more), number),
        *more,
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, program, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")


if __name__ == "__main__":
    refuse(sys.argv[1], int(sys.argv[2], 0))
    os.execvp(sys.argv[3], sys.argv[3:])
