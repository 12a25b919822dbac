"""What fault scripts have in force in this network namespace, so that two compose and a killed one's is taken back.

A file for each namespace, known by its cookie (SO_NETNS_COOKIE, socket(7)), under a lock: an entry a running script,
with what its impairments are and with the commands that undo what it did. Undoing is written down before doing. What
the kernel is asked for is always what all entries come to together (``jvpn.lab.link_model.compose``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from jvpn.lab.link_model import LinkParams, compose
from vagrant.traffic.faults.means import kernel, netem
from vagrant.traffic.script import Failed

FOLDER: Final = Path("/run/jvpn-lab-faults")
_SO_NETNS_COOKIE: Final = 71
_START_TIME_FIELD: Final = 22  # proc_pid_stat(5)


class Entry(msgspec.Struct):
    """One script: who it is, the commands that undo it, newest first, its impairments by "DIRECTION/DEVICE"."""

    pid: int
    started: int
    undo: list[list[str]] = []
    impairments: dict[str, LinkParams] = {}
    seed: int = 1


class State(msgspec.Struct):
    """All of them, and what is in force in the kernel by "DIRECTION/DEVICE"."""

    entries: list[Entry] = []
    applied: dict[str, LinkParams] = {}

    def mine(self) -> Entry:
        """This process's entry, made when there is none."""
        pid = os.getpid()
        for entry in self.entries:
            if entry.pid == pid:
                return entry
        self.entries.append(Entry(pid, _started(pid)))
        return self.entries[-1]


@contextlib.contextmanager
def held() -> Iterator[State]:
    """The state, under the lock, written when the context ends. What dead scripts left has been undone."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    with (FOLDER / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = _read()
        try:
            for entry in [entry for entry in state.entries if _started(entry.pid) != entry.started]:
                _undo(state, entry)
            yield state
        finally:
            _write(state)


def will_undo(argv: Sequence[str]) -> None:
    """Write down that *argv* undoes what this process is about to do."""
    with held() as state:
        state.mine().undo.insert(0, list(argv))


def undone(argv: Sequence[str]) -> None:
    """Strike out what was written down as *argv*: this process has undone it itself."""
    with held() as state:
        state.mine().undo.remove(list(argv))


def impair(changes: Mapping[str, LinkParams], seed: int) -> None:
    """Have *changes* in force, by "DIRECTION/DEVICE", instead of this process's others. Failed: all is as before."""
    with held() as state:
        entry = state.mine()
        before, entry.impairments, entry.seed = entry.impairments, dict(changes), seed
        try:
            _settle(state)
        except Failed:
            entry.impairments = before
            _settle(state)
            raise


def undo_mine() -> None:
    """Undo all that this process did."""
    with held() as state:
        _undo(state, state.mine())


def _undo(state: State, entry: Entry) -> None:
    for argv in entry.undo:
        kernel.undo(argv)
    state.entries.remove(entry)
    if entry.impairments:
        _settle(state)


def _settle(state: State) -> None:
    """Have the kernel do what all entries ask for. Raises Failed."""
    nothing = LinkParams()
    every = {key for entry in state.entries for key in entry.impairments}
    for key in sorted(every | set(state.applied)):
        asking = [entry for entry in state.entries if key in entry.impairments]
        try:
            wanted = compose(nothing, *(entry.impairments[key] for entry in asking))
        except ValueError as error:
            raise Failed(str(error)) from error
        before = state.applied.get(key, nothing)
        if wanted != before:
            _change(state, key, before, wanted, asking[-1].seed if asking else 1)
        if not asking:
            state.applied.pop(key, None)


def _change(state: State, key: str, before: LinkParams, wanted: LinkParams, seed: int) -> None:
    direction, _, device = key.partition("/")
    if wanted == LinkParams() and device not in (name for _, name in socket.if_nameindex()):
        return  # it went, and all that was on it
    # Written down before it is done: who is killed in between has left something.
    state.applied[key] = wanted if wanted != LinkParams() else before
    _write(state)
    try:
        netem.change(device, direction, before, wanted, seed)
    except Failed:
        state.applied[key] = before
        raise
    state.applied[key] = wanted


def _path() -> Path:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
    return FOLDER / str(cookie)


def _read() -> State:
    try:
        return msgspec.json.decode(_path().read_bytes(), type=State)
    except (FileNotFoundError, msgspec.MsgspecError):
        return State()  # the first here, or one that was cut off: then there is nothing to go by


def _write(state: State) -> None:
    path = _path()
    if not state.entries and not state.applied:
        path.unlink(missing_ok=True)
        return
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(state))
    new.replace(path)


def _started(pid: int) -> int:
    """When a process began, in ticks since boot; 0: there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[_START_TIME_FIELD - 3])
