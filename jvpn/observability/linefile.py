"""A file that only ever holds whole lines, whatever the disk does."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path


class LineFile:
    """Appends lines to `path`, opened at the first append and again whenever it was rotated away or failed.

    Never raises OSError: `append` says how many lines are in the file, `error` why the others are not. `flags` are
    further ones of open(2).
    """

    def __init__(self, path: Path, mode: int = 0o640, flags: int = 0) -> None:
        self._path, self._mode = path, mode
        self._flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | flags
        self._fd: int | None = None
        self._torn = False
        self.error = ""

    def append(self, lines: Sequence[bytes]) -> int:
        """Returns how many of `lines`, from the first, were written whole. Each must end with a newline."""
        if not lines:
            return 0
        # A torn line that could not be taken back is ended first, so that it spoils no other.
        head = b"\n" if self._torn else b""
        data = memoryview(b"".join((head, *lines)))
        self.error = ""
        written = 0
        try:
            fd = self._open()
            while written < len(data):
                written += os.write(fd, data[written:])
        except OSError as error:
            self.error = f"{self._path}: {error.strerror or error}"
        if written >= len(head):
            self._torn = False
        whole = self._settle(lines, written - len(head))
        if self.error:
            self.close()
        return whole

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int:
        if self._fd is not None and self._rotated(self._fd):
            self.close()
        if self._fd is None:
            self._fd = os.open(self._path, self._flags, self._mode)
        return self._fd

    def _rotated(self, fd: int) -> bool:
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return True
        return not os.path.samestat(there, os.fstat(fd))

    def _settle(self, lines: Sequence[bytes], written: int) -> int:
        """Count the whole lines among `written` bytes, and take a torn one back."""
        if not self.error:
            return len(lines)
        end = 0
        for number, line in enumerate(lines):
            if end + len(line) > written:
                if written > end:
                    self._take_back(written - end)
                return number
            end += len(line)
        return len(lines)

    def _take_back(self, count: int) -> None:
        self._torn = True
        if self._fd is None:
            return
        try:
            status = os.fstat(self._fd)
            if stat.S_ISREG(status.st_mode):
                os.ftruncate(self._fd, status.st_size - count)
                self._torn = False
        except OSError as error:
            self.error = f"{self._path}: {error.strerror or error}"
