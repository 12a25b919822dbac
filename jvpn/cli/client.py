"""`jvpn client`: run a client in the foreground."""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from jvpn.agent.process import connect
from jvpn.cli.client_plans import client_plan
from jvpn.cli.keylog import add_keylog
from jvpn.config import load_client

DEFAULT_CONFIG = Path("/etc/jvpn/client.yaml")


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        default=DEFAULT_CONFIG,
        metavar="FILE",
        help="the client's configuration (default %(default)s)",
    )


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("client", help="run a client", description=__doc__)
    add_config(parser)
    add_keylog(parser)
    parser.set_defaults(run=run)


def not_root(command: str) -> bool:
    """Says so when it is so."""
    if os.geteuid() == 0:
        return False
    print(
        f"jvpn {command}: needs root (TUN, device-bound sockets, routes); start it as root", file=sys.stderr
    )
    return True


def run(args: argparse.Namespace) -> int:
    # Before the configuration: without root its key file cannot be read, and that is not what is wrong.
    if not_root("client"):
        return 1
    plan = replace(client_plan(load_client(args.config)), keylog=args.keylog)
    return connect(plan, lambda text: print(f"jvpn client: {text}", flush=True))
