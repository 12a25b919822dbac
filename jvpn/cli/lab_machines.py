"""`jvpn lab up`, `down` and `ssh`: the virtual machines for scenarios with `--backend vagrant`."""

import argparse
import sys
from collections.abc import Callable


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    up_parser = commands.add_parser(
        "up",
        help="start the lab's virtual machines",
        description="Machines that run are given the checkout as it is now. Needs Vagrant; docs/lab.md says what else, "
        "and what the environment decides (LAB_BOX, LAB_CPUS, LAB_MEMORY_MB, LAB_LIBVIRT_DRIVER).",
    )
    _machines(up_parser)
    up_parser.set_defaults(run=up)
    down_parser = commands.add_parser("down", help="remove the lab's virtual machines")
    down_parser.add_argument("--halt", action="store_true", help="only switch them off: disks stay")
    _machines(down_parser)
    down_parser.set_defaults(run=down)
    ssh_parser = commands.add_parser("ssh", help="a shell, or a command, in one of them")
    ssh_parser.add_argument("machine", metavar="MACHINE")
    ssh_parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND")
    ssh_parser.set_defaults(run=ssh)


def _machines(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "machines",
        nargs="*",
        metavar="MACHINE",
        help="gw1, gw2, router, client; default: LAB_MACHINES, or all. One gateway is enough where a scenario has one",
    )


def up(args: argparse.Namespace) -> int:
    """0, or 1 when it failed."""

    def work() -> int:
        from jvpn.lab import vagrant

        vagrant.up(vagrant.chosen(args.machines))
        return 0

    return _told("up", work)


def down(args: argparse.Namespace) -> int:
    """0, or 1 when it failed."""

    def work() -> int:
        from jvpn.lab import vagrant

        names = vagrant.chosen(args.machines)
        (vagrant.halt if args.halt else vagrant.destroy)(names)
        return 0

    return _told("down", work)


def ssh(args: argparse.Namespace) -> int:
    """What the command there ended with, or 1."""

    def work() -> int:
        from jvpn.lab import vagrant

        command = args.argv[1:] if args.argv[:1] == ["--"] else args.argv
        return vagrant.ssh(args.machine, command)

    return _told("ssh", work)


def _told(command: str, work: Callable[[], int]) -> int:
    from jvpn.lab.namespaces import LabError

    try:
        return work()
    except LabError as error:
        print(f"jvpn lab {command}: {error}", file=sys.stderr)
        return 1
