"""`jvpn dataplane`: run a gateway's data plane as a service of its own, for `jvpn server --keep-dataplane` to join."""

import argparse
import os
import sys
from pathlib import Path

import msgspec

from jvpn.cli.plans import gateway_plan
from jvpn.cli.server import DEFAULT_CONFIG
from jvpn.config import load_gateway
from jvpn.observability.admin import make_run_dir


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("dataplane", help="run a gateway's data plane", description=__doc__)
    parser.add_argument("-c", "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Become the holder: its memory is not to carry what read the configuration. 1 without root."""
    if os.geteuid() != 0:
        print("jvpn dataplane: needs root (TUN, sockets, workers); start it as root", file=sys.stderr)
        return 1
    plan = gateway_plan(load_gateway(args.config), str(args.config))
    make_run_dir(plan.run_dir)
    holder_plan = msgspec.json.encode(plan.for_holder(plan.workers)).decode()
    os.execv(sys.executable, [sys.executable, "-m", "jvpn.holder.process", holder_plan])
