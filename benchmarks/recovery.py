"""How long a path's death, a new NAT mapping or a chosen switch silences a tunnel: jvpn beside the others, alternating.

    .venv/bin/python benchmarks/recovery.py --json benchmarks/results/recovery.json

Two uplinks in a namespace lab, a steady stream in both directions through the tunnel, one fault a trial. The gap is the
longest silence of the stream in the worse direction. Trials of one system and one fault follow each other in a lab that
stands; systems take turns, ROUNDS times. Every block of trials is written to FILE at once, and what is in FILE already
is not measured again: interrupt it, run it again, or merge others' files (--merge).
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import debian
from contestants import Contestant, JvpnContestant, contestants
from mishaps import MISHAPS
from recovery_figures import Run, keys, rows, table
from stage import Stage
from systems import ready
from trials import TRAFFIC, Trials

from jvpn.lab.links import two_uplinks
from jvpn.lab.namespaces import Lab, LabError
from jvpn.observability.admin import AdminError

PEERS = Path(__file__).parent / ".peers"
#: Which traffic shows what of a fault; every fault has the stream of 1 kHz.
SHOWN = {
    "link_down": ("1khz", "5ms", "50mbit", "silent", "tcp"),
    "link_down_cold": ("1khz", "5ms"),
    "cable": ("1khz",),
    "blackhole": ("1khz", "5ms", "50mbit", "silent", "tcp"),
    "blackhole_up": ("1khz", "5ms"),
    "blackhole_down": ("1khz", "5ms", "silent"),
    "nat_rebind": ("1khz", "5ms", "50mbit", "silent", "tcp"),
    "loss_30": ("1khz",),
    "path_return": ("1khz", "tcp"),
    "path_return_link": ("1khz",),
    "voluntary": ("1khz", "5ms", "50mbit"),
}
#: Voluntary trials come faster than the default policy lets a client move.
SWITCHES_A_MINUTE = 60


class Bench:
    """The runs so far and where they are kept."""

    def __init__(self, file: Path | None, merge: list[Path], rtts: list[float]) -> None:
        self._file = file
        self._rtts = rtts
        self.runs: list[Run] = []
        self.more: dict[str, Any] = {}
        for known in [*([file] if file and file.exists() else []), *merge]:
            document = json.loads(known.read_text())
            self.runs += document["runs"]
            self.more |= {name: document[name] for name in ("false_switches_per_hour",) if name in document}

    def missing(self, system: str, rtt_ms: float, fault: str, traffic: str, target: int) -> int:
        seen = Counter((r["system"], r["rtt_ms"], r["fault"], r["traffic"]) for r in self.runs)
        return max(0, target - seen[system, rtt_ms, fault, traffic])

    def add(self, runs: list[Run]) -> None:
        self.runs += runs
        self.save()

    def save(self) -> None:
        if self._file is None:
            return
        rtts = sorted({run["rtt_ms"] for run in self.runs}) or self._rtts
        machine = {
            "kernel": platform.release().partition("-")[0],
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        }
        document = {
            **keys(self.runs, "jvpn", rtts[0]),
            **self.more,
            "by_rtt": {f"{rtt:g}": keys(self.runs, "jvpn", rtt) for rtt in rtts},
            "table": table(self.runs),
            "machine": machine,
        }
        text = json.dumps(document, indent=1)[:-2] + ',\n "runs": [\n'
        text += ",\n".join("  " + json.dumps(run) for run in self.runs) + "\n ]\n}\n"
        self._file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._file.with_suffix(".part")
        fresh.write_text(text)
        fresh.replace(self._file)


@contextmanager
def standing(make: Callable[[], Contestant], rtt_ms: float) -> Iterator[tuple[Stage, Contestant]]:
    """A lab with this system's tunnel."""
    with Lab("recovery") as lab, tempfile.TemporaryDirectory(prefix="jvpn-rec-") as folder:
        network = two_uplinks(lab, rtt_ms=rtt_ms)
        stage = Stage(network)
        contestant = make()
        try:
            contestant.start(network, Path(folder))
            ready(contestant.system, network.client)
            yield stage, contestant
        finally:
            contestant.stop()


Block = tuple[str, str, int]


def turn(bench: Bench, make: Callable[[], Contestant], rtt_ms: float, blocks: list[Block]) -> None:
    """What one system has to do in one round; a system that does not come back is started again, once a block."""
    left = list(blocks)
    while left:
        try:
            with standing(make, rtt_ms) as (stage, contestant):
                while left:
                    fault, traffic, number = left.pop(0)
                    begun = time.monotonic()
                    runs = Trials(stage, contestant, fault, traffic, rtt_ms).run(number)
                    bench.add(runs)
                    _say(runs, time.monotonic() - begun)
        except (LabError, AdminError) as error:
            print(f"  {error}", file=sys.stderr, flush=True)


def _say(runs: list[Run], took_s: float) -> None:
    last, gaps = runs[-1], sorted(run["gap_ms"] for run in runs)
    lost = f", lost {sum(run['lost'] for run in runs)}" if "lost" in last else ""
    never = sum(not run["recovered"] for run in runs)
    print(
        f"{last['rtt_ms']:4g} ms {last['system']:20}{last['fault']:17}{last['traffic']:7} n={len(runs):<3} gap "
        f"{gaps[len(gaps) // 2]:7.1f} ms, max {gaps[-1]:7.1f}{lost}{f', not back {never}' if never else ''}"
        f"  [{took_s:.0f} s]",
        flush=True,
    )


def blocks_of(
    bench: Bench, given: argparse.Namespace, system: str, rtt_ms: float, target: int
) -> list[Block]:
    wanted = [
        (fault, traffic)
        for fault in given.faults.split(",")
        for traffic in SHOWN[fault]
        if traffic in given.traffic.split(",")
    ]
    if system.endswith("+script"):
        # The script would undo a switch that somebody chose.
        wanted = [block for block in wanted if block[0] != "voluntary"]
    found = [(f, t, bench.missing(system, rtt_ms, f, t, target)) for f, t in wanted]
    return [block for block in found if block[2]]


def measure(bench: Bench, given: argparse.Namespace) -> None:
    makers = contestants(PEERS)
    names = given.systems.split(",") if given.systems else list(makers)
    for number in range(1, given.rounds + 1):
        target = -(-given.trials * number // given.rounds)
        for rtt_ms in (float(rtt) for rtt in given.rtt.split(",")):
            for name in names:
                blocks = blocks_of(bench, given, name, rtt_ms, target)
                chosen = [block for block in blocks if block[0] == "voluntary" and name == "jvpn"]
                turn(bench, makers[name], rtt_ms, [block for block in blocks if block not in chosen])
                turn(bench, lambda: JvpnContestant(SWITCHES_A_MINUTE), rtt_ms, chosen)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything there, and go on from there"
    )
    parser.add_argument(
        "--trials", type=int, default=30, help="of each system, fault and traffic (default 30)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns that each system takes (default 3)")
    parser.add_argument("--rtt", default="20,100", help="round trips in ms, comma-separated (default 20,100)")
    parser.add_argument("--systems", default="", help="comma-separated; default: all")
    parser.add_argument("--faults", default=",".join(SHOWN), help=f"default: all of {', '.join(MISHAPS)}")
    parser.add_argument("--traffic", default=",".join(TRAFFIC), help=f"default: all of {', '.join(TRAFFIC)}")
    parser.add_argument(
        "--merge", type=Path, action="append", default=[], metavar="FILE", help="add these runs too"
    )
    parser.add_argument(
        "--rows", action="store_true", help="measure nothing: print what FILE holds as Markdown"
    )
    given = parser.parse_args()
    if os.geteuid() != 0:
        print(
            "recovery: needs root: it makes network namespaces. Run it as root or with sudo.", file=sys.stderr
        )
        return 77
    bench = Bench(given.json, given.merge, [float(rtt) for rtt in given.rtt.split(",")])
    if given.rows:
        print("\n".join(rows(table(bench.runs))))
        return 0
    try:
        measure(bench, given)
    except debian.NoPeer as error:
        print(f"recovery: {error}", file=sys.stderr)
        return 1
    bench.save()
    for rtt_ms in sorted({run["rtt_ms"] for run in bench.runs}):
        print(f"\njvpn at {rtt_ms:g} ms round trip:")
        for key, value in keys(bench.runs, "jvpn", rtt_ms).items():
            print(f"  {key:26} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
