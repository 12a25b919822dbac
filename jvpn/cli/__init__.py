"""The command line: `jvpn COMMAND`; one file for each command.

Exit status: 0 done, 1 it failed (the reason is on standard error), 2 bad arguments or configuration, 3 the session was
ended by the gateway.
"""

import argparse
import sys

from jvpn import __version__
from jvpn.cli import (
    client,
    dataplane,
    doctor,
    down,
    drain,
    keygen,
    peer,
    policy,
    server,
    sessions,
    sim,
    status,
    switch,
    terminate,
    timeline,
    up,
)
from jvpn.observability.admin import AdminError
from jvpn.policy.source import SourceError


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jvpn", description="A VPN whose session stays while its transports come and go."
    )
    parser.add_argument("--version", action="version", version=f"jvpn {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    node = (
        keygen,
        server,
        dataplane,
        client,
        up,
        down,
        status,
        switch,
        sessions,
        peer,
        policy,
        terminate,
        drain,
        timeline,
        doctor,
        sim,
    )
    for command in node:
        command.add_parser(subparsers)
    return parser


def main() -> int:
    args = build_parser().parse_args()
    try:
        status_code: int = args.run(args)
    except SourceError as error:
        print(error, file=sys.stderr)
        return 2
    except AdminError as error:
        print(f"jvpn {args.command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130
    return status_code
