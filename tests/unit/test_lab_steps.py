"""What the lab's steps say of themselves, and what is read of nodes whose clocks were moved or who said something."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from jvpn.cli import build_parser
from jvpn.lab.backends.topology import Topology
from jvpn.lab.scenario import telling
from jvpn.lab.scenario.expressions import Expression, Verdict
from jvpn.lab.scenario.measures import value
from jvpn.lab.scenario.record import NS, Record, Snapshot
from jvpn.lab.scenario.steps import STEPS

DAY_S = 86_400


def listed(capsys: pytest.CaptureFixture[str], *more: str) -> str:
    args = build_parser(["lab"]).parse_args(["lab", "list", "--steps", *more])
    assert args.run(args) == 0
    return capsys.readouterr().out


def test_every_step_is_listed_with_its_fields_and_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    text = listed(capsys)
    for name, kind in STEPS.items():
        assert f"do: {name}" in text
        assert all(f"{field}: " in text for field in kind.fields)
    described = {one["name"]: one for one in json.loads(listed(capsys, "--json"))}
    assert described.keys() == STEPS.keys()
    assert all(one["does"].endswith((".", "start.")) for one in described.values()), "a sentence each"
    assert described["fill-disk"]["may_be_stopped"]


def told_at(ts_ms: int, shifts: list[tuple[int, int]]) -> float:
    """Seconds on the lab's clock of what a node told at that wall time; its clock was 1000 s ahead at first."""
    nodes: Any = SimpleNamespace(attended={"gw1": SimpleNamespace(wall_ns=1000 * NS)}, shifts={"gw1": shifts})
    [told] = telling.told(nodes, {"gw1": [json.dumps({"ts_ms": ts_ms}).encode()]})
    return told.at_ns / NS


@pytest.mark.parametrize(("at_s", "shift_s"), [(5, 0), (15, 30 * DAY_S), (25, -DAY_S), (35, 0)])
def test_events_keep_their_time_when_the_wall_clock_jumps(at_s: int, shift_s: int) -> None:
    shifts = [(0, 0), (10 * NS, 30 * DAY_S), (20 * NS, -DAY_S), (30 * NS, 0)]
    assert told_at((1000 + at_s + shift_s) * 1000, shifts) == at_s
    assert told_at((1000 + at_s) * 1000, []) == at_s


def verdict(text: str, **of_record: Any) -> Verdict:
    nothing = Snapshot({})
    record = Record(Topology(), {}, start_ns=0, end_ns=NS, before=nothing, after=nothing, **of_record)
    return Expression(text).judge(lambda measure: value(record, measure))


def judged(text: str, **of_record: Any) -> bool:
    return verdict(text, **of_record).passed


def test_words_are_found_in_what_nodes_said() -> None:
    logs = {"gw1": "jvpn server: the disk is full\n", "client": "jvpn client: session up\n"}
    assert judged('"disk is full" in said.gw1', logs=logs)
    assert judged('"disk is full" in said.gateway', logs=logs)
    assert not judged('"disk is full" in said.client', logs=logs)
    assert judged('"disk is full" not in said.client', logs=logs)
    # What was measured is whether it was said.
    assert verdict('"disk is full" in said.client', logs=logs).value is False


def test_what_is_missing_is_no_violation() -> None:
    findings = ["gateway: line 3: lost: VERSION_GAP: …", "gateway: line 4: violation: SILENT_SWITCH: …"]
    assert judged("audit.violations == 1", findings=findings)
    assert judged("audit.findings == 2", findings=findings)
    assert not judged("audit.accepted", findings=findings)
