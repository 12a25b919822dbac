"""The busiest modules of data plane and control plane, compiled by mypyc from their very sources, in place of these.

`script/compile.py` makes them, where the machine has a compiler, into a folder named after the digest of all that goes
into them. Only the folder of the sources as they are now is used, so an edited source is interpreted until the next
`script/setup`. It is all of them or none: compiled modules call each other without looking at what Python imported.
"""

import hashlib
import os
import stat
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

#: Those that see every packet, every handshake or every reattach. Not those that are made of ctypes and foreign types:
#: workers.bulk, workers.keys, workers.page, and whatever defines messages of msgspec.
MODULES: Final = (
    "jvpn.entropy",
    "jvpn.protocol.addresses",
    "jvpn.protocol.control",
    "jvpn.protocol.indexes",
    "jvpn.protocol.keys",
    "jvpn.protocol.offload",
    "jvpn.protocol.paths",
    "jvpn.protocol.reattach",
    "jvpn.protocol.replay",
    "jvpn.protocol.sealed_control",
    "jvpn.protocol.suites",
    "jvpn.protocol.tickets",
    "jvpn.protocol.wire",
    "jvpn.session.bucket",
    "jvpn.session.errors",
    "jvpn.session.machine",
    "jvpn.session.ownership",
    "jvpn.session.precedence",
    "jvpn.session.record",
    "jvpn.session.ttl",
    "jvpn.session.version",
    "jvpn.session.view",
    "jvpn.session.walker",
    "jvpn.supervisor.agenda",
    "jvpn.supervisor.arrival",
    "jvpn.supervisor.claims",
    "jvpn.supervisor.context",
    "jvpn.supervisor.controlling",
    "jvpn.supervisor.core",
    "jvpn.supervisor.draining",
    "jvpn.supervisor.effects",
    "jvpn.supervisor.handshakes",
    "jvpn.supervisor.history",
    "jvpn.supervisor.keeping",
    "jvpn.supervisor.live_session",
    "jvpn.supervisor.narrator",
    "jvpn.supervisor.proven",
    "jvpn.supervisor.reattaching",
    "jvpn.supervisor.rekeying",
    "jvpn.supervisor.round_trips",
    "jvpn.supervisor.takeover",
    "jvpn.supervisor.upkeep",
    "workers.answers",
    "workers.backlog",
    "workers.decrypt",
    "workers.deliver",
    "workers.encrypt",
    "workers.fair",
    "workers.fragments",
    "workers.gather",
    "workers.kept",
    "workers.layouts",
    "workers.paths",
    "workers.pipelines",
    "workers.reports",
    "workers.routes",
    "workers.send",
    "workers.sessions",
    "workers.singles",
    "workers.table",
    "workers.udp",
)
#: 1: interpret, whatever there is. workers: interpret these and take the rest, which calls none of them.
SWITCH: Final = "JVPN_INTERPRETED"
ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = ".venv/compiled"
SUFFIX: Final = EXTENSION_SUFFIXES[0]
#: The constants of any module beside them may be in the compiled ones; the lock has mypy's version.
_SOURCES: Final = (
    "workers/*.py",
    "jvpn/observability/*.py",
    "jvpn/policy/*.py",
    "jvpn/protocol/*.py",
    "jvpn/session/*.py",
    "jvpn/store/*.py",
    "jvpn/supervisor/*.py",
    "jvpn/*.py",
    "script/compile.py",
    "requirements.lock",
)


class Interpreted(NamedTuple):
    """`why` the sources are interpreted; `remedy`: what to do about it, empty where it was asked for."""

    why: str
    remedy: str = ""


def digest(root: Path) -> str:
    """SHA-256, in hex, of what decides over the compiled modules of the checkout at `root`. Raises OSError."""
    # Which Python, as extension modules name it: a rebuilt one, as after a security update, takes them as they are.
    found = hashlib.sha256(SUFFIX.encode())
    for pattern in _SOURCES:
        for path in sorted(root.glob(pattern)):
            text = path.read_bytes()
            found.update(f"\0{path.relative_to(root)}\0{len(text)}\0".encode())
            found.update(text)
    return found.hexdigest()


def look(root: Path = ROOT) -> dict[str, Path] | Interpreted:
    """The compiled modules of the checkout at `root`, by their names, or why there are none to use."""
    if os.environ.get(SWITCH) == "1":
        return Interpreted(f"{SWITCH}=1 asks for it")
    try:
        folder = root / FOLDER / digest(root)
        if not folder.is_dir():
            other = any(path.is_dir() for path in folder.parent.glob("[!.]*"))
            why = "compiled from other sources than these" if other else "not compiled"
            return Interpreted(why, "script/setup compiles it where gcc and python3-dev are installed")
        paths = [folder.parent, folder, *folder.rglob("*")]
        for path in paths:
            if not _trusted(path.lstat()):
                return Interpreted(
                    f"{path} belongs to, or may be written by, others than root and the owner of the sources",
                    f"remove {folder.parent} and run script/setup",
                )
    except OSError as error:
        return Interpreted(f"{error.filename}: {error.strerror}", "run script/setup")
    found = {
        str(path.relative_to(folder)).removesuffix(SUFFIX).replace("/", "."): path
        for path in paths
        if path.name.endswith(SUFFIX)
    }
    if missing := set(MODULES) - set(found):
        remedy = f"remove {folder.parent} and run script/setup"
        return Interpreted(f"{folder} lacks {', '.join(sorted(missing))}", remedy)
    return found


def _trusted(status: os.stat_result) -> bool:
    """Whether nobody could have put it there who could not have edited the sources as well."""
    plain = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    owners = {0, os.geteuid(), Path(__file__).stat().st_uid}
    return plain and status.st_uid in owners and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


class _Finder:
    """Of the protocol that sys.meta_path asks for."""

    def __init__(self, paths: dict[str, Path]) -> None:
        self._paths = paths

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        path = self._paths.get(name)
        return None if path is None else spec_from_file_location(name, path)


def use() -> None:
    """Have the compiled modules, if there are any, imported from now on. To be called before the first of them is."""
    found = look()
    if isinstance(found, Interpreted):
        return
    if os.environ.get(SWITCH) == "workers":
        found = {name: path for name, path in found.items() if not name.startswith("workers.")}
    sys.meta_path.insert(0, _Finder(found))
