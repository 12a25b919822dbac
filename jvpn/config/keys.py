"""Keys as text: base64 of 32 bytes, as WireGuard's users know them, and the files that hold the private ones."""

import base64
import binascii
import os
import stat
from pathlib import Path
from typing import Final

KEY_BYTES: Final = 32
#: Anything longer is no key file.
_LONGEST_FILE: Final = 4_096


class KeyFileError(ValueError):
    """A key file that cannot be used: what is wrong, and what to do about it."""

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        self.path = path
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{path}: {problem}; {remedy}")


def parse_key(text: str) -> bytes:
    """32 bytes from base64, surrounding white space ignored. Raises ValueError, without the text in it."""
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError) as broken:
        raise ValueError("not base64") from broken
    if len(key) != KEY_BYTES:
        raise ValueError(f"{len(key)} bytes instead of {KEY_BYTES}")
    if not any(key):
        raise ValueError("all zeros")
    return key


def format_key(key: bytes) -> str:
    """Inverse of `parse_key`: 44 characters."""
    return base64.b64encode(key).decode()


def read_key_file(path: Path, make_one: str) -> bytes:
    """The key in `path`, which nobody but its owner may access. `make_one` is the command that makes such a file.

    Raises KeyFileError; its text never contains anything of the file.
    """
    make_one = f"make one with: {make_one}"
    try:
        return parse_key(read_private_file(path, make_one).decode("ascii"))
    except KeyFileError:
        raise
    except ValueError as broken:
        raise KeyFileError(path, f"is not a base64 key of {KEY_BYTES} bytes", make_one) from broken


def read_private_file(path: Path, make_one: str) -> bytes:
    """What is in a short file that nobody but its owner may access. `make_one`: how to come by such a file.

    Raises KeyFileError; its text never contains anything of the file.
    """
    try:
        # Non-blocking, so that a FIFO in the file's place cannot hang the start.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as missing:
        raise KeyFileError(path, "does not exist", make_one) from missing
    except OSError as refused:
        problem = f"cannot be read ({refused.strerror})"
        raise KeyFileError(path, problem, "give the file to the user that runs jvpn") from refused
    try:
        # Judged by the open file, so that it cannot be exchanged in between.
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(path, "is not a regular file", make_one)
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            problem = f"is open to group or others (mode {mode:04o})"
            raise KeyFileError(path, problem, f"run: chmod 600 {path}")
        return os.read(descriptor, _LONGEST_FILE)
    finally:
        os.close(descriptor)
