"""How the gateway's throughput goes with its workers and with its clients, and how evenly the clients share it.

    .venv/bin/python benchmarks/scaling.py --seconds 5 --json benchmarks/results/scaling.json

Every client is a `jvpn client` of its own, in a namespace and behind a veth of its own whose gateway end runs native
XDP steering; each sends one TCP stream through its tunnel to the gateway, all at the same time, from one process to
another. Clients and gateway share this machine's CPUs: the total says what the whole takes, not what a gateway alone
could bear.
"""

import argparse
import ctypes
import errno
import json
import os
import platform
import selectors
import signal
import socket
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NoReturn, cast

from crowd import FOLDER, Crowd, sweep
from systems import cpu_seconds

from jvpn.lab.namespaces import LabError
from jvpn.lab.running import GATEWAY_INNER, wait_for

#: What all streams take to be under way; left out of the figures.
WARM_S = 2.0
CONNECT_S = 30.0
CHUNK = bytes(256 * 1024)
PR_SET_PDEATHSIG = 1


def measure(crowd: Crowd, seconds: float) -> dict[str, Any]:
    """One stream of each client that runs, all counted over the same time. Raises LabError."""
    pids = crowd.gateway_pids()
    with ExitStack() as stack:
        senders, receivers = connect(crowd, stack)
        sending = os.fork()
        if sending == 0:
            send_until_killed(senders)
        stack.callback(end, sending)
        count = Receiver(receivers)
        count.run(WARM_S)
        before, at_first = cpu_seconds(pids), list(count.received)
        wall_s = count.run(seconds)
        spent = cpu_seconds(pids) - before
    each = [(now - then) * 8e-9 / wall_s for now, then in zip(count.received, at_first, strict=True)]
    return figures(each, spent / wall_s)


def connect(crowd: Crowd, stack: ExitStack) -> tuple[list[socket.socket], list[socket.socket]]:
    """The clients' ends and the gateway's, in the same order."""
    stream = (socket.AF_INET, socket.SOCK_STREAM)
    listener = stack.enter_context(crowd.gateway.socket(*stream))
    listener.bind((GATEWAY_INNER, 0))
    listener.listen()
    senders, receivers = [], []
    for number, client in enumerate(crowd.clients, 1):
        near = stack.enter_context(client.socket(*stream))
        for waiting in (near, listener):
            waiting.settimeout(CONNECT_S)
        try:
            wait_for("a route into the tunnel", lambda near=near: routed(near, listener), CONNECT_S)  # type: ignore[misc]
            far = stack.enter_context(listener.accept()[0])
        except OSError as error:
            raise LabError(f"client {number} cannot reach the gateway through its tunnel: {error}") from error
        senders.append(near)
        receivers.append(far)
    for end_of_stream in (*senders, *receivers):
        end_of_stream.setblocking(False)
    return senders, receivers


def routed(near: socket.socket, listener: socket.socket) -> bool:
    """Connect; False while the client, whose session is up, has not set its routes yet."""
    try:
        near.connect(listener.getsockname())
    except OSError as error:
        if error.errno == errno.ENETUNREACH:
            return False
        raise
    return True


def send_until_killed(sockets: list[socket.socket]) -> NoReturn:
    """In a process of its own: one for all clients, whose CPU time is not to be that of traffic tools."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with selectors.DefaultSelector() as ready:
            for sender in sockets:
                ready.register(sender, selectors.EVENT_WRITE)
            while True:
                for key, _ in ready.select():
                    with suppress(BlockingIOError):
                        cast(socket.socket, key.fileobj).send(CHUNK)
    finally:
        os._exit(1)


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


class Receiver:
    """Takes what comes; `received` is bytes of each stream so far."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self.received = [0] * len(sockets)
        self._buffer = bytearray(1 << 20)
        self._ready = selectors.DefaultSelector()
        for number, receiver in enumerate(sockets):
            self._ready.register(receiver, selectors.EVENT_READ, number)

    def run(self, seconds: float) -> float:
        """Receive for so long; returns how long it was. Raises LabError when a stream ends."""
        started = time.monotonic()
        while (passed := time.monotonic() - started) < seconds:
            for key, _ in self._ready.select(0.1):
                size = cast(socket.socket, key.fileobj).recv_into(self._buffer)
                if not size:
                    raise LabError("the sending process ended")
                self.received[key.data] += size
        return passed


def figures(rates_gbit_s: list[float], gateway_cpus: float) -> dict[str, Any]:
    each = sorted(rates_gbit_s)
    total, squares = sum(each), sum(rate * rate for rate in each)
    if not total:
        raise LabError("nothing came through any tunnel")
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was made is taken away
    sweep()
    runs: list[dict[str, Any]] = []
    try:
        for number in workers:
            runs += of_workers(number, clients, given.seconds)
    except LabError as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 1
    if given.json:
        machine = {
            "kernel": platform.release().partition("-")[0],
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        }
        document = {"runs": runs, "seconds": given.seconds, "machine": machine}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def of_workers(workers: int, clients: list[int], seconds: float) -> list[dict[str, Any]]:
    """One gateway, the clients added to it step by step."""
    out = []
    with (
        tempfile.TemporaryDirectory(prefix=f"{FOLDER}{os.getpid()}-") as folder,
        Crowd(Path(folder), workers=workers, most=clients[-1]) as crowd,
    ):
        for number in clients:
            crowd.grow(number)
            spread = crowd.sessions_by_worker()
            found = measure(crowd, seconds)
            out.append({"workers": workers, "clients": number, "sessions_by_worker": spread, **found})
            print(
                f"{workers} workers, {number:2} clients: {found['gbit_s']:5.2f} Gbit/s, slowest over fastest "
                f"{found['min_over_max']:.2f}, Jain {found['fairness']:.2f}, "
                f"gateway {found['gateway_cpus']:.2f} CPUs, sessions {spread}",
                flush=True,
            )
    return out


if __name__ == "__main__":
    sys.exit(main())
