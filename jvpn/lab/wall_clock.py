"""Runs a Python program whose wall clock is the real one plus the seconds that a file says, at every reading anew.

`wall_clock.py FILE PYTHON PROGRAM ARGUMENTS…`, or `-m MODULE` for the program: to be put before a command. Namespaces
do not cover CLOCK_REALTIME, and the machine's own clock belongs to everybody, so the readings of this one process are
shifted, in Python: `time.time`, `time.time_ns`, and `clock_gettime` of that clock. Workers and holder, processes of
their own, never read it.
"""

import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class WallClock:
    """The file, made by whoever runs the program. Jumps of the clock are in force when `jump_to` returns."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.jump_to(0)

    def jump_to(self, seconds: int) -> None:
        """So many seconds before or after the real time."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.replace(self._file)

    def prefix(self) -> list[str]:
        """What goes before the command."""
        return [sys.executable, str(Path(__file__).resolve()), str(self._file)]


def _shift(file: Path) -> None:
    def seconds() -> int:
        return int(file.read_text())

    def shifted(read: Callable[..., Any], unit: int, clock: bool) -> Callable[..., Any]:
        def reading(*arguments: Any) -> Any:
            value = read(*arguments)
            return value + seconds() * unit if not clock or arguments[0] == time.CLOCK_REALTIME else value

        return reading

    replaced = {
        "time": shifted(time.time, 1, False),
        "time_ns": shifted(time.time_ns, 10**9, False),
        "clock_gettime": shifted(time.clock_gettime, 1, True),
        "clock_gettime_ns": shifted(time.clock_gettime_ns, 10**9, True),
    }
    for name, reading in replaced.items():
        setattr(time, name, reading)


def main() -> None:
    _shift(Path(sys.argv[1]))
    program, arguments = sys.argv[3], sys.argv[4:]
    if program == "-m":
        # As Python itself does: modules are looked for in the current folder first.
        sys.path[0] = str(Path.cwd())
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(program).parent)
        sys.argv = [program, *arguments]
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
