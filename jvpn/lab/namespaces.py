"""Network namespaces with an owner: whatever runs in them ends, and they vanish, however the owner dies.

A namespace is named ``PREFIX.labPID.RANDOM.LABEL``. Three nets catch leftovers: ``Lab.close`` (context manager
and atexit); a janitor process that sees the owner's pipe close, so SIGKILL of the owner is covered too; and
``Lab.sweep``, run whenever a lab opens, which removes namespaces whose owning pid is gone.

Processes enter with ``nsenter --net``, which leaves the mount namespace alone: ``ip netns exec`` would mount a
private /sys, and pins in bpffs would no longer be seen.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

NETNS_DIR = Path("/run/netns")
TERMINATE_GRACE_S = 3.0
_CLONE_NEWNET = 0x40000000
_NAME = re.compile(r"^(?P<lab>[A-Za-z0-9_-]+\.lab(?P<pid>\d+)\.[0-9a-f]{6})\.[A-Za-z0-9_-]+$")
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


class LabError(RuntimeError):
    """The lab could not do what was asked; the message names the command, the namespace and the tool's words."""


def module_environment() -> dict[str, str]:
    """This process's environment, in which ``python -m jvpn.…`` finds this very checkout."""
    inherited = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (_PACKAGE_ROOT, inherited)))}


class Namespace:
    """One network namespace of a lab. Made by ``Lab.namespace``."""

    def __init__(self, lab: Lab, label: str, name: str) -> None:
        self.lab = lab
        self.label = label
        self.name = name
        self.path = NETNS_DIR / name

    def __repr__(self) -> str:
        return f"Namespace({self.name})"

    def argv(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs *argv* in this namespace (nsenter execs: the pid stays the same)."""
        if shutil.which(argv[0]) is None:
            raise LabError(f"cannot run {argv[0]!r} in namespace {self.label}: it is not installed")
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def popen(self, argv: Sequence[str], **kwargs: Any) -> subprocess.Popen[Any]:
        """Start *argv* here, as leader of its own process group; the lab ends the whole group on close."""
        kwargs.setdefault("start_new_session", True)
        process = subprocess.Popen(self.argv(argv), **kwargs)
        self.lab.track(process)
        return process

    def popen_module(self, module: str, *args: str, **kwargs: Any) -> subprocess.Popen[Any]:
        """``python -m module args…`` in this namespace, with this interpreter and this checkout."""
        kwargs.setdefault("env", module_environment())
        return self.popen([sys.executable, "-m", module, *args], **kwargs)

    def run(
        self, argv: Sequence[str], *, input: str | None = None, timeout_s: float = 30.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run *argv* to its end. LabError on a non-zero status (unless ``check=False``) or after *timeout_s*."""
        process = self.popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        shown = " ".join(argv)
        try:
            out, err = process.communicate(input, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise LabError(
                f"{shown!r} in {self.label} did not end in {timeout_s:g} s: {err or out}"
            ) from None
        finally:
            self.lab.forget(process)
        if check and process.returncode != 0:
            said = (err.strip() or out.strip() or "it said nothing") + (
                f"\ninput was:\n{input}" if input else ""
            )
            raise LabError(f"{shown!r} in {self.label} failed with status {process.returncode}: {said}")
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def ip(self, *lines: str) -> None:
        """Run iproute2 commands (without the leading ``ip``) as one batch; stops at the first that fails."""
        self.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n")

    def call(self, function: Callable[[], T]) -> T:
        """Return ``function()`` as run by a thread inside this namespace; the calling thread stays where it is."""
        results: list[T] = []
        errors: list[BaseException] = []

        def enter_and_call() -> None:
            try:
                fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if _libc.setns(fd, _CLONE_NEWNET) != 0:
                        code = ctypes.get_errno()
                        raise LabError(f"cannot enter namespace {self.name}: {os.strerror(code)}")
                finally:
                    os.close(fd)
                results.append(function())
            except BaseException as error:  # noqa: BLE001 - handed over to the caller's thread below
                errors.append(error)

        thread = threading.Thread(target=enter_and_call, name=f"in-{self.label}")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def socket(self, family: int, type: int, proto: int = 0) -> socket.socket:
        """A socket that lives in this namespace, usable from the calling process."""
        return self.call(lambda: socket.socket(family, type, proto))

    def sysctl(self, values: Mapping[str, str | int]) -> None:
        """Set ``net.*`` sysctls of this namespace, e.g. ``{"net.ipv4.ip_forward": 1}``."""

        def write() -> None:
            for key, value in values.items():
                Path("/proc/sys", *key.split(".")).write_text(f"{value}\n")

        self.call(write)

    def pids(self) -> list[int]:
        """Processes in this namespace, whoever started them; never the calling process."""
        return _pids_in(self.path)


class Lab:
    """Context manager that owns namespaces and every process in them.

    *name_prefix*: letters, digits, ``_`` and ``-``. Needs root. LabError when not root or iproute2 is missing.
    """

    def __init__(self, name_prefix: str = "jvpn") -> None:
        self.name = f"{name_prefix}.lab{os.getpid()}.{secrets.token_hex(3)}"
        if not _NAME.match(f"{self.name}.x"):
            raise ValueError(f"name_prefix {name_prefix!r}: use letters, digits, '_' and '-' only")
        self._owner_pid = os.getpid()
        self._namespaces: dict[str, Namespace] = {}
        self._processes: list[subprocess.Popen[Any]] = []
        self._lock = threading.Lock()
        self._janitor: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise LabError("the lab needs root: it makes network namespaces (try sudo)")
        Lab.sweep()
        # `read` succeeds only when close() says goodbye; a closed pipe means that the owner died.
        script = 'read -r goodbye || exec "$0" -m jvpn.lab.namespaces "$1"'
        self._janitor = subprocess.Popen(
            ["sh", "-c", script, sys.executable, self.name],
            stdin=subprocess.PIPE, start_new_session=True, env=module_environment(),
        )  # fmt: skip
        atexit.register(self.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def namespace(self, label: str) -> Namespace:
        """Make a namespace with its loopback up."""
        if self._janitor is None:
            raise LabError("open the lab first: with Lab(...) as lab:")
        made = Namespace(self, label, f"{self.name}.{label}")
        _ip_netns("add", made.name)
        self._namespaces[label] = made
        made.run(["ip", "link", "set", "lo", "up"])
        return made

    def __getitem__(self, label: str) -> Namespace:
        return self._namespaces[label]

    def track(self, process: subprocess.Popen[Any]) -> None:
        """End *process* and its group when the lab closes."""
        with self._lock:
            self._processes.append(process)

    def forget(self, process: subprocess.Popen[Any]) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._processes.remove(process)

    def close(self) -> None:
        """End every process, delete every namespace. Safe to call twice, and in a forked child (does nothing)."""
        if os.getpid() != self._owner_pid or self._janitor is None:
            return
        atexit.unregister(self.close)
        self._end_processes()
        _remove([ns.name for ns in self._namespaces.values()])
        self._namespaces.clear()
        janitor, self._janitor = self._janitor, None
        with contextlib.suppress(OSError):
            janitor.communicate(b"goodbye\n", timeout=TERMINATE_GRACE_S)

    def _end_processes(self) -> None:
        with self._lock:
            processes, self._processes = self._processes, []
        deadline = time.monotonic() + TERMINATE_GRACE_S
        for number in (signal.SIGTERM, signal.SIGKILL):
            running = [process for process in processes if process.poll() is None]
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            for process in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()) if number == signal.SIGTERM else None)
        for process in processes:
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()

    @staticmethod
    def sweep(lab: str | None = None) -> list[str]:
        """Remove leftovers of labs whose owner is dead (or of the lab named *lab*); returns the names removed."""
        found = [match for name in _existing() if (match := _NAME.match(name))]
        stale = [m.group() for m in found if m["lab"] == lab or (lab is None and not _alive(int(m["pid"])))]
        _remove(stale)
        return stale


def _existing() -> list[str]:
    return sorted(os.listdir(NETNS_DIR)) if NETNS_DIR.is_dir() else []


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _ip_netns(verb: str, name: str) -> None:
    done = subprocess.run(["ip", "netns", verb, name], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"'ip netns {verb} {name}' failed: {done.stderr.strip()}")


def _pids_in(path: Path) -> list[int]:
    try:
        wanted = os.stat(path)
    except FileNotFoundError:
        return []
    pids = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                seen = os.stat(f"/proc/{entry}/ns/net")
                if (seen.st_dev, seen.st_ino) == (wanted.st_dev, wanted.st_ino):
                    pids.append(int(entry))
    return pids


def _remove(names: Sequence[str]) -> None:
    """Kill what still runs in the namespaces, then delete them; one that another sweep took first is no error."""
    for name in names:
        for pid in _pids_in(NETNS_DIR / name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(LabError):
            _ip_netns("delete", name)


if __name__ == "__main__":
    Lab.sweep(sys.argv[1])
