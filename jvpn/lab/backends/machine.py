"""What a scenario asks of the machines it runs on. Namespaces and virtual machines answer to the same."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from jvpn.lab.backends.topology import Topology

__all__ = ["About", "Backend", "Machine"]


@dataclass(frozen=True, slots=True)
class About:
    """What a run was made on, as the report says it.

    *time_factor*: limits in milliseconds are multiplied by it, 1 where machines run at the speed of this one.
    *details*: anything else that a reader wants to know (kernel, versions, "netem" or "emulator", CPU).
    """

    backend: str
    links: str
    time_factor: float = 1.0
    details: Mapping[str, str] = field(default_factory=dict)


class Machine(Protocol):
    """One machine of the lab. Everything raises LabError, which says what was asked of which machine and what it said.

    Commands begin in the root of a checkout of the project, as root.
    """

    @property
    def name(self) -> str:
        """ "client", "router", "gw1" or "gw2"."""

    @property
    def folder(self) -> Path:
        """A folder of this run alone on that machine, empty at first; short enough for Unix sockets in it."""

    @property
    def python(self) -> Sequence[str]:
        """The beginning of a command line whose interpreter has the project: `[*python, "-m", "jvpn.cli"]`."""

    def run(
        self, argv: Sequence[str], *, check: bool = True, input: bytes = b"", timeout_s: float = 30.0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end. LabError for a non-zero status (unless ``check=False``) and after *timeout_s*."""

    def popen(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a command with pipes for stdin, stdout and stderr. It is ended by closing its stdin: signals sent to
        the process that is returned need not arrive there."""

    def read(self, path: Path) -> bytes:
        """A file's content."""

    def write(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        """Make or replace a file; its folder exists."""

    def device(self, role: str) -> str:
        """The interface that has a role ("upA", "rA", "w1", "out", "lan")."""

    def clock_offset_ns(self) -> int:
        """The machine's CLOCK_MONOTONIC minus this process's, now."""


class Backend(Protocol):
    """Makes the machines of one scenario after the other, alone in its process or beside others in theirs."""

    @property
    def name(self) -> str:
        """ "netns" or "vagrant"."""

    @property
    def machines(self) -> Mapping[str, Machine]:
        """Those of the topology that is up, by name."""

    def up(self, topology: Topology) -> None:
        """Machines with addresses, routes and links as the topology says, nothing else running there, folders empty."""

    def down(self) -> None:
        """End what runs and take back what ``up`` did. No error when nothing is up."""

    def close(self) -> None:
        """``down``, and what the backend keeps from one ``up`` to the next goes too. May be called twice."""

    def carrier(self, uplink: str, up: bool) -> None:
        """Pull the plug of the client's uplink, or put it in again, as near to a real cable as the backend can."""

    def wire(self, uplink: str) -> Sequence[str]:
        """What a fault script needs to know of where an uplink's frames pass in the router: `--device rA`, or where an
        emulator carries them `--wire SOCKET --link A`."""

    def about(self) -> About:
        """May be asked before ``up`` too."""
