"""The holder's workers: who has a seat, the warm spare that takes the next one, and how those of an older version go.

A worker that ends is replaced at once by the spare. One that is to go is told to stop: it sends what it has read, ends,
and the spare takes its seat as it would a dead one's. One at a time, only while a spare is ready, and a supervisor
there to give it the sessions.
"""

import contextlib
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from multiprocess import get_context

from jvpn.holder import descriptors
from jvpn.holder.belongings import Belongings
from jvpn.holder.inventory import WorkerReplaced, WorkerSeat
from jvpn.protocol.constants import SLOT_FIRST_WORKER
from workers import commands
from workers.main import worker_main

#: A worker that does not end by itself is killed after that.
RETIRE_S: Final = 5.0


@dataclass(slots=True, eq=False)
class Worker:
    """A worker process; `channel` is the end that the supervisor gets. Without a seat it is the warm spare.

    `ready`: it has said something, so its imports are done. `retires`: it was told to stop.
    """

    pid: int
    pidfd: int
    channel: socket.socket
    seat: WorkerSeat | None = None
    ready: bool = False
    retires: bool = False


@dataclass(slots=True)
class Workforce:
    """`announce` tells the supervisor of a successor; `supervised` says whether there is one."""

    held: Belongings
    selector: selectors.BaseSelector
    announce: Callable[[WorkerReplaced, Worker], None]
    supervised: Callable[[], bool]
    workers: list[Worker] = field(default_factory=list)
    #: Of an older version than the holder, the next to go first.
    outdated: list[Worker] = field(default_factory=list)
    spare: Worker | None = None
    ending: bool = False
    _retire_until: float = 0.0

    def start(self) -> None:
        """All seats and the spare, of this version."""
        self.workers = [self._start_worker() for _ in range(self.held.plan.slots)]
        for slot, worker in enumerate(self.workers):
            self._seat(worker, slot)
        self.spare = self._start_worker()

    def inherit(self, workers: list[Worker], spare: Worker) -> None:
        """Those of the holder that this process was. They have their seats; the spare goes, as it has nothing to do."""
        self.workers = workers
        self.outdated = list(workers)
        for worker in (*workers, spare):
            self._watch(worker)
        self.spare = spare
        signal.pidfd_send_signal(spare.pidfd, signal.SIGKILL)

    def _start_worker(self) -> Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = get_context("spawn").Process(target=worker_main, args=(theirs, os.getpid()), daemon=True)
        process.start()
        theirs.close()
        pid: int = process.pid
        worker = Worker(pid, os.pidfd_open(pid), ours)
        self._watch(worker)
        self.selector.register(ours, selectors.EVENT_READ, lambda: self._on_ready(worker))
        return worker

    def _watch(self, worker: Worker) -> None:
        self.selector.register(worker.pidfd, selectors.EVENT_READ, lambda: self._on_exit(worker))

    def _on_ready(self, worker: Worker) -> None:
        """Its first word is the supervisor's to read."""
        self.selector.unregister(worker.channel)
        worker.ready = True
        self.go_on()

    def _seat(self, worker: Worker, slot: int, *, waits: bool = False) -> None:
        """Give a worker its slot's descriptors and let it begin. Sequence number 0: nobody waits for the answers."""
        held, plan = self.held, self.held.plan
        cpu = plan.cpus[slot % len(plan.cpus)]
        worker.seat = WorkerSeat(slot, worker.pid, cpu)
        attach_tun = commands.AttachTun(0, held.offload.vnet_header, plan.tun_mtu)
        start = commands.Start(0, slot, cpu, True, plan.uid, plan.gid, held.offload.bulk, waits)
        # Whoever has died meanwhile is replaced when that is seen.
        with contextlib.suppress(ConnectionError):
            descriptors.send(worker.channel, commands.encode(commands.AttachPage(0)), [held.page])
            descriptors.send(worker.channel, commands.encode(attach_tun), [held.queues[slot]])
            for number, group in enumerate(held.groups):
                attach = commands.AttachSocket(0, number, gro=held.offload.gro, segment=held.offload.gso)
                member = group[SLOT_FIRST_WORKER + slot].fileno()
                descriptors.send(worker.channel, commands.encode(attach), [member])
            descriptors.send(worker.channel, commands.encode(start))

    def _on_exit(self, worker: Worker) -> None:
        self.selector.unregister(worker.pidfd)
        os.close(worker.pidfd)
        status = reap(worker.pid)
        if worker.channel in self.selector.get_map():
            self.selector.unregister(worker.channel)
        worker.channel.close()
        if self.ending:
            return
        seat = worker.seat
        if seat is None:
            self.spare = self._start_worker()
            return
        successor, self.spare = self.spare, self._start_worker()
        assert successor is not None, "there is a spare as long as workers are not being ended"
        self.workers[seat.slot] = successor
        # Nobody knows when the next supervisor comes: until then what arrives is to be dropped, not to grow old.
        self._seat(successor, seat.slot, waits=self.supervised())
        how = "was retired" if worker.retires else f"ended with status {status}"
        _say(f"worker {seat.slot} (pid {worker.pid}) {how}; pid {successor.pid} took its seat")
        if successor.seat is not None:
            self.announce(WorkerReplaced(successor.seat, status, worker.retires), successor)
        self.go_on()

    # Those of an older version

    def go_on(self) -> None:
        """Have the next one go, if one is to and may."""
        self.outdated = [worker for worker in self.outdated if worker in self.workers]
        spare = self.spare
        if not self.outdated or self.outdated[0].retires or spare is None or not spare.ready:
            return
        if not self.supervised():
            return
        leaving = self.outdated[0]
        leaving.retires = True
        self._retire_until = time.monotonic() + RETIRE_S
        with contextlib.suppress(OSError):
            leaving.channel.send(commands.encode(commands.Stop(0)), socket.MSG_DONTWAIT)

    @property
    def timeout_s(self) -> float | None:
        """How long `enforce` may wait to be called; None: for ever."""
        if not self.outdated or not self.outdated[0].retires:
            return None
        return max(0.0, self._retire_until - time.monotonic())

    def enforce(self) -> None:
        """Kill who was told to stop and has not."""
        if self.timeout_s == 0.0:
            self._retire_until = time.monotonic() + RETIRE_S
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.outdated[0].pidfd, signal.SIGKILL)

    def end(self) -> None:
        self.ending = True
        for worker in [*self.workers, *([] if self.spare is None else [self.spare])]:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)
            reap(worker.pid)


def reap(pid: int) -> int:
    """Exit status of a child, waiting for it; 0 when somebody else has waited (multiprocess, as it starts another)."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return 0


def other_children(known: set[int]) -> list[int]:
    """Children that are no workers: what an earlier version of this process had started."""
    pid = os.getpid()
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed if int(child) not in known]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
