"""Who interrupts the lab gets away: nothing that it waits for holds the interpreter, or a start, until it answers."""

import subprocess
import sys
import threading
from typing import ClassVar

import pytest

from jvpn.lab.backends import vagrant
from jvpn.lab.backends.machine import About
from jvpn.lab.backends.topology import Topology

PATIENCE_S = 60.0
#: A process that says nothing, and an interruption of who waits for its line.
INTERRUPTED = """
import io
from types import SimpleNamespace
from jvpn.lab.answers import answer_of

class Silent(io.BytesIO):
    def readline(self, *_):
        raise {error}

answer_of(SimpleNamespace(stdout=Silent(), stderr=io.BytesIO(), kill=lambda: print("killed")), "it", 3600.0)
"""


def ended(script: str) -> str:
    """The last line that the interpreter said before it ended; TimeoutExpired when it does not."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.stdout == ""
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "SystemExit('ended')"])
def test_an_answer_that_is_not_waited_for_holds_nobody(error: str) -> None:
    assert ended(INTERRUPTED.format(error=error)) in ("KeyboardInterrupt", "ended")


class Silent:
    """A machine where commands run until its connection ends; when they all do, the first is interrupted."""

    made: ClassVar[list["Silent"]] = []
    waited: ClassVar[list[bool]] = []
    all_run = threading.Barrier(len(Topology().machine_names))

    def __init__(self, name: str, *_: object) -> None:
        self.name = name
        self.closed = threading.Event()
        self.made.append(self)

    def run(self, *_: object, **__: object) -> None:
        self.all_run.wait(PATIENCE_S)
        if self is self.made[0]:
            raise KeyboardInterrupt
        self.waited.append(self.closed.wait(PATIENCE_S))
        raise vagrant.LabError(f"{self.name} is gone")

    def close(self) -> None:
        self.closed.set()


def test_a_start_that_is_interrupted_ends_what_runs_on_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vagrant, "SshMachine", Silent)
    monkeypatch.setattr(vagrant.vagrant, "write_ssh_config", lambda *_: None)
    monkeypatch.setattr(vagrant.vagrant, "domain", lambda _: "")
    monkeypatch.setattr(vagrant.VagrantBackend, "about", lambda _: About("vagrant", "netem"))
    with pytest.raises(KeyboardInterrupt):
        vagrant.VagrantBackend().up(Topology())
    assert Silent.waited == [True] * (len(Silent.made) - 1), "nobody waits for what is silent"
