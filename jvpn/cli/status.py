"""`jvpn status`: what the gateway or client of a run directory is doing."""

import argparse
import json
from pathlib import Path
from typing import Any

from jvpn.cli.text import columns, duration, version_text
from jvpn.observability.admin import ask

DEFAULT_RUN_DIR = Path("/run/jvpn")
STANDBY = (
    "  standby: not the endpoint of the session's owner; a node of a fleet answers no probes before it has the\n"
    "  session, so whether it is there shows when it is asked"
)


def add_run_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=DEFAULT_RUN_DIR,
        metavar="DIR",
        help="run_dir of the configuration (default %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "status", help="what a running gateway or client is doing", description=__doc__
    )
    add_run_dir(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0, or 1 (AdminError) when nothing runs there."""
    answer = ask(args.run_dir, {"command": "status"})
    if args.json:
        print(json.dumps(answer, indent=2))
    else:
        print(gateway_text(answer) if "node_id" in answer else client_text(answer))
    return 0


def gateway_text(answer: dict[str, Any]) -> str:
    lines = [
        *keylog_lines(answer),
        f"gateway   {answer['node_id']} (jvpn {answer['version']}), up {duration(answer['uptime_ms'])}",
        f"listens   {', '.join(answer['listeners'])}",
        f"steering  {answer['steering']}",
    ]
    lines += [f"  {name:<8}{mode}" for name, mode in sorted(answer["xdp_mode"].items())]
    lines += [f"  ({' '.join(note.split())})" for note in answer.get("steering_notes", [])]
    lines += [f"offload   {answer['offload']}"]
    lines += [f"store     {answer['store']}"] if answer.get("store") else []
    lines += fleet_lines(answer["fleet"]) if answer.get("fleet") else []
    lines += [f"sessions  {answer['sessions']}", f"policy    {answer['policy']}"]
    lines += [f"draining  {drain_text(answer['drain'])}"] if answer.get("drain") else []
    lines.append("")
    rows = [["worker", "pid", "cpu", "state", "sessions", "delivered", "sent"]]
    for worker in answer["workers"]:
        count = worker["counters"]
        rows.append(
            [
                str(worker["slot"]),
                str(worker["pid"]),
                "any" if worker["cpu"] < 0 else str(worker["cpu"]),
                worker["state"],
                str(worker["sessions"]),
                f"{count.get('delivered_packets', 0):,}",
                f"{count.get('sent_packets', 0):,}",
            ]
        )
    lines += columns(rows)
    return "\n".join([*lines, *counter_lines(answer["counters"])])


def keylog_lines(answer: dict[str, Any]) -> list[str]:
    """Above everything else: that the sessions can be read."""
    return [f"WARNING   {answer['keylog']}", ""] if answer.get("keylog") else []


def fleet_lines(fleet: dict[str, Any]) -> list[str]:
    if fleet["nodes"] is None:
        nodes = "not heard of the other nodes yet"
    else:
        nodes = ", ".join(f"{n} (draining)" if n in fleet["draining"] else n for n in fleet["nodes"])
    left = f"for {fleet['lease_ms'] / 1000:.1f} s" if fleet["lease_ms"] else "ended: nothing is carried"
    routes = f"{fleet['routes']} in the kernel, one for each inner address of the other gateways' clients"
    return [f"nodes     {nodes}", f"lease     {left}", f"routes    {routes}"]


def drain_text(drain: dict[str, Any]) -> str:
    """How far the drain of a node is, in one line."""
    where = ", ".join(drain["nodes"]) or "no other node"
    begun = f"for {duration(drain['for_ms'])}, to {where}"
    if not drain["announced"]:
        begun = "its fleet has not heard of it yet"
    away = f", {drain['away']} without a path" if drain["away"] else ""
    return f"{begun}: {drain['moved']} moved, {drain['left']} left{away}"


def client_text(answer: dict[str, Any]) -> str:
    session = answer["session"] or "none"
    lines = [
        *keylog_lines(answer),
        f"session   {session}",
        f"state     {answer['state']} at version {version_text(answer['state_version'])}",
        f"active    {answer['active'] or 'no path'}",
        f"policy    {policy_text(answer)}",
        f"offload   {answer['offload']}",
        "",
    ]
    heads = ["path", "state", "index", "rtt ms", "loss", "last answer", "gateway"]
    lines += columns([heads, *map(path_row, answer["paths"])])
    if any(path["state"] == "standby" for path in answer["paths"]):
        lines.append(STANDBY)
    return "\n".join([*lines, *counter_lines(answer["counters"])])


def path_row(path: dict[str, Any]) -> list[str]:
    # Of a path that nobody is to answer on, a loss of 100 % would say something else than it means.
    standby = path["state"] == "standby"
    return [
        path["name"],
        path["state"],
        "" if path["index"] is None else str(path["index"]),
        "" if path["rtt_ms"] is None else f"{path['rtt_ms']:.1f}",
        "" if path["loss"] is None or standby else f"{path['loss']:.0%}",
        "never" if path["last_ack_ago_ms"] is None else f"{duration(path['last_ack_ago_ms'])} ago",
        path["source"] or "",
    ]


def policy_text(answer: dict[str, Any]) -> str:
    given, asked = answer["policy"], answer["asked_policy"]
    if given and asked and given.partition("@")[0] != asked:
        return f"{given}, not {asked} as asked for: the gateway has none of that name, or not for this client"
    return given or "none yet"


def counter_lines(counters: dict[str, int]) -> list[str]:
    """Every counter that is not zero, by name."""
    if not counters:
        return []
    width = max(map(len, counters))
    return ["", "counters", *(f"  {name:<{width}}  {counters[name]:>14,}" for name in sorted(counters))]
