"""The holder: creates and keeps every socket, TUN queue and the shared page, and is the parent of the workers.

It exists because closing one descriptor renumbers a reuseport group and a TUN's queues, so somebody must keep them
all while workers and supervisors come and go. It reads nothing from the network and holds no key but the challenge
key it makes. `python -m jvpn.holder.process PLAN` with a HolderPlan as JSON; it ends on Shutdown or SIGTERM, never
because its supervisor ended: the next one finds everything here.
"""

import contextlib
import errno
import os
import selectors
import signal
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
from multiprocess import get_context

from jvpn.holder import descriptors, inventory
from jvpn.holder.inventory import (
    PROTOCOL,
    HolderPlan,
    Inventory,
    Refused,
    Shutdown,
    WorkerReplaced,
    WorkerSeat,
)
from jvpn.holder.notify import ready
from jvpn.holder.signals import stop_pipe
from jvpn.protocol.constants import SLOT_FIRST_WORKER
from workers import commands, offload, privileges, tun, udp
from workers.main import worker_main
from workers.page import Page

SOCKET_NAME = "holder.sock"
#: Once sockets and TUN are there: to end workers, to let new ones become nobody, and to find their code where root
#: has no right by its own.
CAPABILITIES = frozenset(
    {
        privileges.CAP_KILL,
        privileges.CAP_SETUID,
        privileges.CAP_SETGID,
        privileges.CAP_SETPCAP,
        privileges.CAP_DAC_READ_SEARCH,
    }
)


@dataclass(slots=True)
class Worker:
    """A worker process; `channel` is the end that the supervisor gets. Without a seat it is the warm spare."""

    pid: int
    pidfd: int
    channel: socket.socket
    seat: WorkerSeat | None = None


class Holder:
    def __init__(self, plan: HolderPlan) -> None:
        self.plan = plan
        self.generation = 0
        self._spawn = get_context("spawn")
        self._selector = selectors.DefaultSelector()
        self._supervisor: socket.socket | None = None
        self._running = True
        self.page = Page.create(plan.capacity, os.urandom(32))
        self.groups = [self._open_group(address, port) for address, port in plan.listen]
        _refuse_existing(plan.tun_name)
        self.queues = [
            tun.open_queue(plan.tun_name, multi_queue=True, offload=plan.offload) for _ in range(plan.slots)
        ]
        self.offload = offload.find(self.queues[0]) if plan.offload else offload.Offload()
        privileges.keep(CAPABILITIES)
        self.workers = [self._start_worker() for _ in range(plan.slots)]
        for slot, worker in enumerate(self.workers):
            self._seat(worker, slot)
        self.spare = self._start_worker()

    def _open_group(self, address: str, port: int) -> list[socket.socket]:
        """Sockets of one listener, in the order that the reuseport program counts them.

        Raises OSError (EADDRINUSE) when anybody has the port, a group that would let us join among them.
        """
        udp.open_socket(address, port).close()
        count = SLOT_FIRST_WORKER + self.plan.slots
        return [
            udp.open_socket(address, port, reuseport=True, offload=self.plan.offload) for _ in range(count)
        ]

    # Workers

    def _start_worker(self) -> Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = self._spawn.Process(target=worker_main, args=(theirs, os.getpid()), daemon=True)
        process.start()
        theirs.close()
        pid: int = process.pid
        worker = Worker(pid, os.pidfd_open(pid), ours)
        self._selector.register(worker.pidfd, selectors.EVENT_READ, lambda: self._on_exit(worker))
        return worker

    def _seat(self, worker: Worker, slot: int) -> None:
        """Give a worker its slot's descriptors and let it begin. Sequence number 0: nobody waits for the answers."""
        plan = self.plan
        cpu = plan.cpus[slot % len(plan.cpus)]
        worker.seat = WorkerSeat(slot, worker.pid, cpu)
        descriptors.send(worker.channel, commands.encode(commands.AttachPage(0)), [self.page])
        attach_tun = commands.AttachTun(0, self.offload.vnet_header, plan.tun_mtu)
        descriptors.send(worker.channel, commands.encode(attach_tun), [self.queues[slot]])
        for number, group in enumerate(self.groups):
            attach = commands.AttachSocket(0, number, gro=self.offload.gro, segment=self.offload.gso)
            member = group[SLOT_FIRST_WORKER + slot].fileno()
            descriptors.send(worker.channel, commands.encode(attach), [member])
        start = commands.Start(0, slot, cpu, True, plan.uid, plan.gid, self.offload.bulk)
        descriptors.send(worker.channel, commands.encode(start))

    def _on_exit(self, worker: Worker) -> None:
        self._selector.unregister(worker.pidfd)
        os.close(worker.pidfd)
        _pid, status = os.waitpid(worker.pid, 0)
        worker.channel.close()
        if not self._running:
            return
        seat = worker.seat
        if seat is None:
            self.spare = self._start_worker()
            return
        successor, self.spare = self.spare, self._start_worker()
        self.workers[seat.slot] = successor
        self._seat(successor, seat.slot)
        print(
            f"worker {seat.slot} (pid {worker.pid}) ended with status {os.waitstatus_to_exitcode(status)}; "
            f"pid {successor.pid} took its seat",
            file=sys.stderr,
            flush=True,
        )
        if self._supervisor is not None and successor.seat is not None:
            told = WorkerReplaced(successor.seat, os.waitstatus_to_exitcode(status))
            self._tell(inventory.encode(told), [successor.channel.fileno()])

    # Supervisors

    def _tell(self, message: bytes, passed: list[int]) -> None:
        if self._supervisor is None:
            return
        try:
            descriptors.send(self._supervisor, message, passed)
        except OSError:
            self._forget_supervisor()

    def _on_connect(self, listener: socket.socket) -> None:
        newcomer, _address = listener.accept()
        if self._supervisor is not None and _is_open(self._supervisor):
            refused = inventory.encode(Refused(_pid_of(self._supervisor)))
            with contextlib.suppress(OSError):
                descriptors.send(newcomer, refused)
            newcomer.close()
            return
        self._forget_supervisor()
        if not _is_open(newcomer):  # somebody looked whether we are here
            newcomer.close()
            return
        self._supervisor = newcomer
        self._selector.register(newcomer, selectors.EVENT_READ, self._on_supervisor)
        self.generation += 1
        seats = [worker.seat for worker in self.workers if worker.seat is not None]
        first = Inventory(self.generation, self.plan, os.getpid(), seats, self.offload, PROTOCOL)
        passed = [self.page, self.queues[0]]
        passed += [member.fileno() for group in self.groups for member in group[:SLOT_FIRST_WORKER]]
        passed += [worker.channel.fileno() for worker in self.workers]
        self._tell(inventory.encode(first), passed)

    def _on_supervisor(self) -> None:
        if self._supervisor is None:
            return
        try:
            message, _none = descriptors.receive(self._supervisor, inventory.MAX_MESSAGE)
        except OSError:
            message = b""
        if not message:
            self._forget_supervisor()
        elif _is_shutdown(message):
            self._running = False

    def _forget_supervisor(self) -> None:
        if self._supervisor is not None:
            self._selector.unregister(self._supervisor)
            self._supervisor.close()
            self._supervisor = None

    # Life

    def run(self, listener: socket.socket) -> None:
        """Serve supervisors that connect to `listener`, until told to end."""
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._on_connect(listener))
        self._watch_signals()
        while self._running:
            for key, _events in self._selector.select():
                key.data()
        self._end_workers()

    def _watch_signals(self) -> None:
        reader = stop_pipe()

        def stop() -> None:
            os.read(reader, 64)
            self._running = False

        self._selector.register(reader, selectors.EVENT_READ, stop)

    def _end_workers(self) -> None:
        for worker in [*self.workers, self.spare]:
            try:
                signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue


def _is_shutdown(message: bytes) -> bool:
    """What another version may say beyond that is not for us, and no reason to end."""
    try:
        return isinstance(inventory.decode(message), Shutdown)
    except msgspec.MsgspecError:
        return False


def _refuse_existing(tun_name: str) -> None:
    """A multi-queue TUN of another gateway would take ours as further queues and give us its packets."""
    if tun_name in (name for _index, name in socket.if_nameindex()):
        raise OSError(errno.EEXIST, "there is such an interface already; is another gateway running?")


def _is_open(connection: socket.socket) -> bool:
    """Whether the other end still has it open."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _pid_of(connection: socket.socket) -> int:
    """struct ucred of unix(7): pid, uid, gid."""
    pid: int = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return pid


def listen(path: Path) -> socket.socket:
    """The socket for supervisors, before anything else is made. Raises OSError when another holder answers there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
        else:
            raise OSError(errno.EADDRINUSE, f"{path}: another data plane runs with this run_dir")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    old_mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old_mask)
    listener.listen(4)
    return listener


def main() -> int:
    plan = msgspec.json.decode(sys.argv[1], type=HolderPlan)
    path = Path(plan.run_dir) / SOCKET_NAME
    try:
        listener = listen(path)
    except OSError as error:
        print(f"data plane: {error}", file=sys.stderr, flush=True)
        return 1
    try:
        holder = Holder(plan)
        ready()
        holder.run(listener)
    except OSError as error:
        where = ", ".join(f"{address}:{port}" for address, port in plan.listen)
        why = f"data plane on {where}, TUN {plan.tun_name}: {error.strerror or error}"
        remedy = "; see who has the port: ss -lunp" if error.errno == errno.EADDRINUSE else ""
        print(f"jvpn server: {why}{remedy}", file=sys.stderr, flush=True)
        return 1
    finally:
        path.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
