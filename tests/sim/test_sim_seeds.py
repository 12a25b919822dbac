"""Seeds of the simulator: nothing happens that must never happen, and a seed decides everything."""

import os
import subprocess
import sys

import pytest

from jvpn.sim.many import run_all

#: Seeds 0 … 199 are run with every test, in shares that can go beside each other; `jvpn sim run` takes thousands.
SHARE = 25


def digests(first: int, count: int) -> list[str]:
    return [result.digest for result in run_all(first, count)]


@pytest.mark.parametrize("first", range(0, 200, SHARE))
def test_no_seed_shows_what_must_never_happen(first: int) -> None:
    found = [
        f"seed {result.seed} at {result.at_ms} ms: {result.code}: {result.text}"
        for result in run_all(first, SHARE)
        if result.code
    ]
    assert found == []


def test_a_seed_decides_everything() -> None:
    here = digests(3, 4)
    assert len(set(here)) == 4
    code = "from jvpn.sim.many import run_all\nfor result in run_all(3, 4): print(result.digest)"
    for hash_seed in ("1", "77"):
        there = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=200,
        )
        assert there.stdout.split() == here
