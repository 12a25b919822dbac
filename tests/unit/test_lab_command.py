"""What `jvpn lab run` says to who mistypes, in a sentence or two and with status 2."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lab_run(*argv: str) -> str:
    """What it says on stderr when it refuses."""
    done = subprocess.run(
        [sys.executable, "-m", "jvpn.cli", "lab", "run", *argv],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("factor", ["abc", "nan", "0.5", "1e300"])
def test_a_time_factor_is_a_number(factor: str) -> None:
    said = lab_run("short", "--time-factor", factor)
    assert f"argument --time-factor: {factor} is not a number within 1 and 1000" in said


def test_a_name_that_is_nearly_one_is_told_what_it_may_mean() -> None:
    said = lab_run("f2-blckhole")
    assert "there is no such scenario; did you mean f2-blackhole" in said
    assert "`jvpn lab list` names them all" in said


def test_a_name_that_is_like_none_is_not_told_them_all() -> None:
    assert lab_run("zzzz") == "zzzz: there is no such scenario; `jvpn lab list` names them all\n"


def test_a_parameter_that_a_scenario_has_not_is_told_those_that_it_has() -> None:
    assert "x: no parameter of this scenario; it has: " in lab_run("f14-rival[x=1]")


def test_an_empty_file_is_told_where_an_example_is(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("# nothing yet\n")
    said = lab_run(str(tmp_path / "mine.yaml"))
    assert said == f"{tmp_path}/mine.yaml: the file is empty; start from the example in docs/lab.md\n"
    assert "title: " in (ROOT / "docs" / "lab.md").read_text()
