"""`jvpn sim run`: the protocol under a virtual clock and a network that misbehaves as a seed says, or as one row of
the failure matrix says; `jvpn sim list`: those rows."""

import argparse
import json
import os
import shutil
import sys
from typing import TYPE_CHECKING

from jvpn.cli import sim_rows

if TYPE_CHECKING:
    from jvpn.sim.many import Summary
    from jvpn.sim.run import Result

PROGRESS_EVERY = 10


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("sim", help="the deterministic simulator", description=__doc__)
    commands = parser.add_subparsers(dest="sim", metavar="COMMAND", required=True)
    run_parser = commands.add_parser("run", help="run seeds and report what must never happen")
    run_parser.add_argument(
        "--seeds", type=_positive, metavar="N", help="how many (default 200, or 20 of each scenario)"
    )
    run_parser.add_argument(
        "--seed", type=_natural, default=0, metavar="S", help="the first of them (default 0)"
    )
    run_parser.add_argument(
        "--scenario",
        metavar="ID",
        help="what happens in this scenario of the failure matrix (F2-up), in all of a row (F2) or in all",
    )
    run_parser.add_argument(
        "--jobs",
        type=_positive,
        default=len(os.sched_getaffinity(0)),
        metavar="J",
        help="processes (default: one a CPU)",
    )
    run_parser.add_argument("--json", action="store_true", help="print one JSON object")
    run_parser.set_defaults(run=run)
    list_parser = commands.add_parser("list", help="name the scenarios of the failure matrix")
    list_parser.set_defaults(run=sim_rows.list_all)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


def run(args: argparse.Namespace) -> int:
    """0; 1 when anything happened that must never happen."""
    if args.scenario:
        return sim_rows.run(args)
    seeds = args.seeds or 200
    # Both ends and the data plane come with it; no other command needs them.
    from jvpn.sim.many import Summary, run_all

    summary = Summary()
    shown = sys.stderr.isatty()
    for result in run_all(args.seed, seeds, args.jobs):
        summary.add(result)
        if shown and (summary.runs % PROGRESS_EVERY == 0 or result.code):
            failed = f", {len(summary.failed)} with violations" if summary.failed else ""
            print(f"\r{summary.runs} of {seeds} seeds{failed} ", end="", file=sys.stderr, flush=True)
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr)
    print(json.dumps(as_json(args.seed, summary)) if args.json else as_text(args.seed, summary))
    return 1 if summary.failed else 0


def as_json(first: int, summary: "Summary") -> dict[str, object]:
    return {
        "first_seed": first,
        "runs": summary.runs,
        "events": summary.steps,
        "datagrams": summary.datagrams,
        "faults": dict(sorted(summary.faults.items())),
        "faults_injected": summary.faults.total(),
        "violations": len(summary.failed),
        "by_code": dict(sorted(summary.violations.items())),
        "failed_seeds": summary.failed,
        "failures": [_failure(result) for result in summary.kept],
        "counts": dict(sorted(summary.counts.items())),
    }


def _failure(result: "Result") -> dict[str, object]:
    return {
        "seed": result.seed,
        "code": result.code,
        "text": result.text,
        "at_ms": result.at_ms,
        "again": result.again,
        "digest": result.digest,
    }


def as_text(first: int, summary: "Summary") -> str:
    from jvpn.sim.drawing import draw

    width = max(60, shutil.get_terminal_size((100, 24)).columns)
    counts = summary.counts
    lines = [
        f"runs        {summary.runs:,} (seeds {first} to {first + summary.runs - 1})",
        f"events      {summary.steps:,} steps, {summary.datagrams:,} datagrams, {counts['events']:,} told",
        f"payloads    {counts['offered']:,} offered, {counts['delivered']:,} delivered",
        f"watched     {counts['nonces']:,} nonces, {counts['unproven']:,} datagrams that prove nothing",
        f"faults      {summary.faults.total():,} injected",
    ]
    kinds = [f"{name.replace('_', ' ')} {number}" for name, number in sorted(summary.faults.items())]
    lines += ["            " + line for line in _filled(kinds, width - 12)]
    lines.append(f"violations  {len(summary.failed)}")
    for code, number in sorted(summary.violations.items()):
        lines.append(f"            {code} {number}")
    for result in summary.kept:
        lines += ["", *draw(result, width)]
    more = summary.failed[len(summary.kept) :]
    if more:
        lines += ["", *_filled([f"also failed: {more[0]}", *map(str, more[1:50])], width)]
    return "\n".join(lines)


def _filled(words: list[str], width: int) -> list[str]:
    """Words in lines, with commas between."""
    lines = [""]
    for number, word in enumerate(words):
        comma = "," if number < len(words) - 1 else ""
        if lines[-1] and len(lines[-1]) + len(word) + 2 > width:
            lines.append("")
        lines[-1] += f"{' ' if lines[-1] else ''}{word}{comma}"
    return lines if words else []
