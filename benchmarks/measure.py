"""What is measured of one system on one wire: throughput, packets, round trips, CPU. All figures come from outside."""

import json
import math
import re
import subprocess
from typing import Any

import numpy as np
from systems import System, cpu_seconds

from jvpn.lab.iperf import Iperf
from jvpn.lab.links import Network
from jvpn.lab.namespaces import LabError
from workers.bulk import find
from workers.offload import is_compiled

_ROUND_TRIP = re.compile(r"time=([\d.]+) ms")

Figures = dict[str, float]


def data_plane() -> dict[str, Any]:
    """What jvpn's processes on this machine, started like this one, are made of."""
    made = "compiled" if is_compiled() else "interpreted"
    return {"data_plane": made, "libipsec_mb": find() is not None}


def iperf(network: Network[Any], server: str, seconds: float, *extra: str) -> dict[str, Any]:
    """iperf3's own end report. Raises LabError with its words."""
    listening = network.gateway.popen(
        ["iperf3", "-s", "-1", "-B", server, "--forceflush"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert listening.stdout is not None
    try:
        for line in listening.stdout:
            if "listening" in line:
                break
        words = ["iperf3", "-c", server, "-t", f"{seconds:g}", "-J", *extra]
        done = network.client.run(words, timeout_s=seconds + 30)
        report: dict[str, Any] = json.loads(done.stdout)
    finally:
        if listening.poll() is None:
            listening.kill()
        listening.wait()
        listening.stdout.close()
    if "error" in report or not report.get("end"):
        raise LabError(f"iperf3: {report.get('error', 'no result')}")
    return report


def tcp(network: Network[Any], system: System, seconds: float, *extra: str, six: bool = False) -> Figures:
    """gbit_s as received, and CPU seconds of the system's processes (both ends) per GB."""
    pids = system.pids()
    before = cpu_seconds(pids)
    end = iperf(network, system.server6 if six else system.server, seconds, *extra)["end"]
    spent = cpu_seconds(pids) - before
    received = end["sum_received"]
    return {
        "gbit_s": received["bits_per_second"] / 1e9,
        "cpu_s_per_gb": spent / (received["bytes"] / 1e9),
        "retransmits": end["sum_sent"].get("retransmits", 0),
    }


def udp(network: Network[Any], system: System, seconds: float, length: int) -> Figures:
    """Datagrams of `length` bytes, sent as fast as the sender can: those received in a second."""
    report = iperf(network, system.server, seconds, "-u", "-b", "0", "-l", str(length))
    total = report["end"]["sum"]
    received = total["packets"] - total["lost_packets"]
    return {"pps": received / total["seconds"], "sent_pps": total["packets"] / total["seconds"]}


def ping(network: Network[Any], system: System, seconds: float) -> Figures:
    """Round trips through the tunnel, one in 5 ms; in milliseconds."""
    done = network.client.run(
        ["ping", "-i", "0.005", "-c", str(int(seconds * 200)), system.server], timeout_s=seconds * 4 + 20
    )
    times = np.array([float(found) for found in _ROUND_TRIP.findall(done.stdout)])
    if not len(times):
        raise LabError("no ping was answered")
    return {"p50_ms": float(np.percentile(times, 50)), "p99_ms": float(np.percentile(times, 99))}


def ping_under_load(network: Network[Any], system: System, seconds: float) -> Figures:
    """The same beside one TCP stream."""
    load = Iperf(network.client, network.gateway, system.server, seconds=math.ceil(seconds) + 2).start()
    try:
        return ping(network, system, seconds)
    finally:
        load.kill()
