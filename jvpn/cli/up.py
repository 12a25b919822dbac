"""`jvpn up`: start a client in the background."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jvpn.agent.pidfile import running_pid
from jvpn.cli.client import add_config, not_root
from jvpn.cli.status import client_text
from jvpn.config import load_client
from jvpn.observability.admin import AdminError, ask, make_run_dir

LOG_NAME = "client.log"
START_S = 30.0
POLL_S = 0.05
LOG_TAIL_LINES = 5


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("up", help="start a client in the background", description=__doc__)
    add_config(parser)
    parser.add_argument("--wait", action="store_true", help="until the session is up")
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="of --wait (default %(default)g s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object: the client's status")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0; 1 when it runs already, does not start, or with --wait has no session in time (it goes on trying)."""
    config = load_client(args.config)
    if not_root("up"):
        return 1
    pid = running_pid(config.run_dir)
    if pid is not None:
        print(f"jvpn up: a client runs already, pid {pid}; stop it with: jvpn down", file=sys.stderr)
        return 1
    try:
        make_run_dir(config.run_dir)
    except OSError as error:
        print(f"jvpn up: {error}", file=sys.stderr)
        return 1
    log = config.run_dir / LOG_NAME
    status = _started(_start(args.config, log), config.run_dir)
    if status is None:
        print(f"jvpn up: the client did not start; {log} ends with:\n{_tail(log)}", file=sys.stderr)
        return 1
    attached = True
    if args.wait:
        status, attached = _attached(status, config.run_dir, args.timeout)
    print(json.dumps(status, indent=2) if args.json else client_text(status))
    if not attached:
        problem = f"no session in {args.timeout:g} s; the client goes on trying. {log} ends with:"
        print(f"jvpn up: {problem}\n{_tail(log)}", file=sys.stderr)
    return 0 if attached else 1


def _start(config: Path, log: Path) -> "subprocess.Popen[bytes]":
    """In a session of its own, so that no terminal takes it down."""
    command = [sys.executable, "-m", "jvpn.cli", "client", "-c", str(config.absolute())]
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor, start_new_session=True
        )
    finally:
        os.close(descriptor)


def _started(process: "subprocess.Popen[bytes]", run_dir: Path) -> dict[str, Any] | None:
    """Its first status; None when it ended, or says nothing for START_S (then it is ended)."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        status = _status(run_dir)
        if process.poll() is not None:
            return None
        if status is not None and running_pid(run_dir) == process.pid:
            return status
        time.sleep(POLL_S)
    process.kill()
    return None


def _attached(status: dict[str, Any], run_dir: Path, timeout_s: float) -> tuple[dict[str, Any], bool]:
    """The newest status, and whether the session is up and the TUN has its addresses and routes."""
    until = time.monotonic() + timeout_s
    while status["state"] != "ATTACHED" or not _configured(run_dir):
        if time.monotonic() > until or running_pid(run_dir) is None:
            return status, False
        time.sleep(POLL_S)
        status = _status(run_dir) or status
    return status, True


def _status(run_dir: Path) -> dict[str, Any] | None:
    try:
        status: dict[str, Any] = ask(run_dir, {"command": "status"})
    except AdminError:
        return None
    return status


def _configured(run_dir: Path) -> bool:
    try:
        return bool(ask(run_dir, {"command": "switching"})["configured"])
    except AdminError:
        return False


def _tail(log: Path) -> str:
    return "\n".join(log.read_text().splitlines()[-LOG_TAIL_LINES:])
