"""`jvpn client`: run a client in the foreground."""

import argparse
import os
import sys
from pathlib import Path

from jvpn.agent.process import connect
from jvpn.cli.plans import client_plan
from jvpn.config import load_client

DEFAULT_CONFIG = Path("/etc/jvpn/client.yaml")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("client", help="run a client", description=__doc__)
    parser.add_argument("-c", "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    plan = client_plan(load_client(args.config), str(args.config))
    if os.geteuid() != 0:
        print("jvpn client: needs root (TUN, device-bound sockets); start it as root", file=sys.stderr)
        return 1
    return connect(plan, lambda text: print(f"jvpn client: {text}", flush=True))
