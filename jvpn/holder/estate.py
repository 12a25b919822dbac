"""What a holder hands on to its successor: which descriptors are what, and which processes. `python -m` with the
number of a descriptor that holds one rehearses it: everything is looked at, nothing is changed, and the exit status is
0, or 1 with the reason on standard output.

Predecessor and successor are one process, before and after execve(2). So the workers keep their parent, no descriptor
is ever held by two, and nobody else notices.
"""

import contextlib
import os
import select
import socket
import stat
import sys
from collections.abc import Iterator

import msgspec

from jvpn.holder.belongings import Belongings
from jvpn.holder.inventory import PROTOCOL, HolderPlan, WorkerSeat
from jvpn.holder.workforce import Worker
from workers.offload import Offload
from workers.page import Page


class EstateError(Exception):
    """It cannot be taken over; says why and what to do."""


class HandedWorker(msgspec.Struct, frozen=True):
    pid: int
    pidfd: int
    channel: int
    seat: WorkerSeat | None


class Estate(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers are descriptors, but `protocol`, `generation` and process ids. `listeners` are the sockets for
    supervisors and for who asks to hand over, `asker` who did, `supervisor` the one at work."""

    protocol: int
    plan: HolderPlan
    offload: Offload
    generation: int
    page: int
    groups: list[list[int]]
    queues: list[int]
    listeners: tuple[int, int]
    supervisor: int | None
    asker: int
    workers: list[HandedWorker]
    spare: HandedWorker

    def descriptors(self) -> Iterator[int]:
        yield self.page
        for group in self.groups:
            yield from group
        yield from self.queues
        yield from self.listeners
        yield self.asker
        if self.supervisor is not None:
            yield self.supervisor
        for worker in (*self.workers, self.spare):
            yield worker.pidfd
            yield worker.channel

    def belongings(self) -> Belongings:
        groups = [[socket.socket(fileno=member) for member in group] for group in self.groups]
        return Belongings(self.plan, self.page, groups, self.queues, self.offload)


class _AnyEstate(msgspec.Struct, frozen=True):
    protocol: int


def handed(worker: Worker) -> HandedWorker:
    return HandedWorker(worker.pid, worker.pidfd, worker.channel.fileno(), worker.seat)


def taken(worker: HandedWorker) -> Worker:
    return Worker(worker.pid, worker.pidfd, socket.socket(fileno=worker.channel), worker.seat)


def write(estate: Estate) -> int:
    """A new descriptor that holds it."""
    descriptor = os.memfd_create("jvpn-estate", os.MFD_CLOEXEC)
    os.pwrite(descriptor, msgspec.msgpack.encode(estate), 0)
    return descriptor


def read(descriptor: int) -> Estate:
    """Raises EstateError when another version wrote it that this one cannot follow."""
    data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    try:
        protocol = msgspec.msgpack.decode(data, type=_AnyEstate).protocol
        if protocol != PROTOCOL:
            raise EstateError(
                f"its version of messages is {protocol}, the successor's {PROTOCOL}; to end its connections and begin "
                "anew: systemctl restart jvpn-dataplane"
            )
        return msgspec.msgpack.decode(data, type=Estate)
    except msgspec.MsgspecError as error:
        raise EstateError(f"the successor cannot read what is handed over: {error}") from error


def check(estate: Estate) -> None:
    """Raises EstateError when something of it is not what it should be."""
    try:
        Page(estate.page).close()
        for (_address, port), group in zip(estate.plan.listen, estate.groups, strict=True):
            for member in group:
                with _borrowed(member) as opened:
                    if opened.getsockname()[1] != port:
                        raise EstateError(f"descriptor {member} is not a socket of port {port}")
        for queue in estate.queues:
            if not stat.S_ISCHR(os.fstat(queue).st_mode):
                raise EstateError(f"descriptor {queue} is not a TUN queue")
        pidfds = [worker.pidfd for worker in (*estate.workers, estate.spare)]
        if select.select(pidfds, [], [], 0)[0]:
            raise EstateError("a worker ended just now; try again")
    except (OSError, ValueError) as error:
        raise EstateError(f"what is handed over is not whole: {error}") from error


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    opened = socket.socket(fileno=descriptor)
    try:
        yield opened
    finally:
        opened.detach()


def main() -> int:
    try:
        check(read(int(sys.argv[1])))
    except EstateError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
