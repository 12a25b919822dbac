"""`jvpn policy replay`: every decision of a recorded event stream is taken again; any difference is an error.

A stream carries its policies and, with each decision, all that it was taken from. What comes out otherwise now was
changed after it was written, or decided by another version of this program.
"""

import argparse
import json
import sys
from pathlib import Path

from jvpn.config.loader import read_policy
from jvpn.observability.redecide import Replay


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser("replay", help="take recorded decisions again", description=__doc__)
    parser.add_argument(
        "events",
        type=Path,
        nargs="+",
        metavar="EVENTS",
        help="event files; parts of one stream in their order",
    )
    parser.add_argument(
        "--policy",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a policy that decided before the stream begins; may be given again",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0; 1 when a decision differs, or a file cannot be read; 2 (PolicyError) when a policy cannot be used."""
    replay = Replay()
    for path in args.policy:
        policy, problems = read_policy(path)
        if policy is None:
            raise problems[0]
        replay.policies[policy.version] = policy
    found: list[tuple[Path, int, str, str]] = []
    for path in args.events:
        replay.begin_file()
        told = len(replay.differences)
        try:
            with path.open("rb") as lines:
                for line in lines:
                    replay.feed(line)
        except OSError as error:
            print(f"jvpn policy replay: {path}: {error.strerror}; name an event file", file=sys.stderr)
            return 1
        found += [(path, one.line, one.session_id, one.problem) for one in replay.differences[told:]]
    if args.json:
        names = ("file", "line", "session_id", "problem")
        rows = [dict(zip(names, (str(row[0]), *row[1:]), strict=True)) for row in found]
        print(json.dumps({"decisions": replay.decisions, "differences": rows}))
        return 1 if found else 0
    for path, line, session_id, problem in found:
        session = f"session {session_id}: " if session_id else ""
        print(f"{path}:{line}: {session}{problem}", file=sys.stderr)
    print(f"{replay.decisions} decisions taken again, {len(found)} differences")
    return 1 if found else 0
