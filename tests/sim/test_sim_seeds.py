"""A seed decides everything."""

import os
import subprocess
import sys

from jvpn.sim.many import run_all


def digests(first: int, count: int) -> list[str]:
    return [result.digest for result in run_all(first, count)]


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
