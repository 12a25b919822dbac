"""The command line: `jvpn COMMAND`; one file for each command.

Exit status: 0 done, 1 it failed (the reason is on standard error), 2 bad arguments or configuration, 3 the session was
ended by the gateway.
"""

import argparse
import importlib
import sys
from collections.abc import Iterable
from typing import Final

from jvpn import __version__
from jvpn.observability.admin import AdminError
from jvpn.policy.source import SourceError

#: In the order of the help; each is a module here.
COMMANDS: Final = (
    "keygen",
    "server",
    "dataplane",
    "client",
    "up",
    "down",
    "status",
    "switch",
    "sessions",
    "peer",
    "policy",
    "terminate",
    "drain",
    "timeline",
    "doctor",
    "sim",
    "lab",
)


def build_parser(commands: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """Only the modules of `commands` are imported: a question to a gateway need not wait until a gateway is loaded."""
    parser = argparse.ArgumentParser(
        prog="jvpn", description="A VPN whose session stays while its transports come and go."
    )
    parser.add_argument("--version", action="version", version=f"jvpn {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in commands:
        importlib.import_module(f"jvpn.cli.{command}").add_parser(subparsers)
    return parser


def main() -> int:
    first = sys.argv[1:2]
    args = build_parser(first if first and first[0] in COMMANDS else COMMANDS).parse_args()
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
