"""Plots of what the benchmarks wrote: one SVG for each result file in a folder.

    .venv/bin/python benchmarks/plot.py benchmarks/results

Needs matplotlib (requirements-bench.lock), which script/bench installs.
"""

import argparse
import json
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

try:
    import matplotlib
except ModuleNotFoundError:
    sys.exit(
        "plot: matplotlib is missing. script/bench installs it; or: "
        ".venv/bin/pip install --no-deps -r requirements-bench.lock"
    )

matplotlib.use("svg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Colours that are told apart without red and green (Okabe and Ito); one for a system in every panel.
COLOURS = {
    "jvpn": "#0072b2",
    "jvpn-suite2": "#56b4e9",
    "wireguard-go": "#d55e00",
    "openvpn": "#999999",
    "wireguard-go+script": "#e69f00",
    "strongswan": "#009e73",
    "strongswan+script": "#cc79a7",
}
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
WIRES = {"gso": "plain veth: superpackets stay whole", "xdp": "native XDP: frames travel singly"}
VERDICTS = {"pass": "#0072b2", "redirect": "#56b4e9", "drop": "#d55e00"}
TRAFFIC = {
    "tcp_up": "TCP up",
    "tcp_down": "TCP down",
    "tcp_up_8": "TCP up,\n8 streams",
    "tcp_down_8": "TCP down,\n8 streams",
    "tcp6_up": "TCP up,\nIPv6 inside",
}
FAULTS = {
    "link_down": "link down, another path validated",
    "link_down_cold": "link down, another comes up at that moment",
    "cable": "cable pulled: no carrier, routes stay unless the kernel takes them",
    "blackhole": "both directions silent",
    "blackhole_up": "silent from client to gateway",
    "blackhole_down": "silent from gateway to client",
    "nat_rebind": "NAT rebinding",
    "loss_30": "30 % loss (the longest silence in 4 s)",
    "path_return": "the only path returns after 5 s of silence (from its return)",
    "path_return_link": "the only link comes up again after 5 s (from its return)",
    "voluntary": "chosen switch",
}
#: figure → its panel's title, and the measurements it is shown of.
PANELS: list[tuple[str, str, dict[str, str]]] = [
    ("gbit_s", "TCP, Gbit/s", TRAFFIC),
    ("pps", "UDP, packets received a second", {"udp_200": "200 bytes", "udp_1200": "1 200 bytes"}),
    ("p99_ms", "ping, 99th percentile, ms", {"ping_idle": "idle", "ping_loaded": "beside TCP"}),
    ("cpu_s_per_gb", "CPU seconds per GB, both ends", TRAFFIC),
]


def throughput(document: dict[str, Any]) -> Figure:
    """Wires side by side, figures below each other; bars are medians, dots the rounds."""
    wires = [wire for wire in WIRES if wire in document["medians"]]
    panels = [panel for panel in PANELS if _measured(document, panel[2])]
    figure, grid = plt.subplots(
        len(panels), len(wires), figsize=(6.5 * len(wires), 3.2 * len(panels)), squeeze=False, sharey="row"
    )
    for column, wire in enumerate(wires):
        for row, (key, title, names) in enumerate(panels):
            axes = grid[row][column]
            _bars(axes, document, wire, key, names)
            axes.set_title(f"{title}\n{WIRES[wire]}" if row == 0 else title, fontsize=10)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, ncols=len(labels), loc="lower center")
    return figure


def _measured(document: dict[str, Any], names: dict[str, str]) -> bool:
    return any(
        name in system
        for systems in document["medians"].values()
        for system in systems.values()
        for name in names
    )


def _bars(axes: Axes, document: dict[str, Any], wire: str, key: str, names: dict[str, str]) -> None:
    systems = document["medians"][wire]
    shown = [name for name in names if any(name in figures for figures in systems.values())]
    width = 0.8 / len(systems)
    for index, (system, figures) in enumerate(systems.items()):
        places = [place - 0.4 + width * (index + 0.5) for place in range(len(shown))]
        heights = [figures.get(name, {}).get(key, 0) for name in shown]
        axes.bar(
            places,
            heights,
            width * 0.92,
            color=COLOURS.get(system, "#cc79a7"),
            label=_label(document, system),
        )
        for place, name in zip(places, shown, strict=True):
            rounds = [
                run["figures"][name][key]
                for run in document["runs"]
                if (run["wire"], run["system"]) == (wire, system) and name in run["figures"]
            ]
            axes.plot([place] * len(rounds), rounds, ".", color="black", markersize=3)
    axes.set_xticks(range(len(shown)), [names[name] for name in shown], fontsize=8)
    _plain(axes, "y")


def _label(document: dict[str, Any], system: str) -> str:
    return f"{system} ({document['ciphers'][system]})" if system in document["ciphers"] else system


def steering(document: dict[str, Any]) -> Figure:
    """Every verdict on a hot key; the program beside a bare lookup on random ones."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6), width_ratios=(2, 1))
    hot = document["hot"]
    names = list(hot)[::-1]
    times = [hot[name]["ns"] for name in names]
    left.barh(names, times, color=[VERDICTS[hot[name]["verdict"]] for name in names])
    loop = hot[names[0]]["loop_ns"]
    left.axvline(loop, color="black", linewidth=1, linestyle=":")
    left.annotate(f" an empty program: {loop:g}", (loop, len(names) - 0.4), fontsize=8, annotation_clip=False)
    for place, taken in enumerate(times):
        left.annotate(f" {taken:g}", (taken, place), va="center", fontsize=8)
    for verdict, colour in VERDICTS.items():
        left.barh([names[0]], [0], color=colour, label=verdict)
    left.margins(x=0.12)
    figure.legend(fontsize=9, ncols=len(VERDICTS), loc="lower center")
    left.set_xlabel("ns per packet, the same packet each time")
    _plain(left, "x")
    random = document["random"]
    bars = {
        "bare lookup": random["lookup_ns"],
        "lookup and\na look at it": random["read_ns"],
        "steer.c": random["steer_ns"],
    }
    right.bar(list(bars), list(bars.values()), color=["#999999", "#999999", "#0072b2"])
    for place, taken in enumerate(bars.values()):
        right.annotate(f"{taken:g}", (place, taken), ha="center", va="bottom", fontsize=8)
    right.set_title(f"random ids, ns: {random['ratio_to_lookup']:.2f} × a bare lookup", fontsize=10)
    left.set_title(f"hot key, {document['sessions']:,} sessions in the map", fontsize=10)
    _plain(right, "y")
    return figure


def scaling(document: dict[str, Any]) -> Figure:
    """Total, and the share of the slowest and of the fastest client, over the number of clients."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    counts = sorted({run["workers"] for run in document["runs"]})
    for workers, colour in zip(counts, cycle(LINES), strict=False):
        runs = [run for run in document["runs"] if run["workers"] == workers]
        clients = [run["clients"] for run in runs]
        label = f"{workers} worker{'s' if workers > 1 else ''}"
        left.plot(clients, [run["gbit_s"] for run in runs], "o-", color=colour, label=label)
        right.plot(
            clients,
            [run["min_over_max"] for run in runs],
            "o-",
            color=colour,
            label=f"{label}: slowest over fastest",
        )
        right.plot(
            clients, [run["fairness"] for run in runs], "s:", color=colour, label=f"{label}: Jain's index"
        )
    ticks = sorted({run["clients"] for run in document["runs"]})
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xlabel("clients, one TCP stream each")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)
        _plain(axes, "y")
    left.set_title("all clients together, Gbit/s", fontsize=10)
    right.set_title("how evenly they share it (1: evenly)", fontsize=10)
    return figure


def recovery(document: dict[str, Any]) -> Figure:
    """A panel for each fault, a line for each system and round trip: every trial, with median and 99th percentile."""
    runs = [run for run in document["runs"] if run["traffic"] == "1khz"]
    faults = [fault for fault in FAULTS if any(run["fault"] == fault for run in runs)]
    rows = -(-len(faults) // 2)
    figure, grid = plt.subplots(rows, 2, figsize=(12, 2.1 * rows), squeeze=False, sharex=True)
    for fault, axes in zip(faults, grid.flat, strict=False):
        _trials(axes, [run for run in runs if run["fault"] == fault])
        axes.set_title(FAULTS[fault], fontsize=9)
        axes.set_xscale("log")
        axes.set_xlim(1, 10_000)
        _plain(axes, "x")
    for axes in grid.flat[len(faults) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("silence in the worse direction, ms; open: it had not ended when the trial did")
    return figure


def _trials(axes: Axes, runs: list[dict[str, Any]]) -> None:
    lines = sorted({(list(COLOURS).index(run["system"]), run["rtt_ms"], run["system"]) for run in runs})[::-1]
    for place, (_order, rtt_ms, system) in enumerate(lines):
        same = [run for run in runs if (run["system"], run["rtt_ms"]) == (system, rtt_ms)]
        for back in (True, False):
            gaps = [run["gap_ms"] for run in same if run["recovered"] is back]
            face = COLOURS[system] if back else "none"
            axes.scatter(
                gaps, [place] * len(gaps), s=16, facecolors=face, edgecolors=COLOURS[system], linewidths=0.8
            )
        gaps = sorted(run["gap_ms"] for run in same)
        axes.plot([gaps[len(gaps) // 2]], [place], "|", color="black", markersize=11)
    axes.set_yticks(range(len(lines)), [f"{system}, {rtt:g} ms" for _order, rtt, system in lines], fontsize=7)
    axes.set_ylim(-0.6, len(lines) - 0.4)


def _plain(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y" if grid == "y" else "x", linewidth=0.4)
    axes.set_axisbelow(True)


PLOTS: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "throughput": throughput,
    "steering": steering,
    "scaling": scaling,
    "recovery": recovery,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder",
        type=Path,
        help="with throughput.json, steering.json, scaling.json, recovery.json, or some of them",
    )
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    given = parser.parse_args()
    found = [name for name in PLOTS if (given.folder / f"{name}.json").exists()]
    if not found:
        print(
            f"plot: no result in {given.folder}: run script/bench, or a benchmark with --json",
            file=sys.stderr,
        )
        return 1
    for name in found:
        document = json.loads((given.folder / f"{name}.json").read_text())
        figure = PLOTS[name](document)
        machine = document["machine"]
        figure.text(0.99, 0.005, f"Linux {machine['kernel']}, {machine['cpus']} CPUs", ha="right", fontsize=7)
        figure.tight_layout(rect=(0, 0.04, 1, 1))
        target = given.folder / f"{name}.{given.format}"
        figure.savefig(target, dpi=110)
        print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
