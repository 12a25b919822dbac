"""A lab run's result.json: what is written can be read, and what is not one is named."""

import json
from pathlib import Path

import pytest

from jvpn.lab.scenario.result import Assertion, Mark, Result, ResultError, Series, StateStep, encode, load


def made() -> Result:
    return Result(
        scenario="f2-blackhole",
        title="The active path falls silent",
        row="F2",
        parameters={"rtt_ms": 20},
        backend="netns",
        about={"kernel": "6.1"},
        started="2026-01-02T03:04:05Z",
        duration_s=8.0,
        passed=True,
        assertions=[Assertion(text="session.same", value=True, passed=True)],
        marks=[Mark(at_s=2, what="fault", text="blackhole on A", name="hole")],
        series={"stream.up": Series(at_s=[0.0], mbit_s=[1.5])},
        states=[StateStep(at_s=2.1, who="client", version=1 << 40, from_="ATTACHED", to="X", reason="Y")],
    )


def test_a_result_is_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_bytes(encode(made()))
    assert load(file) == made()
    assert json.loads(file.read_bytes())["states"][0]["from"] == "ATTACHED"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"marks": [{"at_s": "soon"}]}, "at_s"),
        ({"scenario": None}, "scenario"),
        ({"series": {"stream.up": {"at_s": [0, 1], "mbit_s": [1]}}}, "2 times for 1 rates"),
        (None, "demo"),
    ],
)
def test_what_is_no_result_is_named_with_file_and_field(tmp_path: Path, change: object, named: str) -> None:
    file = tmp_path / "demo.json"
    document = json.loads(encode(made())) | change if isinstance(change, dict) else "rubbish"
    file.write_text(json.dumps(document))
    with pytest.raises(ResultError, match=rf"demo\.json.*{named}|{named}\.json"):
        load(file)


def test_what_is_nested_too_deeply_is_no_result(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_bytes(b'{"about":' * 50_000)
    with pytest.raises(ResultError, match="not the result of a lab run"):
        load(file)


def test_a_later_versions_field_does_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(json.loads(encode(made())) | {"weather": "fine"}))
    assert load(file) == made()
