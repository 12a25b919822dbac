"""`jvpn lab`: a volatile network in a box. Scenarios break it on purpose, and say what held and what did not.

A SCENARIO is a name from `jvpn lab list`, a name with parameters ('f2-blackhole[direction=up]'), a row of the failure
matrix (F2), a path to a YAML file, `short` or `all`. The lab needs a checkout of the project, and root.
"""

import argparse
import sys
from pathlib import Path

from jvpn.cli import lab_machines, lab_report, lab_run
from jvpn.cli.ending import ended_once

#: Of `jvpn.lab.backends`, which other commands need not load.
BACKENDS = ("netns", "vagrant")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "lab",
        help="a lab that breaks the network on purpose",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="lab", metavar="COMMAND", required=True)
    _add_list(commands)
    _add_run(commands)
    lab_report.add_parser(commands)
    lab_machines.add_parsers(commands)


def _add_list(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("list", help="name the scenarios, with their rows and parameters")
    parser.add_argument("--steps", action="store_true", help="name what a scenario's timeline can do instead")
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    parser.set_defaults(run=lab_run.list_all)


def _add_run(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "run",
        help="run scenarios and write a report",
        description="Exit status: 0 all passed, 1 one did not, 2 no such scenario or a mistake in its file.",
    )
    parser.add_argument("scenarios", nargs="+", metavar="SCENARIO")
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0], help="default %(default)s")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default lab-report/, the time)"
    )
    parser.add_argument("--pcap", action="store_true", help="keep captures of the router's interfaces")
    parser.add_argument("--keep-going", action="store_true", help="run the others too when one does not pass")
    parser.add_argument(
        "--time-factor",
        type=_factor,
        default=1.0,
        metavar="N",
        help="on a machine that is N times slower, or busy: upper limits on times, and intervals of probes "
        "and floors of quality in its policy, are N times as long",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object; what happens is told on stderr"
    )
    parser.set_defaults(run=run)


def _factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 1 <= factor <= 1000:
        raise argparse.ArgumentTypeError(f"{text} is not a number within 1 and 1000")
    return factor


def run(args: argparse.Namespace) -> int:
    """0; 1 when a scenario did not pass; 130 interrupted. Raises ScenarioError."""
    try:
        with ended_once():
            return lab_run.run(args)
    except KeyboardInterrupt:
        print("\ninterrupted; what the lab had made is gone", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who read along has gone, which is nothing that was to be written
        raise
    except OSError as refused:
        print(
            f"jvpn lab run: cannot write what came of it: {refused}; name another folder with --out",
            file=sys.stderr,
        )
        return 1
