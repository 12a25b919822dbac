"""`jvpn dataplane`: run a gateway's data plane as a service of its own, for `jvpn server --keep-dataplane` to join."""

import argparse
import os
import sys
from pathlib import Path

import msgspec

from jvpn.cli.plans import DEFAULT_CONFIG, gateway_plan
from jvpn.config import load_gateway
from jvpn.holder.estate import EstateError
from jvpn.holder.inventory import HolderPlan
from jvpn.holder.succession import ask, request
from jvpn.observability.admin import make_run_dir


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("dataplane", help="run a gateway's data plane", description=__doc__)
    parser.add_argument("-c", "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE")
    parser.add_argument(
        "--hand-over",
        action="store_true",
        help="have the data plane that runs become this version of the program, with its sockets, TUN and sessions",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Become the holder: its memory is not to carry what read the configuration. 1 when that is not to be."""
    if os.geteuid() != 0:
        print("jvpn dataplane: needs root (TUN, sockets, workers); start it as root", file=sys.stderr)
        return 1
    plan = gateway_plan(load_gateway(args.config), str(args.config))
    holder_plan = plan.for_holder(plan.workers)
    if args.hand_over:
        return _hand_over(plan.run_dir, holder_plan)
    make_run_dir(plan.run_dir)
    described = msgspec.json.encode(holder_plan).decode()
    os.execv(sys.executable, [sys.executable, "-m", "jvpn.holder.process", described])


def _hand_over(run_dir: Path, plan: HolderPlan) -> int:
    try:
        taken = ask(run_dir, request(plan, sys.executable))
    except EstateError as error:
        print(f"jvpn dataplane: {error}", file=sys.stderr)
        return 1
    when = "one by one" if taken.supervised else "one by one once a supervisor is at work"
    print(
        f"the data plane (holder {taken.pid}) is of version {taken.version} now; "
        f"its {taken.workers} workers follow {when}"
    )
    return 0
