"""`jvpn server`: run a gateway in the foreground."""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from jvpn.cli.keylog import add_keylog
from jvpn.cli.plans import DEFAULT_CONFIG, gateway_plan, policy_set
from jvpn.cli.saying import Voice
from jvpn.config import load_gateway
from jvpn.supervisor.process import serve


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("server", help="run a gateway", description=__doc__)
    parser.add_argument("-c", "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE")
    parser.add_argument(
        "--keep-dataplane",
        action="store_true",
        help="join the data plane that 'jvpn dataplane' runs, and leave it and its sessions running at the end",
    )
    add_keylog(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    # Before the configuration: without root its key file cannot be read, and that is not what is wrong.
    if os.geteuid() != 0:
        print("jvpn server: needs root (TUN, BPF, interfaces); start it as root", file=sys.stderr)
        return 1
    config = load_gateway(args.config)
    plan = replace(
        gateway_plan(config, str(args.config)), keep_dataplane=args.keep_dataplane, keylog=args.keylog
    )
    return serve(plan, Voice("jvpn server").say, lambda: policy_set(load_gateway(args.config), config))
