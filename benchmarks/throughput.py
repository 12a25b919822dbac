"""jvpn beside wireguard-go and OpenVPN: the same namespaces, links and MTU, alternating, several rounds.

    .venv/bin/python benchmarks/throughput.py --seconds 5 --rounds 3 --json benchmarks/results/throughput.json

Each measurement has a network of its own, made just before and gone just after, so that no system idles beside
another. Figures are medians over the rounds; ratios are jvpn's over wireguard-go's within one run. On the wire `gso`
superpackets cross a plain veth whole; on `xdp` the gateway's end runs native XDP (steering for jvpn, XDP_PASS for the
others), so the segments travel singly.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import debian
import measure
from systems import System, all_systems, ready
from wires import WIRES, attach_passing, wire

from jvpn.lab.links import Network

Measurement = Callable[[Network[Any], System, float], measure.Figures]

MEASUREMENTS: dict[str, Measurement] = {
    "tcp_up": lambda n, s, t: measure.tcp(n, s, t),
    "tcp_down": lambda n, s, t: measure.tcp(n, s, t, "-R"),
    "tcp_up_8": lambda n, s, t: measure.tcp(n, s, t, "-P", "8"),
    "tcp_down_8": lambda n, s, t: measure.tcp(n, s, t, "-P", "8", "-R"),
    "tcp6_up": lambda n, s, t: measure.tcp(n, s, t, six=True),
    "udp_200": lambda n, s, t: measure.udp(n, s, t, 200),
    "udp_1200": lambda n, s, t: measure.udp(n, s, t, 1200),
    "ping_idle": lambda n, s, t: measure.ping(n, s, min(t, 2)),
    "ping_loaded": lambda n, s, t: measure.ping_under_load(n, s, min(t, 2)),
}
PEERS = Path(__file__).parent / ".peers"


def one(
    wire_kind: str, make: Callable[[], System], names: list[str], seconds: float
) -> tuple[str, dict[str, measure.Figures]]:
    """The system's cipher, and figures by measurement, on a network of its own."""
    with wire(wire_kind) as network, tempfile.TemporaryDirectory(prefix="jvpn-bench-") as folder:
        system = make()
        keep = None
        if wire_kind == "xdp" and not system.name.startswith("jvpn"):
            keep = attach_passing(network)
        try:
            system.start(network, Path(folder))
            ready(system, network.client)
            figures = {name: MEASUREMENTS[name](network, system, seconds) for name in names}
        finally:
            system.stop()
            del keep
    return system.cipher, figures


def medians(runs: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, measure.Figures]]]:
    """wire → system → measurement → median of each figure."""
    out: dict[str, dict[str, dict[str, measure.Figures]]] = {}
    for run in runs:
        of_system = out.setdefault(run["wire"], {}).setdefault(run["system"], {})
        for name in run["figures"]:
            same = [
                r["figures"][name] for r in runs if (r["wire"], r["system"]) == (run["wire"], run["system"])
            ]
            of_system[name] = {key: median(figures[key] for figures in same) for key in same[0]}
    return out


def ratios(table: dict[str, dict[str, dict[str, measure.Figures]]]) -> dict[str, float]:
    """jvpn over wireguard-go (and over OpenVPN, where named) of whatever was measured."""
    out: dict[str, float] = {}

    def ratio(
        key: str, wire_kind: str, name: str, figure: str, peer: str = "wireguard-go", own: str = "jvpn"
    ) -> None:
        try:
            ours, theirs = (table[wire_kind][system][name][figure] for system in (own, peer))
        except KeyError:
            return
        out[key] = round(ours / theirs, 3)

    for kind in WIRES:
        for way in ("up", "down"):
            ratio(f"ratio_tcp_{way}_{kind}", kind, f"tcp_{way}", "gbit_s")
            ratio(f"ratio_tcp_{way}_8_{kind}", kind, f"tcp_{way}_8", "gbit_s")
            ratio(f"ratio_openvpn_tcp_{way}_{kind}", kind, f"tcp_{way}", "gbit_s", peer="openvpn")
            ratio(f"ratio_suite2_tcp_{way}_{kind}", kind, f"tcp_{way}", "gbit_s", own="jvpn-suite2")
        ratio(f"ratio_tcp6_up_{kind}", kind, "tcp6_up", "gbit_s")
        ratio(f"ratio_pps_200_{kind}", kind, "udp_200", "pps")
        ratio(f"ratio_pps_1200_{kind}", kind, "udp_1200", "pps")
        ratio(f"ratio_cpu_per_gb_{kind}", kind, "tcp_up", "cpu_s_per_gb")
    for short in ("ratio_pps_200", "ratio_cpu_per_gb"):
        if f"{short}_gso" in out:
            out[short] = out[f"{short}_gso"]
    return out


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (default 5)")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--systems", default="", help="comma-separated; default: all")
    parser.add_argument("--wires", default=",".join(WIRES), help="comma-separated; default: gso,xdp")
    parser.add_argument(
        "--only", default=",".join(MEASUREMENTS), help="measurements, comma-separated; default: all"
    )
    given = parser.parse_args()
    if os.geteuid() != 0:
        print(
            "throughput: needs root: it makes network namespaces. Run this as root or with sudo.",
            file=sys.stderr,
        )
        return 77
    runs: list[dict[str, Any]] = []
    ciphers: dict[str, str] = {}
    try:
        for number in range(given.rounds):
            for kind in given.wires.split(","):
                systems = all_systems(PEERS, steering=kind == "xdp")
                for name in given.systems.split(",") if given.systems else systems:
                    ciphers[name], figures = one(kind, systems[name], given.only.split(","), given.seconds)
                    runs.append(
                        {"round": number, "wire": kind, "system": name, "at": time.time(), "figures": figures}
                    )
                    _say(runs[-1])
    except debian.NoPeer as error:
        print(f"throughput: {error}", file=sys.stderr)
        return 1
    table = medians(runs)
    found = ratios(table)
    if given.json:
        machine = {
            "kernel": platform.release().partition("-")[0],
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            **measure.data_plane(),
        }
        document = {**found, "medians": table, "ciphers": ciphers, "machine": machine, "runs": runs}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    print("\njvpn over wireguard-go unless another is named:")
    for key, value in found.items():
        print(f"  {key:32} {value:.2f}")
    return 0


def _say(run: dict[str, Any]) -> None:
    parts = []
    for name, figures in run["figures"].items():
        shown = next(iter(figures.items()))
        unit = {"gbit_s": "Gbit/s", "pps": "/s", "p50_ms": "ms"}[shown[0]]
        parts.append(f"{name} {shown[1]:,.2f} {unit}" if unit != "/s" else f"{name} {shown[1]:,.0f}/s")
        if "cpu_s_per_gb" in figures:
            parts[-1] += f" ({figures['cpu_s_per_gb']:.2f} s/GB)"
    print(f"{run['round']} {run['wire']:3} {run['system']:13} " + ", ".join(parts), flush=True)


if __name__ == "__main__":
    sys.exit(main())
