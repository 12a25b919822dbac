"""`jvpn sim list` and `jvpn sim run --scenario`: the rows of the failure matrix under many seeds."""

import argparse
import json
import shutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jvpn.sim.many import Summary

SEEDS = 20
#: Columns of an id.
_ID = 22


def list_all(_args: argparse.Namespace) -> int:
    from jvpn.sim.matrix.rows import SCENARIOS

    for scenario in SCENARIOS.values():
        print(f"{scenario.id:<{_ID}}{scenario.title}")
    return 0


def run(args: argparse.Namespace) -> int:
    """0; 1 when a scenario went otherwise than its row asks for; 2 when there is none of that name."""
    from jvpn.sim.many import Summary
    from jvpn.sim.matrix.rows import UnknownScenario, named, run_rows

    try:
        scenarios = named(args.scenario)
    except UnknownScenario as unknown:
        print(f"jvpn sim: {unknown}", file=sys.stderr)
        return 2
    summaries = {scenario.id: Summary() for scenario in scenarios}
    for result in run_rows(scenarios, args.seed, args.seeds or SEEDS, args.jobs):
        summaries[result.scenario].add(result)
    print(json.dumps(as_json(args.seed, summaries)) if args.json else as_text(args.seed, summaries))
    return 1 if any(summary.failed for summary in summaries.values()) else 0


def as_json(first: int, summaries: "dict[str, Summary]") -> dict[str, object]:
    return {
        "first_seed": first,
        "runs": sum(summary.runs for summary in summaries.values()),
        "violations": sum(len(summary.failed) for summary in summaries.values()),
        "scenarios": {
            name: {
                "runs": summary.runs,
                "events": summary.steps,
                "offered": summary.counts["offered"],
                "delivered": summary.counts["delivered"],
                "failed_seeds": summary.failed,
                "failures": [
                    {"seed": r.seed, "code": r.code, "text": r.text, "at_ms": r.at_ms, "again": r.again}
                    for r in summary.kept
                ],
            }
            for name, summary in summaries.items()
        },
    }


def as_text(first: int, summaries: "dict[str, Summary]") -> str:
    from jvpn.sim.drawing import draw
    from jvpn.sim.matrix.rows import SCENARIOS

    width = max(60, shutil.get_terminal_size((100, 24)).columns)
    lines = []
    for name, summary in summaries.items():
        good = summary.runs - len(summary.failed)
        lines.append(f"{name:<{_ID}}{good:>4} of {summary.runs:<5}{SCENARIOS[name].title}"[:width])
    for summary in summaries.values():
        for result in summary.kept[:1]:
            lines += ["", *draw(result, width)]
    failed = sum(len(summary.failed) for summary in summaries.values())
    return "\n".join([*lines, "", f"violations  {failed} (seeds from {first})"])
