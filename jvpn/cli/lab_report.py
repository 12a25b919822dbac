"""`jvpn lab report`: the report of earlier runs, written again."""

import argparse
import sys
from pathlib import Path


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "report",
        help="write the report of earlier runs again",
        description="Reads every result.json in FOLDER and below it, and writes report.md, report.html and plots/ "
        "there, as `jvpn lab run` does: after results were added or taken out, or by a later version.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0; 1 when there is nothing to report or it cannot be read or written."""
    from jvpn.cli import lab_run
    from jvpn.lab.report import write
    from jvpn.lab.report.again import results_in
    from jvpn.lab.scenario.result import ResultError

    try:
        results = results_in(args.folder)
        write(results, args.folder)
    except (ResultError, OSError) as refused:
        print(f"jvpn lab report: {refused}", file=sys.stderr)
        return 1
    lab_run.say_report(results, args.folder, as_json=args.json)
    return 0
