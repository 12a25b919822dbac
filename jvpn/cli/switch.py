"""`jvpn switch`: move a session to another path while the present one still works.

On a client DEVICE is the uplink to move to. On a gateway SESSION is the session whose client is asked to move; where
to is the client's choice.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from jvpn.cli.status import add_run_dir
from jvpn.observability.admin import ask

POLL_S = 0.01
TIMEOUT_S = 10.0


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "switch", help="move a session to another path (client: an uplink)", description=__doc__
    )
    parser.add_argument(
        "target",
        metavar="DEVICE|SESSION",
        help="client: an uplink; gateway: a session's id, or the digits it begins with",
    )
    add_run_dir(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when the session is on another path, or on that device; 1 when it is not, in time or at all."""
    begun = time.monotonic()
    answer = ask(args.run_dir, {"command": "switch", "device": args.target, "session": args.target})
    if "session" in answer:
        return _gateway(args, answer, begun)
    return _client(args, answer, begun)


def _milliseconds(begun: float) -> int:
    return round((time.monotonic() - begun) * 1000)


# At a client


def _client(args: argparse.Namespace, answer: dict[str, Any], begun: float) -> int:
    already = bool(answer["done"])
    while True:
        seen = ask(args.run_dir, {"command": "switching"})
        took_ms = _milliseconds(begun)
        if not seen["in_flight"] or took_ms > TIMEOUT_S * 1000:
            break
        time.sleep(POLL_S)
    switched = seen["active"] == args.target and not seen["in_flight"]
    if args.json:
        result = {"device": args.target, "switched": switched, "already": already, "took_ms": took_ms}
        print(json.dumps(result | {name: seen[name] for name in ("active", "state", "refused")}))
    elif already:
        print(f"the session is on {args.target} already")
    elif switched:
        print(f"the session is on {args.target}, after {took_ms} ms")
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


# At a gateway


def _gateway(args: argparse.Namespace, before: dict[str, Any], begun: float) -> int:
    session = str(before["session"])
    seen, took_ms = _watch(args.run_dir, before, begun)
    anew = seen["session"] != session
    switched = anew or seen["index"] not in (None, before["index"])
    if args.json:
        result = {"session": session, "switched": switched, "took_ms": took_ms}
        result["now"] = seen["session"]
        print(json.dumps(result | {name: seen[name] for name in ("path", "state", "read")}))
    elif anew:
        print(
            f"its client has shaken hands anew: session {seen['session']} is on {seen['path']}, after {took_ms} ms"
        )
    elif switched:
        print(f"session {session} is on {seen['path']}, after {took_ms} ms")
    if not switched:
        why = (
            "its client has read the wish and stays (TRANSPORT_SWITCH_DENIED in its events): it has no other uplink or "
            "gateway address that answers; give it one, or let it stay"
            if seen["read"]
            else "its client has not answered yet; it is asked again until it does"
        )
        where = seen["path"] or "no path"
        print(f"jvpn switch: session {session} is on {where}: {why}", file=sys.stderr)
    return 0 if switched else 1


def _watch(run_dir: Path, before: dict[str, Any], begun: float) -> tuple[dict[str, Any], int]:
    """How the session is once it has another index, or there is another in its place, or when the time is over."""
    session, peer = before["session"], before["peer"]
    while True:
        seen = ask(run_dir, {"command": "switching", "session": session, "peer": peer})
        took_ms = _milliseconds(begun)
        moved = seen["session"] != session or seen["index"] not in (None, before["index"])
        if (moved and seen["path"]) or took_ms > TIMEOUT_S * 1000:
            return seen, took_ms
        time.sleep(POLL_S)
