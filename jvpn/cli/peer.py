"""`jvpn peer`: the configured peers of a running gateway, and what an operator may do for one of them."""

import argparse
import json
import os
import pwd
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from jvpn.cli.status import add_run_dir
from jvpn.cli.text import columns, duration
from jvpn.observability.admin import ask

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: A client's clock that is ahead by no more is not worth a word.
AHEAD_MS = 1_000


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("peer", help="the configured peers of a gateway", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    show = verbs.add_parser("show", help="who they are, and when they last shook hands")
    show.add_argument("peer", metavar="NAME", nargs="?", default="", help="one of them, in full")
    show.set_defaults(run=run_show)
    reset = verbs.add_parser(
        "reset-clock",
        help="let a peer shake hands whose clock has gone back",
        description="Forgets the newest handshake timestamp of a peer, for a client that has lost its own and whose "
        "clock is behind: its handshakes are refused as stale until its clock has caught up.",
    )
    reset.add_argument("peer", metavar="NAME")
    reset.set_defaults(run=run_reset_clock)
    release = verbs.add_parser(
        "release-address",
        help="give a peer's inner address back to the pool",
        description="Frees the inner addresses that a peer without a session was given out of the pool, for others. "
        "Its next session gets what is free then.",
    )
    release.add_argument("peer", metavar="NAME")
    release.set_defaults(run=run_release_address)
    for verb in (show, reset, release):
        add_run_dir(verb)


def run_show(args: argparse.Namespace) -> int:
    """0, or 1 (AdminError) when no gateway runs there or no peer has that name."""
    answer = ask(args.run_dir, {"command": "peers", "peer": args.peer})
    if args.json:
        print(json.dumps(answer[0] if args.peer else answer, indent=2))
    elif args.peer:
        print(peer_text(answer[0], time.time_ns() // 1000))
    else:
        print(peers_text(answer))
    return 0


def run_reset_clock(args: argparse.Namespace) -> int:
    """0, or 1 (AdminError) when no peer has that name or the store cannot be written."""
    answer = ask(args.run_dir, {"command": "reset-clock", "peer": args.peer, "by": operator()})
    if args.json:
        print(json.dumps(answer))
    elif answer["forgot_us"] is None:
        print(f"{args.peer} had no handshake timestamp")
    else:
        when = clock_text(answer["forgot_us"])
        print(
            f"forgot that {args.peer} last shook hands at {when}: its next handshake counts, whatever its clock says"
        )
    return 0


def run_release_address(args: argparse.Namespace) -> int:
    """0, or 1 (AdminError) when the peer has a session, or its addresses are not out of the pool."""
    answer = ask(args.run_dir, {"command": "release-address", "peer": args.peer})
    if args.json:
        print(json.dumps(answer))
    elif answer["released"]:
        print(f"{args.peer} has given back {', '.join(answer['released'])}")
    else:
        print(f"{args.peer} had no address out of the pool")
    return 0


def operator() -> str:
    """Who asks, for the log: the login behind sudo, else the user."""
    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def peers_text(answer: list[dict[str, Any]]) -> str:
    if not answer:
        return "no peers"
    rows = [["peer", "public key", "inner", "last handshake", "stale INITs", "sessions"]]
    rows += [
        [
            peer["name"],
            peer["public_key"],
            first_address(peer),
            clock_text(peer["last_handshake_us"]),
            f"{peer['stale_inits']:,}",
            str(len(peer["sessions"])),
        ]
        for peer in answer
    ]
    return "\n".join(columns(rows))


def peer_text(peer: dict[str, Any], now_us: int) -> str:
    last_us = peer["last_handshake_us"]
    last = clock_text(last_us) + ("" if last_us is None else " by the client's clock")
    if last_us is not None and last_us - now_us > AHEAD_MS * 1000:
        last += f", {duration((last_us - now_us) / 1000)} ahead of the clock here"
    return "\n".join(
        [
            f"peer            {peer['name']}",
            f"public key      {peer['public_key']}",
            f"addresses       {addresses_text(peer)}",
            f"policy          {peer['policy']}",
            f"last handshake  {last}",
            f"stale INITs     {peer['stale_inits']:,} since the gateway started",
            f"sessions        {', '.join(peer['sessions']) or 'none'}",
        ]
    )


def first_address(peer: dict[str, Any]) -> str:
    """Of its inner addresses; - for none."""
    inner = [*peer["addresses"], *peer["pool_addresses"], "-"]
    return str(inner[0]).partition("/")[0]


def addresses_text(peer: dict[str, Any]) -> str:
    if peer["addresses"]:
        return ", ".join(peer["addresses"])
    pooled = ", ".join(peer["pool_addresses"])
    return f"{pooled} (out of the pool)" if pooled else "none yet: its first session gets one out of the pool"


def clock_text(timestamp_us: int | None) -> str:
    """A client's timestamp as a date; clocks that say nonsense as the number they say."""
    if timestamp_us is None:
        return "never"
    try:
        return f"{EPOCH + timedelta(microseconds=timestamp_us):%Y-%m-%d %H:%M:%S} UTC"
    except OverflowError:
        return f"{timestamp_us} us after 1970"
