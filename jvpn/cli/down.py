"""`jvpn down`: stop the client that runs in the background, and take away what a killed one left behind."""

import argparse
import json
import os
import select
import signal
import sys

from jvpn.agent.dns import Dns
from jvpn.agent.pidfile import clear, running_pid
from jvpn.agent.plan import DnsPlan
from jvpn.cli.client import add_config, not_root
from jvpn.config import load_client
from jvpn.observability.admin import ADMIN_SOCKET

STOP_S = 15.0


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("down", help="stop the client", description=__doc__)
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0, also when none was running; 1 when it had to be killed or something could not be put back."""
    config = load_client(args.config)
    if not_root("down"):
        return 1
    pid = running_pid(config.run_dir)
    stopped = pid is None or pid == 0 or _stop(pid)
    dns = Dns(DnsPlan(config.dns.mode, config.dns.resolv_conf), config.state_dir, config.tun_name)
    try:
        restored = dns.restore()
    except OSError as error:
        print(f"jvpn down: the name servers could not be put back: {error}", file=sys.stderr)
        return 1
    try:
        clear(config.run_dir, ADMIN_SOCKET)
    except OSError as error:
        print(f"jvpn down: the client's files in {config.run_dir} stay: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({"pid": pid, "stopped": pid is not None, "name_servers_restored": restored}))
    else:
        print("no client was running" if pid is None else f"stopped the client, pid {pid}")
        if restored:
            print("put back the name servers that were there before")
    if not stopped:
        print(f"jvpn down: it did not end in {STOP_S:g} s and was killed", file=sys.stderr)
    return 0 if stopped else 1


def _stop(pid: int) -> bool:
    """SIGTERM, and SIGKILL when that does not help (then False)."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(descriptor, number)
            if select.select([descriptor], [], [], STOP_S)[0]:
                return number is signal.SIGTERM
    except ProcessLookupError:
        return True
    finally:
        os.close(descriptor)
    return False
