"""A lab machine's attendant: what it starts ends with it, whatever has become of it."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jvpn.lab.namespaces import module_environment

PATIENCE_S = 30.0
#: Starts a child that begins a session of its own and says its pid, then waits or ends.
DETACHING = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(child.pid, flush=True)
if sys.argv[1] == "stay":
    time.sleep(600)
"""


class Talk:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jvpn.lab.attendant"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=module_environment(),
        )

    def ask(self, op: str, **more: object) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"op": op, **more}).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, name: str, *argv: str) -> int:
        pid: int = self.ask("start", name=name, argv=list(argv), log=str(self.log(name)))["ok"]
        return pid

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def detached(self, name: str, how: str) -> int:
        """The pid of a grandchild in a session of its own."""
        self.start(name, sys.executable, "-c", DETACHING, how)
        wait_until(lambda: self.log(name).read_text().endswith("\n"))
        return int(self.log(name).read_text())


def wait_until(condition: Any) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    made = Talk(tmp_path)
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    assert made.process.wait(PATIENCE_S) == 0
    assert made.process.stdout is not None
    made.process.stdout.close()


def test_a_process_is_started_watched_and_signalled(talk: Talk) -> None:
    pid = talk.start("sleeper", "sleep", "600")
    assert lives(pid)
    assert talk.ask("state", name="sleeper") == {"ok": {"running": True, "status": None}}
    assert "runs already" in talk.ask("start", name="sleeper", argv=["true"], log=str(talk.log("x")))["error"]
    assert talk.ask("signal", name="sleeper", signal_name="SIGTERM") == {"ok": None}
    wait_until(lambda: not talk.ask("state", name="sleeper")["ok"]["running"])
    assert talk.ask("state", name="sleeper")["ok"]["status"] == -signal.SIGTERM
    assert "does not run" in talk.ask("signal", name="sleeper", signal_name="SIGTERM")["error"]
    assert lives(talk.start("sleeper", "sleep", "600"))


def test_what_it_says_is_kept(talk: Talk) -> None:
    talk.start("speaker", "sh", "-c", "echo one; echo two >&2")
    wait_until(lambda: talk.log("speaker").read_text() == "one\ntwo\n")


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"op": "dance"}, "dance"),
        ({"op": "state", "name": "nobody"}, "nobody"),
        ({"op": "start", "name": "x", "argv": ["/nowhere/x"], "log": "/dev/null"}, "/nowhere/x"),
        ({"op": "signal", "name": "", "pid": 2**22 + 1, "signal_name": "SIGTERM"}, "No such process"),
        ({"op": "ask", "run_dir": "/nowhere", "request": {"command": "status"}}, "nothing answers"),
    ],
)
def test_what_cannot_be_done_is_answered_with_the_reason(
    talk: Talk, request_: dict[str, Any], said: str
) -> None:
    assert said in talk.ask(**request_)["error"]
    assert "ok" in talk.ask("clock")


def test_a_crash_takes_all_that_came_of_a_process_and_nobody_else(talk: Talk) -> None:
    other = talk.detached("other", "stay")
    theirs = talk.detached("node", "stay")
    orphan = talk.detached("gone", "end")
    wait_until(lambda: not talk.ask("state", name="gone")["ok"]["running"])
    assert lives(orphan)
    talk.ask("crash", name="node")
    wait_until(lambda: not lives(theirs) and not lives(orphan))
    assert not talk.ask("state", name="node")["ok"]["running"]
    assert lives(other)
    assert talk.ask("state", name="other")["ok"]["running"]


@pytest.mark.parametrize("how", ["stdin", "signal"])
def test_with_it_everybody_ends(tmp_path: Path, how: str) -> None:
    talk = Talk(tmp_path)
    pids = [talk.start("one", "sleep", "600"), talk.detached("two", "stay"), talk.detached("three", "end")]
    stubborn = talk.start("four", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    assert all(map(lives, [*pids, stubborn]))
    assert talk.process.stdin is not None
    if how == "stdin":
        talk.process.stdin.close()
    else:
        talk.process.send_signal(signal.SIGTERM)
    assert talk.process.wait(PATIENCE_S) == 0
    assert not any(map(lives, [*pids, stubborn]))
    assert talk.process.stdout is not None
    talk.process.stdout.close()
    if how == "signal":
        talk.process.stdin.close()


def test_the_clock_is_the_machines(talk: Talk) -> None:
    before = time.monotonic_ns(), time.time_ns()
    answer = talk.ask("clock")["ok"]
    after = time.monotonic_ns(), time.time_ns()
    assert before[0] <= answer["monotonic_ns"] <= after[0]
    assert before[1] <= answer["wall_ns"] <= after[1]


def test_memory_is_of_all_that_it_has_started_and_of_nobody_else(talk: Talk) -> None:
    assert talk.ask("memory")["ok"] == 0
    talk.start("small", "sleep", "600")
    wait_until(lambda: talk.ask("memory")["ok"] > 0)
    small_kb = talk.ask("memory")["ok"]
    talk.start(
        "large", sys.executable, "-c", "kept = bytearray(b'x') * (50 << 20); import time; time.sleep(600)"
    )
    wait_until(lambda: talk.ask("memory")["ok"] > small_kb + (50 << 10))
    talk.ask("signal", name="large", signal_name="SIGKILL")
    wait_until(lambda: talk.ask("memory")["ok"] <= small_kb)
