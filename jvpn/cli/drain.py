"""`jvpn drain`: send the clients of this gateway to the other nodes of its fleet, without losing a packet.

From then on this node takes no session; its clients are asked to go, some at a time, and who stays is asked again. The
command waits until none is left. The node goes on draining after that, until it is stopped or told to --undo.
"""

import argparse
import json
import sys
import time
from typing import Any, Final

from jvpn.cli.peer import operator
from jvpn.cli.status import add_run_dir, drain_text
from jvpn.observability.admin import ask
from jvpn.supervisor.node_drain import DEFAULT_PER_S

POLL_S: Final = 0.2
#: Progress is said at most so often.
SAY_S: Final = 1.0
TIMEOUT_S: Final = 60.0


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "drain", help="send a gateway's clients to the other nodes of its fleet", description=__doc__
    )
    parser.add_argument("node", metavar="NODE", nargs="?", help="the name of this node, as a safeguard")
    parser.add_argument("--undo", action="store_true", help="take sessions again")
    parser.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT_S,
        metavar="S",
        help="how many seconds to wait until no session is left (default %(default)g)",
    )
    parser.add_argument(
        "--rate",
        type=int,
        default=DEFAULT_PER_S,
        metavar="N",
        help="sessions that are asked in a second (default %(default)s)",
    )
    add_run_dir(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when no session with a path is left; 1 when some are after --timeout, or (AdminError) nobody can take them."""
    request = {"node": args.node or "", "by": operator()}
    if args.undo:
        answer = ask(args.run_dir, {"command": "undrain", **request})
        print(json.dumps(answer) if args.json else f"{answer['undone']} takes sessions again")
        return 0
    ask(args.run_dir, {"command": "drain", "per_s": args.rate, **request})
    seen = _wait(args)
    if args.json:
        print(json.dumps(seen))
    done = seen["announced"] and not seen["left"]
    if not done:
        print(_why(seen), file=sys.stderr)
    elif not args.json:
        print(_done(seen))
    return 0 if done else 1


def _wait(args: argparse.Namespace) -> dict[str, Any]:
    """How it is once nobody is left, or when the time is over; what changes is said meanwhile."""
    until, said, say_at = time.monotonic() + args.timeout, "", 0.0
    while True:
        seen: dict[str, Any] = ask(args.run_dir, {"command": "draining"})
        at = time.monotonic()
        if (seen["announced"] and not seen["left"]) or at >= until:
            return seen
        line = f"{seen['moved']} moved, {seen['left']} left"
        if not args.json and line != said and at >= say_at:
            print(line, flush=True)
            said, say_at = line, at + SAY_S
        time.sleep(POLL_S)


def _done(seen: dict[str, Any]) -> str:
    away = (
        f"; {seen['away']} have no path just now, and are taken by the node that their clients come back to"
        if seen["away"]
        else ""
    )
    moved = f"{seen['moved']} session{'s' * (seen['moved'] != 1)}"
    return f"{seen['node_id']} is empty: {moved} moved to {', '.join(seen['nodes'])}{away}"


def _why(seen: dict[str, Any]) -> str:
    if not seen["announced"]:
        return (
            "jvpn drain: etcd has not taken the news yet, so no client was asked; has it a quorum? "
            "The node goes on trying; jvpn drain --undo ends that"
        )
    lines = [f"jvpn drain: {drain_text(seen)}. The node goes on asking; jvpn drain --undo ends that."]
    if not seen["nodes"]:
        lines.append("No other node of the fleet takes sessions just now.")
    for one in seen["staying"]:
        lines.append(f"  {one['session_id']}  {one['peer']}, {one['path']}: {_why_it_stays(one)}")
    if len(seen["staying"]) < seen["left"]:
        lines.append(f"  and {seen['left'] - len(seen['staying'])} more")
    return "\n".join(lines)


def _why_it_stays(one: dict[str, Any]) -> str:
    if not one["asked"]:
        return "not asked yet"
    if not one["read"]:
        return "its client has not answered yet"
    return (
        f"asked {one['asked']} times, and has not come to another node: its client may know none or reach none (are "
        "all named under gateway.endpoints there?), or they did not take it (counters of jvpn status at those nodes)"
    )
