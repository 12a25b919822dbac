"""`jvpn timeline`: a session's life, from event files alone: the gateway's, the client's or both together."""

import argparse
import shutil
import sys
from pathlib import Path

from jvpn.observability.timeline import TimelineError, build, read
from jvpn.observability.verify import audit_file

DEFAULT_EVENTS = Path("/var/log/jvpn/events.jsonl")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("timeline", help="a session's life, from its events", description=__doc__)
    parser.add_argument(
        "session", nargs="?", help="first digits of a SessionID; not needed where there is one only"
    )
    parser.add_argument(
        "--events",
        type=Path,
        action="append",
        metavar="FILE",
        help=f"an event file; may be given again, for the other end's (default {DEFAULT_EVENTS})",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--width", type=int, default=0, help="columns (default: the terminal's)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0; 1 when the session is not there or the stream breaks a rule that the auditor knows."""
    files = args.events or [DEFAULT_EVENTS]
    lines: list[bytes] = []
    for path in files:
        try:
            lines += path.read_bytes().splitlines()
        except OSError as error:
            print(f"jvpn timeline: {path}: {error.strerror}; name the file with --events", file=sys.stderr)
            return 1
    try:
        timeline = build(read(lines), args.session)
    except TimelineError as error:
        print(f"jvpn timeline: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(timeline.to_json())
    else:
        width = args.width or shutil.get_terminal_size((100, 24)).columns
        print(timeline.render_text(max(40, width), color=sys.stdout.isatty()))
    findings = [(path, finding) for path in files for finding in audit_file(path)]
    for path, finding in findings:
        print(f"{path}: {finding}", file=sys.stderr)
    return 1 if findings else 0
