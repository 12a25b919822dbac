"""False switches: an hour of a noisy but good network, on virtual time, with the cores that gateway and client run.

    .venv/bin/python benchmarks/noise.py --json benchmarks/results/noise.json

Two uplinks. Each datagram takes 10 ms and up to 15 more, one in a hundred is lost, and every few minutes all of 60 ms.
Traffic flows both ways every 20 ms. No path is bad: every switch is a false one.
"""

import argparse
import importlib
import json
import random
import sys
from pathlib import Path
from typing import Any

from jvpn.observability.events import TransportSwitch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit"))
CorePair: Any = importlib.import_module("core_pair").CorePair


EVERY_MS = 20
LOSS = 0.01
JITTER_MS = 15
BURST_EVERY_MS = 180_000
BURST_MS = 60


class Weather:
    """A rule of loss and delay for one seed."""

    def __init__(self, pair: Any, seed: int) -> None:
        self._pair = pair
        self._random = random.Random(seed)
        self._burst_ms = pair.now_ms + self._random.randrange(BURST_EVERY_MS)

    def __call__(self, _flight: object) -> list[int]:
        now_ms = self._pair.now_ms
        if now_ms >= self._burst_ms + BURST_MS:
            self._burst_ms = now_ms + self._random.randrange(2 * BURST_EVERY_MS)
        if self._burst_ms <= now_ms < self._burst_ms + BURST_MS or self._random.random() < LOSS:
            return []
        return [10 + self._random.randrange(JITTER_MS + 1)]


def switches(seed: int, seconds: int) -> list[str]:
    """The causes of all switches in so many virtual seconds."""
    pair = CorePair(seed=seed).attach()
    pair.rules.append(Weather(pair, seed))
    before = _told(pair)
    for _ in range(seconds * 1000 // EVERY_MS):
        pair.data_up(bytes(48))
        pair.data_down(bytes(48))
        pair.advance(EVERY_MS)
        for kept in (pair.sent, pair.done, pair.client_worker.delivered, pair.client_worker.commands):
            kept.clear()
        for worker in pair.workers.values():
            worker.delivered.clear()
            worker.commands.clear()
    return _told(pair)[len(before) :]


def _told(pair: Any) -> list[str]:
    return [str(event.reason_code) for event in pair.client_sink.events if isinstance(event, TransportSwitch)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--seeds", type=int, default=1, help="hours with weather of their own (default 1)")
    parser.add_argument("--seconds", type=int, default=3600, help="of each (default 3600)")
    given = parser.parse_args()
    found = {seed: switches(seed, given.seconds) for seed in range(1, given.seeds + 1)}
    for seed, causes in found.items():
        print(f"seed {seed}: {len(causes)} switches {' '.join(causes)}", flush=True)
    rate = sum(map(len, found.values())) * 3600 / (given.seconds * given.seeds)
    if given.json:
        given.json.write_text(json.dumps({"false_switches_per_hour": rate, "causes": found}, indent=1) + "\n")
    print(f"false switches an hour: {rate:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
