"""`jvpn switch`: move the client's session to another uplink while the present one still works."""

import argparse
import json
import sys
import time
from typing import Any

from jvpn.cli.status import add_run_dir
from jvpn.observability.admin import ask

POLL_S = 0.01
TIMEOUT_S = 10.0


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "switch", help="move the client's session to another uplink", description=__doc__
    )
    parser.add_argument("device", metavar="DEVICE", help="an uplink of the client")
    add_run_dir(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when DATA goes over the device; 1 when it does not, in time or at all."""
    begun = time.monotonic()
    answer = ask(args.run_dir, {"command": "switch", "device": args.device})
    already = bool(answer["done"])
    while True:
        seen = ask(args.run_dir, {"command": "switching"})
        took_ms = round((time.monotonic() - begun) * 1000)
        if not seen["in_flight"] or took_ms > TIMEOUT_S * 1000:
            break
        time.sleep(POLL_S)
    switched = seen["active"] == args.device and not seen["in_flight"]
    if args.json:
        result = {"device": args.device, "switched": switched, "already": already, "took_ms": took_ms}
        print(json.dumps(result | {name: seen[name] for name in ("active", "state", "refused")}))
    elif already:
        print(f"the session is on {args.device} already")
    elif switched:
        print(f"the session is on {args.device}, after {took_ms} ms")
    if not switched:
        print(f"jvpn switch: the session is on {seen['active'] or 'no path'}: {_why(seen)}", file=sys.stderr)
    return 0 if switched else 1


def _why(seen: dict[str, Any]) -> str:
    if seen["in_flight"]:
        return "the gateway has not answered yet; the client goes on trying"
    if seen["refused"] == "SWITCH_RATE_LIMITED":
        return (
            "the gateway's policy allows no further switch yet (SWITCH_RATE_LIMITED); try again in a moment"
        )
    return f"the gateway refused: {seen['refused']}" if seen["refused"] else "the path was lost meanwhile"
