"""What the runs of recovery.py come to: distributions by system, round trip, fault and traffic; and the keys."""

from typing import Any

import numpy as np

Run = dict[str, Any]
Table = dict[str, dict[str, dict[str, dict[str, dict[str, Any]]]]]
PARTS = {"p50": 50, "p90": 90, "p99": 99, "max": 100}


def spread(values: list[float]) -> dict[str, float]:
    """p50, p90, p99 and max."""
    return {name: round(float(np.percentile(values, share)), 1) for name, share in PARTS.items()}


def table(runs: list[Run]) -> Table:
    """system → RTT → fault → traffic → figures."""
    out: Table = {}
    for run in runs:
        place = (
            out.setdefault(run["system"], {})
            .setdefault(f"{run['rtt_ms']:g}", {})
            .setdefault(run["fault"], {})
        )
        if run["traffic"] not in place:
            key = _key(run)
            place[run["traffic"]] = _figures([other for other in runs if _key(other) == key])
    return out


def _key(run: Run) -> tuple[Any, ...]:
    return run["system"], run["rtt_ms"], run["fault"], run["traffic"]


def _figures(same: list[Run]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "trials": len(same),
        "gap_ms": spread([run["gap_ms"] for run in same]),
        "before_ms": spread([run["before_ms"] for run in same]),
        "handshakes": sum(run["handshakes"] for run in same),
        "not_recovered": sum(not run["recovered"] for run in same),
    }
    for name in ("lost", "late", "lost_before"):
        if name in same[0]:
            found[name] = {
                "total": sum(run[name] for run in same),
                "p50": float(np.median([run[name] for run in same])),
                "max": max(run[name] for run in same),
            }
    for name in ("detect_ms", "reattach_ms"):
        values = [run[name] for run in same if name in run]
        if values:
            found[name] = spread(values)
    return found


def keys(runs: list[Run], system: str, rtt_ms: float) -> dict[str, Any]:
    """The figures by which one system is judged at one round trip; None for what was not measured."""
    own = [run for run in runs if run["system"] == system and run["rtt_ms"] == rtt_ms]

    def p99(*faults: str, traffic: str = "1khz") -> float | None:
        each = [
            [run["gap_ms"] for run in own if run["fault"] == fault and run["traffic"] == traffic]
            for fault in faults
        ]
        return max((spread(values)["p99"] for values in each if values), default=None)

    def lost(*faults: str) -> int | None:
        values = [run["lost"] for run in own if run["fault"] in faults and "lost" in run]
        return sum(values) if values else None

    deaths = ("blackhole", "blackhole_up", "blackhole_down")
    return {
        "rtt_ms": rtt_ms,
        "link_down_p50_ms": _p50(own, "link_down"),
        "link_down_p99_ms": p99("link_down"),
        "link_down_lost": lost("link_down"),
        "link_down_cold_p99_ms": p99("link_down_cold"),
        "link_down_cold_lost": lost("link_down_cold"),
        "blackhole_p99_ms": p99(*deaths),
        "blackhole_lost": lost(*deaths),
        "nat_rebind_p99_ms": p99("nat_rebind"),
        "nat_rebind_lost": lost("nat_rebind"),
        "silent_client_p99_ms": p99("link_down", *deaths, "nat_rebind", traffic="silent"),
        "path_return_p99_ms": p99("path_return"),
        "path_return_link_p99_ms": p99("path_return_link"),
        "tcp_stall_ms": p99("link_down", *deaths, "nat_rebind", traffic="tcp"),
        "loss_30_lost": lost("loss_30"),
        "lost_on_voluntary_switch": lost("voluntary"),
        "new_handshakes": sum(run["handshakes"] for run in own) if own else None,
    }


def _p50(own: list[Run], fault: str) -> float | None:
    values = [run["gap_ms"] for run in own if run["fault"] == fault and run["traffic"] == "1khz"]
    return spread(values)["p50"] if values else None


def rows(found: Table) -> list[str]:
    """The table as Markdown: a line for each system, fault, traffic and round trip."""
    lines = [
        "| fault | traffic | RTT ms | system | trials | p50 | p90 | p99 | max | lost | late | not back |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    flat = [
        (fault, traffic, float(rtt), system, figures)
        for system, rtts in found.items()
        for rtt, faults in rtts.items()
        for fault, kinds in faults.items()
        for traffic, figures in kinds.items()
    ]
    for fault, traffic, rtt, system, figures in sorted(flat, key=lambda row: row[:4]):
        gaps = " | ".join(f"{figures['gap_ms'][part]:.0f}" for part in PARTS)
        lost, late = (figures[name]["total"] if name in figures else "" for name in ("lost", "late"))
        lines.append(
            f"| {fault} | {traffic} | {rtt:g} | {system} | {figures['trials']} | {gaps} | {lost} | {late} "
            f"| {figures['not_recovered'] or ''} |"
        )
    return lines
