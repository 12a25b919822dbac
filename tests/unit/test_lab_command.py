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
