"""`jvpn sessions`: the sessions of a running gateway."""

import argparse
import json
from typing import Any

from jvpn.cli.status import add_run_dir
from jvpn.cli.text import columns, duration, version_text
from jvpn.observability.admin import ask


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("sessions", help="the sessions of a gateway", description=__doc__)
    add_run_dir(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0, or 1 (AdminError) when no gateway runs there."""
    answer = ask(args.run_dir, {"command": "sessions"})
    print(json.dumps(answer, indent=2) if args.json else sessions_text(answer))
    return 0


def sessions_text(answer: list[dict[str, Any]]) -> str:
    if not answer:
        return "no sessions"
    rows = [
        [
            "session",
            "peer",
            "state",
            "version",
            "for",
            "policy",
            "path",
            "inner",
            "received",
            "sent",
            "last switch",
        ]
    ]
    for session in answer:
        path = "none"
        if session["transport"] is not None:
            path = f"{session['transport']} {session['source']} #{session['index']}"
        rows.append(
            [
                session["session_id"],
                session["peer"],
                session["state"],
                version_text(session["state_version"]),
                duration(session["age_ms"]),
                session["policy"],
                path,
                session["inner_addresses"][0].partition("/")[0],
                f"{session['rx_bytes']:,}",
                f"{session['tx_bytes']:,}",
                _switch(session["last_switch"]),
            ]
        )
    return "\n".join(columns(rows))


def _switch(last: dict[str, Any] | None) -> str:
    if last is None:
        return "never"
    gap = "" if last["gap_ms"] is None else f", silent {last['gap_ms']:.0f} ms"
    return f"{last['reason_code']} {duration(last['ago_ms'])} ago{gap}"
