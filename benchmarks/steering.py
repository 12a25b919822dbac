"""What the XDP program spends on a packet, for each of its verdicts, with a million sessions in its map.

    .venv/bin/python benchmarks/steering.py --sessions 1000000 --json benchmarks/results/steering.json

The kernel runs the program over one packet in a loop (BPF_PROG_TEST_RUN), on one CPU and on no interface. `hot`: the
same packet again and again, so that its entry is in the cache. `random`: before each run an id is drawn from those in
the map and written into the packet; the same with a bare lookup instead of the program, and with nothing, whose time
is taken off both. Programs and maps are of this process alone and end with it.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from steering_cases import HOT_ID, Case, cases, data_frame, other_worker, prepare, put_hot_id
from steering_programs import NoProgram, Programs

from jvpn.holder import bpf_syscall as bpf
from jvpn.supervisor.steering import Steering

ROUNDS = 7
RUNS = 500_000
#: Of those cases that are over after a few runs: as many more rounds.
SHORT_ROUNDS = 101
CPU = 0
#: Where the packets of the redirected case would go; 0 with one CPU only.
OTHER_CPU = 1 if (os.cpu_count() or 1) > 1 else 0
#: What each random key is used for; every one includes `generate`.
RANDOM = ("generate", "lookup", "read", "steer")


def nanoseconds(fd: int, packet: bytes, runs: int = RUNS) -> tuple[int, int]:
    """Of one run on the average, as the kernel takes it (time given to other processes left out), and the verdict."""
    done = bpf.prog_test_run(fd, packet, runs)
    return done.duration_ns, done.verdict


def measure_hot(programs: Programs, steering: Steering) -> dict[str, dict[str, Any]]:
    """case → {"ns", "loop_ns", …}; `ns` includes what the kernel's loop takes by itself, `loop_ns`.

    Raises NoProgram when a packet met another fate than meant.
    """
    out: dict[str, dict[str, Any]] = {}
    for case in cases(other_cpu=bool(OTHER_CPU)):
        steering.set_rates(case.rates)
        times, empty, verdict = [], [], 0
        for _ in range(SHORT_ROUNDS if case.admitted else ROUNDS):
            runs = _runs(case, programs, steering)
            before = steering.counters()
            taken, verdict = nanoseconds(programs.fd("jvp_steer"), case.frame, runs)
            times.append(taken)
            _as_meant(case, runs, before, steering.counters())
            empty.append(nanoseconds(programs.fd("bench_empty"), case.frame, runs)[0])
        out[case.name] = {
            "ns": median(times),
            "loop_ns": median(empty),
            "verdict": {1: "drop", 2: "pass", 4: "redirect"}[verdict],
            "counter": case.counter,
        }
        print(f"  {case.name:24} {median(times):5} ns  {out[case.name]['verdict']}", flush=True)
    print(f"  (an empty program        {out[cases(False)[0].name]['loop_ns']:5} ns)", flush=True)
    return out


def measure_hot_lookup(programs: Programs) -> float:
    """A bare lookup of one key, the loop included."""
    frame = data_frame(HOT_ID)
    taken = median(nanoseconds(programs.fd("bench_same"), frame)[0] for _ in range(ROUNDS))
    print(f"  (a bare lookup           {taken:5} ns)", flush=True)
    return taken


def _runs(case: Case, programs: Programs, steering: Steering) -> int:
    """How many to time. Where a bucket counts them, it is made full, and the one that creates it is left out."""
    if not case.admitted:
        return RUNS
    put_hot_id(steering)
    nanoseconds(programs.fd("jvp_steer"), case.frame, 1)
    return case.admitted - 1


def _as_meant(case: Case, runs: int, before: dict[str, int], after: dict[str, int]) -> None:
    moved = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    # A bucket lets the first few through before it refuses: a few of RUNS, and none of so few that a bucket admits.
    if moved.get(case.counter, 0) < runs * 0.99:
        raise NoProgram(f"{case.name}: the packet was to be counted as {case.counter}, and was so: {moved}")


def measure_random(programs: Programs, steering: Steering) -> dict[str, float]:
    """Medians of each program as it ran, and less generation. Programs take turns within a round."""
    times: dict[str, list[int]] = {name: [] for name in RANDOM}
    frame = data_frame(HOT_ID)
    before = steering.counters()["owner_data"]
    for _ in range(ROUNDS):
        for name in RANDOM:
            taken, verdict = nanoseconds(programs.fd(f"bench_{name}"), frame)
            if verdict != 2:
                raise NoProgram(f"bench_{name} met an id that is not in the map: verdict {verdict}")
            times[name].append(taken)
    if steering.counters()["owner_data"] - before != ROUNDS * RUNS:
        raise NoProgram("not every random id was found to be its owner's")
    out: dict[str, float] = {f"{name}_raw_ns": median(times[name]) for name in RANDOM}
    for name in RANDOM[1:]:
        less = [t - g for t, g in zip(times[name], times["generate"], strict=True)]
        out[f"{name}_ns"] = median(less)
    ratios = [
        (s - g) / (k - g) for s, k, g in zip(times["steer"], times["lookup"], times["generate"], strict=True)
    ]
    out["ratio_to_lookup"] = round(median(ratios), 3)
    for name in ("lookup", "read", "steer"):
        print(f"  {name:24} {out[f'{name}_ns']:5} ns", flush=True)
    print(f"  steering is {out['ratio_to_lookup']:.2f} × a bare lookup", flush=True)
    return out


def run(sessions: int, pins: Path) -> dict[str, Any]:
    """Everything, with `pins` a BPF file system of this process's own."""
    os.sched_setaffinity(0, {CPU})
    programs = Programs(sessions + 16)
    programs.pin(pins)
    with Steering(pins) as steering:
        prepare(steering)
        if OTHER_CPU:
            other_worker(steering, OTHER_CPU)
        started = time.perf_counter()
        programs.fill(data_frame(HOT_ID), sessions)
        filled_s = time.perf_counter() - started
        print(f"{sessions:,} sessions in the map; one hot key:", flush=True)
        hot = measure_hot(programs, steering)
        lookup = measure_hot_lookup(programs)
        print("random keys, less what drawing them costs:", flush=True)
        random = measure_random(programs, steering)
    data = hot["owner DATA pass"]
    return {
        "hot_ns": data["ns"],
        "hot_less_loop_ns": data["ns"] - data["loop_ns"],
        "hot_lookup_ns": lookup,
        "random_ratio": random["ratio_to_lookup"],
        "sessions": sessions,
        "fill_s": round(filled_s, 2),
        "runs": RUNS,
        "rounds": ROUNDS,
        "hot": hot,
        "random": random,
        "machine": {
            "kernel": platform.release().partition("-")[0],
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=1_000_000, help="steering ids (default 1000000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--pins", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if os.geteuid() != 0:
        print("steering: needs root: it loads BPF programs. Run this as root or with sudo.", file=sys.stderr)
        return 77
    if given.sessions < 1:
        parser.error("--sessions must be 1 or more")
    if given.pins is None:
        in_own_file_system()
    try:
        document = run(given.sessions, given.pins)
    except (NoProgram, OSError) as error:
        print(f"steering: {error}", file=sys.stderr)
        return 1
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def in_own_file_system() -> None:
    """Start again with a BPF file system that no other process sees, and that is gone with this one."""
    folder = "/sys/fs/bpf"  # a second mount over the first, in a mount namespace of our own
    script = 'mount -t bpf jvpn-bench "$0" && exec "$@" --pins "$0"'
    again = [sys.executable, *sys.argv]
    os.execvp("unshare", ["unshare", "--mount", "sh", "-c", script, folder, *again])


if __name__ == "__main__":
    sys.exit(main())
