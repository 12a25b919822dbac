"""What traffic scripts share, from outside: a process, its two lines, how it ends, what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vagrant.traffic.ours import Refused, address, endpoint, guard_address, guard_device

ROOT = Path(__file__).parent.parent.parent
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="scripts need root")

SCRIPT = """
import sys
from vagrant.traffic.ours import guard_address, endpoint
from vagrant.traffic.script import Failed, Run, main

def arguments(parser):
    parser.add_argument("--gateway", type=endpoint)
    parser.add_argument("--count", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--fail", action="store_true")

def check(options):
    if options.gateway:
        guard_address(options.gateway.address, options.i_own)

def work(run):
    if run.options.fail:
        raise Failed("the door is shut: open it")
    run.in_force()
    for _ in run.turns(count=run.options.count, per_second=run.options.rate):
        run.counters["turns"] += 1
    while run.options.count is None and run.wait():
        pass
    run.counters["taken_back"] = 1

sys.exit(main("attack", "tried", "An attack.", arguments, work, check))
"""


def start(*argv: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *argv],
        cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def run(*argv: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, the JSON lines, what was said on stderr."""
    out, err = (process := start(*argv)).communicate(timeout=60)
    return process.returncode, [json.loads(line) for line in out.splitlines()], err


@needs_root
def test_two_lines_say_when_it_began_with_what_and_how_it_was() -> None:
    status, (began, summary), err = run(
        "--count", "5", "--rate", "1000", "--seed", "7", "--gateway", "10.202.1.2"
    )
    assert (status, err) == (0, "")
    parameters = {"gateway": "10.202.1.2:51820", "count": 5, "rate": 1000.0, "fail": False}
    assert began == {"in_force": True, "attack": "tried", "at_ns": began["at_ns"], "parameters": parameters}
    assert summary == {
        "attack": "tried", "parameters": parameters, "seed": 7, "seeded": True,
        "started_ns": began["at_ns"], "ended_ns": summary["ended_ns"], "counters": {"turns": 5, "taken_back": 1},
    }  # fmt: skip
    assert summary["ended_ns"] - summary["started_ns"] >= 4_000_000  # five turns at 1000 a second


@needs_root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("argv", [("--rate", "50"), ()])
def test_a_signal_ends_it_and_it_takes_back_what_it_did(
    number: signal.Signals, argv: tuple[str, ...]
) -> None:
    process = start(*argv)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["in_force"]
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)["counters"]["taken_back"] == 1


@needs_root
def test_the_end_of_stdin_ends_it_and_only_that() -> None:
    process = start("--rate", "50", "--until-eof")
    assert process.stdin is not None
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["in_force"]
    process.stdin.write("go on\n")
    process.stdin.flush()
    assert process.poll() is None
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)["counters"]["taken_back"] == 1


@needs_root
def test_it_ends_after_so_long_with_progress_on_stderr_unless_quiet() -> None:
    status, (_, summary), err = run("--for", "1.2", "--rate", "100")
    assert status == 0
    assert summary["ended_ns"] - summary["started_ns"] >= 1_200_000_000
    assert re.match(r"tried: \d+\.\d s, turns \d+\n", err), err
    status, _, err = run("--for", "1.2", "--rate", "100", "--quiet")
    assert (status, err) == (0, "")


@needs_root
def test_what_failed_is_a_sentence() -> None:
    assert run("--fail") == (1, [], "tried: the door is shut: open it\n")


@pytest.mark.parametrize(
    "argv",
    [("--for", "0"), ("--for", "inf"), ("--nonsense",), ("--i-own", "all"), ("--gateway", "10.8.0.1:x")],
)
def test_bad_arguments(argv: tuple[str, ...]) -> None:
    status, lines, err = run(*argv)
    assert (status, lines) == (2, [])
    assert "error: " in err


def test_an_address_that_is_not_the_labs_is_refused_unless_it_is_named() -> None:
    status, lines, err = run("--count", "1", "--gateway", "198.51.100.9")
    assert (status, lines) == (2, [])
    assert err.startswith("tried: 198.51.100.9 is not one of the lab's addresses")
    assert "--i-own 198.51.100.9" in err
    assert run("--count", "1", "--gateway", "198.51.100.9", "--i-own", "198.51.100.8")[0] == 2
    if os.geteuid() == 0:
        assert run("--count", "1", "--gateway", "198.51.100.9", "--i-own", "198.51.100.9")[0] == 0


def test_who_is_not_root_is_told_what_to_do() -> None:
    if os.geteuid() == 0:
        # nobody may not be allowed to read the checkout, so the id changes when everything is imported
        script = SCRIPT.replace("sys.exit(main", "import os; os.setuid(65534)\nsys.exit(main")
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
        )
        status, err = done.returncode, done.stderr
    else:
        status, _, err = run()
    assert status == 77
    assert "sudo" in err


@pytest.mark.parametrize(
    "text",
    [
        "10.201.1.2",
        "10.202.2.2",
        "192.0.2.1",
        "10.8.0.1",
        "203.0.113.1",
        "fd00:201:1::2",
        "fd00:8::1",
        "2001:db8::1",
    ],
)
def test_the_labs_addresses(text: str) -> None:
    guard_address(address(text))


@pytest.mark.parametrize(
    "text",
    ["10.200.0.1", "10.203.0.1", "192.0.3.1", "127.0.0.1", "fd00:9::1", "fe80::1", "::1", "::ffff:10.8.0.1"],
)
def test_nobody_elses(text: str) -> None:
    with pytest.raises(Refused, match="not one of the lab's"):
        guard_address(address(text))
    guard_address(address(text), [address(text)])


def test_a_device_with_other_addresses_with_none_or_that_is_not_here() -> None:
    with pytest.raises(Refused, match=r"lo has the address 127\.0\.0\.1, .*--i-own 127\.0\.0\.1"):
        guard_device("lo")
    with pytest.raises(Refused, match="no device nosuch0 here"):
        guard_device("nosuch0")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10.202.1.2", "10.202.1.2:51820"),
        ("10.202.1.2:4790", "10.202.1.2:4790"),
        ("fd00:202:1::2", "[fd00:202:1::2]:51820"),
        ("[fd00:202:1::2]", "[fd00:202:1::2]:51820"),
        ("[fd00:202:1::2]:9", "[fd00:202:1::2]:9"),
    ],
)
def test_endpoints(text: str, said: str) -> None:
    assert str(endpoint(text)) == said


@pytest.mark.parametrize(
    "text", ["", "gateway", "10.202.1.2:0", "10.202.1.2:65536", "10.202.1.2:x", "[fd00::1]:"]
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(Refused):
        endpoint(text)


@needs_root
def test_a_script_that_is_held_does_nothing_before_it_is_told() -> None:
    process = start("--start-on-line", "--until-eof")
    assert process.stdin is not None
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == {"ready": True}
    before_ns = time.monotonic_ns()
    process.stdin.write("\n")
    process.stdin.flush()
    begun = json.loads(process.stdout.readline())
    assert begun["in_force"]
    assert begun["at_ns"] >= before_ns
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["started_ns"] >= before_ns


@needs_root
def test_a_script_that_is_held_and_let_go_has_done_nothing() -> None:
    assert run("--start-on-line", "--count", "3") == (0, [{"ready": True}], "")


@needs_root
def test_a_script_that_is_held_refuses_at_once() -> None:
    status, lines, err = run("--start-on-line", "--gateway", "8.8.8.8:51820")
    assert (status, lines) == (2, [])
    assert "8.8.8.8" in err
