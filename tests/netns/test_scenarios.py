"""The lab's scenarios of the short set, each as a user runs it: `jvpn lab run NAME`, in namespaces."""

import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from etcd_cluster import installed

from jvpn.lab.backends.netns import PINS
from jvpn.lab.namespaces import NETNS_DIR, module_environment
from jvpn.lab.places import ROOT
from jvpn.lab.running import JVPN
from jvpn.lab.scenario.choosing import SHORT, choose
from jvpn.lab.scenario.model import Scenario
from jvpn.lab.scenario.result import load

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

#: Other tests run beside it: what a scenario promises in milliseconds is `script/lab`'s to measure.
TIME_FACTOR = "10"
BRIEF = """\
title: Nothing happens
row: F5
topology: {uplinks: {A: {}}}
traffic: [{name: stream, kind: udp, hz: 50}]
timeline: []
ends_at_s: 0.5
assertions:
  - session.same
  - stream.up.received > 0
"""


def lab_run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*JVPN, "lab", "run", *arguments],
        cwd=ROOT,
        env=module_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


@pytest.mark.parametrize("scenario", choose([SHORT]), ids=lambda scenario: scenario.name)
def test_a_short_scenario_passes(scenario: Scenario, tmp_path: Path) -> None:
    if scenario.topology.gateways > 1 and not installed():
        pytest.skip("etcd is not installed: script/setup installs Debian's etcd-server")
    done = lab_run(scenario.name, "--time-factor", TIME_FACTOR, "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_leaves_a_result_a_report_and_what_it_was_made_of(tmp_path: Path) -> None:
    (tmp_path / "brief.yaml").write_text(BRIEF)
    out = tmp_path / "out"
    done = lab_run(str(tmp_path / "brief.yaml"), "--json", "--pcap", "--out", str(out))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["passed"] is True
    assert [one["scenario"] for one in told["scenarios"]] == ["brief"]
    result = load(out / "brief" / "result.json")
    assert result.passed
    assert result.about["xdp"] == {"gw1": {"out": "native"}}
    assert result.measures["stream.up.received"] > 0
    assert sum(result.series["stream.up"].mbit_s) > 0
    assert {(state.who, state.to) for state in result.states[:2]} == {
        ("gw1", "ATTACHED"),
        ("client", "ATTACHED"),
    }
    files = [name for names in result.files.values() for name in names]
    assert {"rA.pcap", "w1.pcap", "client-events.jsonl", "gw1-events.jsonl", "gw1-gateway.log"} <= set(files)
    assert all((out / "brief" / name).stat().st_size > 0 for name in files)
    assert {path.name for path in out.iterdir()} >= {"report.md", "report.html"}


def test_an_assertion_that_does_not_hold_says_what_was_measured(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(BRIEF + "  - counters.gateway.handshakes == 17\n  - session.state == DEGRADED\n")
    second.write_text(BRIEF)
    done = lab_run(str(first), str(second), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    failed = [line.split() for line in done.stdout.splitlines() if "FAILED" in line]
    assert failed == [
        ["FAILED", "counters.gateway.handshakes", "==", "17", "1"],
        ["FAILED", "session.state", "==", "DEGRADED", "ATTACHED"],
    ]
    # Without --keep-going the others are not begun.
    assert "0 of 2 passed, 1 not run" in done.stdout
    result = load(tmp_path / "out" / "first" / "result.json")
    assert [one.passed for one in result.assertions] == [True, True, False, False]
    assert not result.passed


def test_a_step_that_fails_is_told_with_its_line_and_nothing_stays(tmp_path: Path) -> None:
    text = BRIEF.replace("timeline: []", "timeline:\n  - {at_s: 0.1, do: kill-worker, busy: false}")
    (tmp_path / "broken.yaml").write_text(text)
    done = lab_run(str(tmp_path / "broken.yaml"), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "line 6, at 0.1 s, kill-worker: " in done.stdout
    result = load(tmp_path / "out" / "broken" / "result.json")
    assert "no worker without sessions" in result.error
    assert not result.passed
    assert "gw1-gateway.log" in result.files["logs"]


def test_a_mistake_in_a_file_is_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(BRIEF.replace("kind: udp", "kind: upd"))
    done = lab_run(str(tmp_path / "bad.yaml"), "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{tmp_path}/bad.yaml:4: traffic[0].kind: 'upd' is not one of the choices" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "brief.yaml").write_text(BRIEF)
    done = lab_run(str(tmp_path / "brief.yaml"), "--out", str(tmp_path / "brief.yaml" / "out"))
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        f"cannot write what came of it: [Errno 20] Not a directory: '{tmp_path}/brief.yaml/out'"
        in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_who_ends_it_again_and_again_has_nothing_left(tmp_path: Path) -> None:
    (tmp_path / "brief.yaml").write_text(BRIEF.replace("ends_at_s: 0.5", "ends_at_s: 300"))
    process = subprocess.Popen(
        [*JVPN, "lab", "run", str(tmp_path / "brief.yaml"), "--json", "--out", str(tmp_path / "out")],
        cwd=ROOT, env=module_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        said = next((line for line in process.stderr if "ready in" in line), "")
        assert said, "it ended before its session began"
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until:
            process.terminate()
            time.sleep(0.1)
        assert process.communicate(timeout=5)[1].endswith("what the lab had made is gone\n")
        assert process.returncode == 130
    finally:
        process.kill()
        process.wait()
    mine = f"lab-?{process.pid}[-.]"
    places = (NETNS_DIR, PINS, Path(tempfile.gettempdir()))
    assert [
        path for place in places if place.exists() for path in place.iterdir() if re.search(mine, path.name)
    ] == []
