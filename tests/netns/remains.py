"""Everything that a gateway or a client could leave behind in its namespace and on its machine, for before and after.

Other labs run on the same machine: what is not bound to a namespace is judged by its own folder or its own number.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from client_lab import _lasting

from jvpn.holder import xdp
from jvpn.lab.namespaces import Namespace

#: Under /proc/sys/net: what counts or is drawn anew, so that it differs without anybody's doing.
_PASSING = (
    "nf_conntrack_count",
    "flush",
    "stable_secret",
    "fib_multipath_hash_seed",
    "ip_local_reserved_ports",
)


def namespace_state(namespace: Namespace) -> dict[str, Any]:
    """Interfaces, addresses, routes, rules, filters, queues, XDP, sockets, sysctls, processes of one namespace."""
    found: dict[str, Any] = {}
    for family in ("-4", "-6"):
        for what in (("addr",), ("route", "show", "table", "all"), ("rule",)):
            found[f"{what[0]} {family}"] = _entries(namespace, ["ip", "-j", family, *what])
    found["links"] = sorted(link["ifname"] for link in json.loads(namespace.run(["ip", "-j", "link"]).stdout))
    found["queues"] = _lines(namespace, ["tc", "qdisc"])
    found["filters"] = _lines(namespace, ["nft", "list", "ruleset"])
    found["xdp"] = namespace.call(xdp.everywhere)
    for family in ("inet", "inet6", "unix", "link", "vsock"):
        found[f"sockets {family}"] = _lines(namespace, ["ss", "-anH", "-f", family])
    found["sysctls"] = namespace.call(lambda: dict(_sysctls(Path("/proc/sys/net"))))
    found["processes"] = namespace.pids()
    return found


def _lines(namespace: Namespace, argv: list[str]) -> list[str]:
    return sorted(" ".join(line.split()) for line in namespace.run(argv).stdout.splitlines())


def _entries(namespace: Namespace, argv: list[str]) -> list[str]:
    entries = json.loads(namespace.run(argv).stdout or "[]")
    return sorted(json.dumps(_lasting(entry), sort_keys=True) for entry in entries)


def _sysctls(folder: Path) -> Iterator[tuple[str, str]]:
    for root, _folders, names in os.walk(folder):
        for name in names:
            if name not in _PASSING:
                # Some can only be written, and those of an interface may go while we look.
                with suppress(OSError, UnicodeDecodeError):
                    yield f"{root}/{name}", Path(root, name).read_text()


def mounts(*words: str) -> list[str]:
    """Mounts that any of these words occurs in."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line for line in lines if any(word in line for word in words)]


def memfds(pids: list[int]) -> set[tuple[int, int]]:
    """(device, inode) of the memory files that these processes have open."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                path = f"/proc/{pid}/fd/{descriptor}"
                with suppress(OSError):
                    if os.readlink(path).startswith("/memfd:"):
                        seen = os.stat(path)
                        found.add((seen.st_dev, seen.st_ino))
    return found


def all_pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []
