"""How the gateway's throughput goes with its workers and with its clients, and how evenly the clients share it.

    .venv/bin/python benchmarks/scaling.py --seconds 5 --json benchmarks/results/scaling.json

Every client is a `jvpn client` of its own, in a namespace and behind a veth of its own whose gateway end runs native
XDP steering; each sends one TCP stream through its tunnel to the gateway, all at the same time. Clients, gateway and
iperf3 share this machine's CPUs, so the total says what the whole takes, not what a gateway alone could bear.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from crowd import Crowd
from systems import cpu_seconds

from jvpn.lab.namespaces import LabError
from jvpn.lab.running import GATEWAY_INNER, wait_for

FIRST_PORT = 5201
#: What all streams take to be under way; left out of the figures.
OMIT_S = 2


def measure(crowd: Crowd, seconds: float) -> dict[str, Any]:
    """One stream of each client that runs. Raises LabError."""
    pids = crowd.gateway_pids()
    listening = [
        crowd.gateway.popen(
            ["iperf3", "-s", "-1", "-B", GATEWAY_INNER, "-p", str(FIRST_PORT + index)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for index in range(len(crowd.clients))
    ]
    sending: list[subprocess.Popen[str]] = []
    try:
        wait_for("the iperf3 servers", lambda: _listeners(crowd) >= len(listening), 60)
        before, started = cpu_seconds(pids), time.monotonic()
        for index, client in enumerate(crowd.clients):
            words = ["iperf3", "-c", GATEWAY_INNER, "-p", str(FIRST_PORT + index), "-J"]
            words += ["-t", f"{seconds:g}", "-O", str(OMIT_S)]
            sending.append(client.popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        reports = [json.loads(process.communicate(timeout=seconds + 120)[0]) for process in sending]
        spent, wall_s = cpu_seconds(pids) - before, time.monotonic() - started
    except subprocess.TimeoutExpired as late:
        raise LabError(f"an iperf3 client did not end: {late}") from late
    finally:
        for process in (*sending, *listening):
            if process.poll() is None:
                process.kill()
            process.wait()
    return _figures(reports, spent / wall_s)


def _listeners(crowd: Crowd) -> int:
    return len(crowd.gateway.run(["ss", "-Hltn", "src", GATEWAY_INNER]).stdout.splitlines())


def _figures(reports: list[dict[str, Any]], gateway_cpus: float) -> dict[str, Any]:
    broken = [str(report["error"]) for report in reports if "error" in report]
    if broken:
        raise LabError(f"iperf3, of {len(reports)} clients {len(broken)} failed: {broken[0]}")
    each = sorted(report["end"]["sum_received"]["bits_per_second"] / 1e9 for report in reports)
    total, squares = sum(each), sum(rate * rate for rate in each)
    return {
        "gbit_s": round(total, 3),
        "min_gbit_s": round(each[0], 4),
        "max_gbit_s": round(each[-1], 4),
        "min_over_max": round(each[0] / each[-1], 3),
        "fairness": round(total * total / (len(each) * squares), 3),
        "gateway_cpus": round(gateway_cpus, 2),
        "each_gbit_s": [round(rate, 4) for rate in each],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (default 5)")
    parser.add_argument("--workers", default="1,2", help="of the gateway, comma-separated (default 1,2)")
    parser.add_argument(
        "--clients", default="1,4,16,64", help="comma-separated, at most 250 (default 1,4,16,64)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    given = parser.parse_args()
    if os.geteuid() != 0:
        print(
            "scaling: needs root: it makes network namespaces. Run this as root or with sudo.",
            file=sys.stderr,
        )
        return 77
    try:
        workers, clients = (
            sorted(int(n) for n in text.split(",")) for text in (given.workers, given.clients)
        )
    except ValueError:
        parser.error("--workers and --clients take numbers, comma-separated")
    if clients[0] < 1 or clients[-1] > 250 or workers[0] < 1:
        parser.error("1 to 250 clients and at least 1 worker")
    runs: list[dict[str, Any]] = []
    try:
        for number in workers:
            runs += of_workers(number, clients, given.seconds)
    except LabError as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 1
    if given.json:
        machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "python": platform.python_version()}
        document = {"runs": runs, "seconds": given.seconds, "machine": machine}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def of_workers(workers: int, clients: list[int], seconds: float) -> list[dict[str, Any]]:
    """One gateway, the clients added to it step by step."""
    out = []
    with (
        tempfile.TemporaryDirectory(prefix="jvpn-scaling-") as folder,
        Crowd(Path(folder), workers=workers, most=clients[-1]) as crowd,
    ):
        for number in clients:
            crowd.grow(number)
            spread = crowd.sessions_by_worker()
            figures = measure(crowd, seconds)
            out.append({"workers": workers, "clients": number, "sessions_by_worker": spread, **figures})
            print(
                f"{workers} workers, {number:2} clients: {figures['gbit_s']:5.2f} Gbit/s, slowest over fastest "
                f"{figures['min_over_max']:.2f}, Jain {figures['fairness']:.2f}, "
                f"gateway {figures['gateway_cpus']:.2f} CPUs, sessions {spread}",
                flush=True,
            )
    return out


if __name__ == "__main__":
    sys.exit(main())
