"""How long a client of a fleet is without its session when the host of its gateway dies.

    .venv/bin/python benchmarks/takeover.py --json benchmarks/results/takeover.json

Two gateways in namespaces, a real etcd of three members, one client that sends a packet every 10 ms. All processes of
the gateway that has the session die at once (SIGKILL); until the first answer comes through the other one the clock
runs. The bound is lease TTL + 1 s + 2 round trips: the dead node's lease has to end first, so it is a matter of when in
its renewal (every third of the TTL) a node dies. Then the dead one is started again. `writes_per_takeover` is what etcd
has counted as committed meanwhile.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jvpn.lab.fleet import FleetLab
from jvpn.lab.namespaces import Lab, Namespace
from jvpn.lab.running import wait_for

PORT = 7777
EVERY_S = 0.01
PATIENCE_S = 30.0
#: Answers that come within this are of the dead one.
UNDER_WAY_S = 0.1
_NUMBER = struct.Struct("!dI")


class Pulse:
    """Asks the gateway's inner address by UDP, every 10 ms; whoever has the session echoes."""

    def __init__(self, client: Namespace) -> None:
        self._socket = client.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.settimeout(0.5)
        self._stop = threading.Event()
        #: When the first answer came after `after_s`, on CLOCK_MONOTONIC.
        self.first_s = 0.0
        self._after_s = 0.0
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._ask, self._hear)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        number = 0
        while not self._stop.wait(EVERY_S):
            with contextlib.suppress(OSError):
                self._socket.sendto(_NUMBER.pack(time.monotonic(), number), ("10.8.0.1", PORT))
            number += 1

    def _hear(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError):
                self._socket.recv(64)
                now_s = time.monotonic()
                if not self.first_s and now_s > self._after_s:
                    self.first_s = now_s

    def listen(self, after_s: float) -> None:
        self._after_s, self.first_s = after_s, 0.0

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._socket.close()


@contextlib.contextmanager
def echo(space: Namespace) -> Iterator[None]:
    """Echoes on the gateway's inner address, as soon as there is one. It does not die with the gateway."""
    far = space.socket(socket.AF_INET, socket.SOCK_DGRAM)
    far.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND: the address comes and goes with the gateway
    far.bind(("10.8.0.1", PORT))
    far.settimeout(0.2)
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                data, asker = far.recvfrom(64)
                far.sendto(data, asker)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        far.close()


def committed(fleet: FleetLab) -> int:
    """Writes that etcd has agreed on since it began."""

    def read() -> int:
        with urllib.request.urlopen(f"{fleet.cluster.members[0].url}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return round(
            next(float(x.split()[1]) for x in lines if x.startswith("etcd_server_proposals_committed_total"))
        )

    count: int = fleet.store.call(read)
    return count


def one(fleet: FleetLab, pulse: Pulse) -> dict[str, Any]:
    owner = fleet.owner()
    assert owner is not None
    other = next(name for name in fleet.names if name != owner)
    before = committed(fleet)
    pids = fleet.spaces[owner].pids()
    struck_s = time.monotonic()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    pulse.listen(struck_s + UNDER_WAY_S)
    back_s = wait_for("an answer through the other", lambda: pulse.first_s, PATIENCE_S)
    fleet.gateways.pop(owner).process.wait()
    wait_for("the session there", lambda: fleet.owner() == other, PATIENCE_S)
    writes = committed(fleet) - before
    fleet.start(owner)
    time.sleep(1.0 + 2.0 * (time.monotonic() % 1))  # anywhere in the renewal of the next one's lease
    return {"takeover_ms": (back_s - struck_s) * 1000, "writes": writes}


def measure(trials: int) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="jvpn-takeover-") as work,
        Lab("takeover") as lab,
        FleetLab(lab, Path(work)) as fleet,
        contextlib.ExitStack() as stack,
    ):
        fleet.start("gw1", "gw2")
        client = fleet.start_client("gw1", "gw2")
        for name in fleet.names:
            stack.enter_context(echo(fleet.spaces[name]))
        pulse = Pulse(fleet.client_space)
        stack.callback(pulse.close)
        wait_for("the first answer", lambda: pulse.first_s)
        session = client.status()["session"]
        runs = [one(fleet, pulse) for _ in range(trials)]
        if client.status()["session"] != session:
            raise RuntimeError("the client has shaken hands anew")
    taken_ms = sorted(run["takeover_ms"] for run in runs)
    return {
        "takeover_trials": trials,
        "lease_ttl_ms": 3_000,
        "takeover_p50_ms": statistics.median(taken_ms),
        "takeover_p99_ms": taken_ms[min(len(taken_ms) - 1, round(0.99 * len(taken_ms)))],
        "takeover_max_ms": taken_ms[-1],
        "writes_per_takeover": statistics.median(run["writes"] for run in runs),
        "takeover_runs": runs,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--trials", type=int, default=30)
    given = parser.parse_args()
    found = measure(given.trials)
    for key, value in found.items():
        if key != "takeover_runs":
            print(f"{key:24}{value:12,.1f}")
    if given.json:
        known = json.loads(given.json.read_text()) if given.json.exists() else {}
        given.json.write_text(json.dumps(known | found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
