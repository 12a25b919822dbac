"""The holder: creates and keeps every socket, TUN queue and the shared page, and is the parent of the workers.

It exists because closing one descriptor renumbers a reuseport group and a TUN's queues, so somebody must keep them
all while workers and supervisors come and go. It reads nothing from the network and holds no key but the challenge
key it makes. `python -m jvpn.holder.process PLAN` with a HolderPlan as JSON; it ends on Shutdown or SIGTERM, never
because its supervisor ended: the next one finds everything here. With `--estate DESCRIPTOR` it goes on as the holder
that this process was under another version (succession.py).
"""

import contextlib
import errno
import os
import selectors
import socket
import struct
import sys
from pathlib import Path

import msgspec

from jvpn import __version__
from jvpn.holder import descriptors, estate, inventory, succession
from jvpn.holder.belongings import Belongings
from jvpn.holder.estate import Estate, handed, taken
from jvpn.holder.inventory import (
    PROTOCOL,
    SOCKET_NAME,
    HolderPlan,
    Inventory,
    Refused,
    Shutdown,
    Succeeded,
    WorkerReplaced,
)
from jvpn.holder.notify import ready
from jvpn.holder.signals import stop_pipe
from jvpn.holder.succession import Succession, Taken
from jvpn.holder.workforce import Worker, Workforce, other_children, reap
from workers import privileges

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


class Holder:
    """`listeners`: for supervisors, and for who asks to hand over. `begin` or `inherit`, then `run`."""

    def __init__(self, held: Belongings, listeners: tuple[socket.socket, socket.socket]) -> None:
        privileges.keep(CAPABILITIES)
        self.held = held
        self.generation = 0
        self._listeners = listeners
        self._selector = selectors.DefaultSelector()
        self._supervisor: socket.socket | None = None
        self._running = True
        self.workforce = Workforce(
            held, self._selector, self._announce, supervised=lambda: self._supervisor is not None
        )
        self._succession = Succession(held.plan, self._selector, self._bequeath)

    def begin(self) -> None:
        self.workforce.start()

    def inherit(self, left: Estate) -> None:
        """Go on where this process was; say so to who asked for it and to the supervisor."""
        for descriptor in left.descriptors():
            os.set_inheritable(descriptor, False)
        workers = [taken(worker) for worker in left.workers]
        spare = taken(left.spare)
        for child in other_children({worker.pid for worker in (*workers, spare)}):
            self._reap_later(child)
        self.generation = left.generation
        if left.supervisor is not None:
            self._attend(socket.socket(fileno=left.supervisor))
        self.workforce.inherit(workers, spare)
        self._tell(inventory.encode(Succeeded(__version__)), [])
        said = Taken(os.getpid(), __version__, len(workers), supervised=self._supervisor is not None)
        with socket.socket(fileno=left.asker) as asker, contextlib.suppress(OSError):
            asker.send(succession.encode(said))

    def _reap_later(self, child: int) -> None:
        pidfd = os.pidfd_open(child)

        def ended() -> None:
            self._selector.unregister(pidfd)
            os.close(pidfd)
            reap(child)

        self._selector.register(pidfd, selectors.EVENT_READ, ended)

    def _bequeath(self, asker: int) -> Estate:
        held, force = self.held, self.workforce
        assert force.spare is not None, "there is a spare from the beginning"
        return Estate(
            protocol=PROTOCOL,
            plan=held.plan,
            offload=held.offload,
            generation=self.generation,
            page=held.page,
            groups=[[member.fileno() for member in group] for group in held.groups],
            queues=held.queues,
            listeners=(self._listeners[0].fileno(), self._listeners[1].fileno()),
            supervisor=None if self._supervisor is None else self._supervisor.fileno(),
            asker=asker,
            workers=[handed(worker) for worker in force.workers],
            spare=handed(force.spare),
        )

    # Supervisors

    def _announce(self, told: WorkerReplaced, successor: Worker) -> None:
        self._tell(inventory.encode(told), [successor.channel.fileno()])

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
        self._attend(newcomer)
        self.generation += 1
        workers = self.workforce.workers
        seats = [worker.seat for worker in workers if worker.seat is not None]
        first = Inventory(self.generation, self.held.plan, os.getpid(), seats, self.held.offload, PROTOCOL)
        passed = [*self.held.for_supervisor(), *(worker.channel.fileno() for worker in workers)]
        self._tell(inventory.encode(first), passed)
        self.workforce.go_on()

    def _attend(self, supervisor: socket.socket) -> None:
        self._supervisor = supervisor
        self._selector.register(supervisor, selectors.EVENT_READ, self._on_supervisor)

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

    def run(self) -> None:
        """Serve until told to end."""
        for_supervisors, for_successors = self._listeners
        self._selector.register(
            for_supervisors, selectors.EVENT_READ, lambda: self._on_connect(for_supervisors)
        )
        self._succession.listen(for_successors)
        self._watch_signals()
        while self._running:
            for key, _events in self._selector.select(self.workforce.timeout_s):
                # The one before may have been the end of this one.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()
            self.workforce.enforce()
        self.workforce.end()

    def _watch_signals(self) -> None:
        reader = stop_pipe()

        def stop() -> None:
            os.read(reader, 64)
            self._running = False

        self._selector.register(reader, selectors.EVENT_READ, stop)


def _is_shutdown(message: bytes) -> bool:
    """What another version may say beyond that is not for us, and no reason to end."""
    try:
        return isinstance(inventory.decode(message), Shutdown)
    except msgspec.MsgspecError:
        return False


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
    """A socket for supervisors, or for who asks to hand over. Raises OSError when another holder answers there."""
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
    if sys.argv[1] == "--estate":
        return _go_on(int(sys.argv[2]))
    plan = msgspec.json.decode(sys.argv[1], type=HolderPlan)
    try:
        listeners = _listen_both(plan)
    except OSError as error:
        print(f"data plane: {error}", file=sys.stderr, flush=True)
        return 1
    try:
        holder = Holder(Belongings.create(plan), listeners)
        holder.begin()
        ready()
        holder.run()
    except OSError as error:
        where = ", ".join(f"{address}:{port}" for address, port in plan.listen)
        why = f"data plane on {where}, TUN {plan.tun_name}: {error.strerror or error}"
        remedy = "; see who has the port: ss -lunp" if error.errno == errno.EADDRINUSE else ""
        print(f"jvpn server: {why}{remedy}", file=sys.stderr, flush=True)
        return 1
    finally:
        _unlink(plan)
    return 0


def _go_on(descriptor: int) -> int:
    """As the holder that this process was. It has rehearsed it: nothing of this is expected to fail."""
    left = estate.read(descriptor)
    os.close(descriptor)
    for_supervisors, for_successors = left.listeners
    listeners = socket.socket(fileno=for_supervisors), socket.socket(fileno=for_successors)
    try:
        holder = Holder(left.belongings(), listeners)
        holder.inherit(left)
        holder.run()
    finally:
        _unlink(left.plan)
    return 0


def _paths(plan: HolderPlan) -> tuple[Path, Path]:
    run_dir = Path(plan.run_dir)
    return run_dir / SOCKET_NAME, run_dir / succession.SOCKET_NAME


def _listen_both(plan: HolderPlan) -> tuple[socket.socket, socket.socket]:
    for_supervisors, for_successors = _paths(plan)
    return listen(for_supervisors), listen(for_successors)


def _unlink(plan: HolderPlan) -> None:
    for path in _paths(plan):
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
