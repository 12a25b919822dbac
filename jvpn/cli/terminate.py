"""`jvpn terminate`: end a session at the gateway. Its client is told and does not come back by itself."""

import argparse
import json

from jvpn.cli.status import add_run_dir
from jvpn.observability.admin import ask


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("terminate", help="end a session at the gateway", description=__doc__)
    parser.add_argument("session", metavar="SESSION", help="a session's id, or the digits it begins with")
    add_run_dir(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0, or 1 (AdminError) when no session or more than one begins so."""
    answer = ask(args.run_dir, {"command": "terminate", "session": args.session})
    print(json.dumps(answer) if args.json else f"terminated session {answer['terminated']}")
    return 0
