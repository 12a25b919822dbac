"""The supervisor's end of the data plane: the holder it starts or finds, the page, the sockets, the worker channels."""

import contextlib
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from jvpn.holder import descriptors, inventory
from jvpn.holder.inventory import (
    PROTOCOL,
    SOCKET_NAME,
    HolderPlan,
    Inventory,
    Refused,
    Shutdown,
    Succeeded,
    WorkerReplaced,
    WorkerSeat,
)
from jvpn.transports.udp import UdpTransport
from workers import commands
from workers.page import Page

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
#: Commands that wait for one worker; who leaves more unread has stopped reading.
MAX_WAITING = 1 << 17
#: Counters carry the supervisor's generation in 16 bits.
LAST_GENERATION = 65_535


class DataPlaneError(Exception):
    """The data plane cannot be started; says why and what to do."""


class HolderLink:
    """A connection to a holder: what it keeps and the descriptors of it, which are the owner's of this object."""

    def __init__(self, connection: socket.socket) -> None:
        """Hear what a holder has. Raises DataPlaneError when it does not say, or serves another supervisor."""
        self.connection = connection
        connection.settimeout(START_TIMEOUT_S)
        try:
            message, self.passed = descriptors.receive(connection, inventory.MAX_MESSAGE)
            first = inventory.decode_first(message) if message else None
        except (OSError, msgspec.MsgspecError):
            first = None
        if isinstance(first, inventory.Refused):
            raise DataPlaneError(
                f"supervisor {first.pid} is at work on this run_dir; stop it first (kill {first.pid})"
            )
        if first is None:
            raise DataPlaneError("the data plane could not start, for the reason in the line before")
        self.pid = first.pid
        self.protocol = first.protocol
        told = inventory.decode(message) if first.protocol == PROTOCOL else None
        #: None: of a version that cannot be understood.
        self.inventory = told if isinstance(told, Inventory) else None

    @property
    def used(self) -> bool:
        """Whether another supervisor has served here before: there may be sessions."""
        return self.inventory is None or self.inventory.generation > 1

    def let_go(self) -> None:
        """Leave that data plane to somebody else."""
        for descriptor in self.passed:
            os.close(descriptor)
        self.connection.close()

    def shut_down(self) -> None:
        """End that data plane and wait until it has. Raises DataPlaneError when it does not end."""
        for descriptor in self.passed:
            os.close(descriptor)
        with contextlib.suppress(OSError):
            descriptors.send(self.connection, inventory.encode(Shutdown()))
        if not wait_for_end(self.pid, START_TIMEOUT_S):
            raise DataPlaneError(f"the earlier data plane (holder {self.pid}) does not end; kill {self.pid}")
        self.connection.close()


def find_holder(run_dir: Path) -> HolderLink | None:
    """The holder of an earlier start, None when none answers. Raises DataPlaneError as HolderLink does."""
    connection = _try_connect(run_dir / SOCKET_NAME)
    return None if connection is None else HolderLink(connection)


class DataPlane:
    """Takes `found` when it is what `plan` asks for, else ends it (`difference` says why) and starts a new holder.

    `joins`: the holder is a service of its own, so that nothing else than `found` will do (DataPlaneError, and it runs
    on). `adopted`: there may be sessions. Descriptors belong to this object until `close` or `release`.
    """

    def __init__(self, plan: HolderPlan, found: HolderLink | None = None, *, joins: bool = False) -> None:
        self._path = Path(plan.run_dir) / SOCKET_NAME
        self._process: subprocess.Popen[bytes] | None = None
        self.difference = "" if found is None else _difference(plan, found)
        if joins:
            _refuse_others(found, self.difference)
        if found is not None and self.difference:
            found.shut_down()
            found = None
        self.adopted = found is not None and found.used
        link = found or HolderLink(self._start(plan))
        if link.inventory is None:
            raise DataPlaneError(
                f"the data plane that was started speaks version {link.protocol}, not {PROTOCOL}"
            )
        self._holder = link.connection
        self.inventory = link.inventory
        self._gone = False
        page, self.tun_queue, *rest = link.passed
        self.page = Page(page)
        os.close(page)
        #: For each listener its authenticated (slot 0) and unauthenticated (slot 1) socket.
        listeners = self.inventory.plan.listen
        self.sockets = [
            (socket.socket(fileno=rest.pop(0)), socket.socket(fileno=rest.pop(0))) for _ in listeners
        ]
        self.transports = [(UdpTransport(a), UdpTransport(b)) for a, b in self.sockets]
        self.seats: dict[int, WorkerSeat] = {seat.slot: seat for seat in self.inventory.seats}
        self.channels = {seat.slot: _channel(rest.pop(0)) for seat in self.inventory.seats}
        self._waiting: dict[int, deque[bytes]] = {slot: deque() for slot in self.channels}
        self._holder.setblocking(False)

    def _start(self, plan: HolderPlan) -> socket.socket:
        command = [sys.executable, "-m", "jvpn.holder.process", msgspec.json.encode(plan).decode()]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        found: list[socket.socket] = []

        def answered() -> bool:
            if self._process is not None and self._process.poll() is not None:
                raise DataPlaneError("the data plane could not start; the reason stands above")
            connected = _try_connect(self._path)
            if connected is not None:
                found.append(connected)
            return bool(found)

        _wait_for(answered, "the data plane did not come up")
        return found[0]

    # Workers

    def tell(self, slot: int, command: commands.Command) -> bool:
        """False when the worker is gone or stuck: its successor will be told everything again.

        What its channel does not hold (sessions of a thousand clients are more) waits; each `Done` that it says makes
        room, and `reports` sends on.
        """
        waiting = self._waiting[slot]
        if len(waiting) >= MAX_WAITING:
            return False
        waiting.append(commands.encode(command))
        return self._send_on(slot)

    def _send_on(self, slot: int) -> bool:
        waiting, channel = self._waiting[slot], self.channels[slot]
        try:
            while waiting:
                channel.send(waiting[0], socket.MSG_DONTWAIT)
                waiting.popleft()
        except BlockingIOError:
            return True
        except OSError:
            waiting.clear()
            return False
        return True

    def reports(self, slot: int) -> list[commands.Report]:
        """All that a worker has said."""
        heard: list[commands.Report] = []
        while True:
            try:
                message = self.channels[slot].recv(commands.MAX_MESSAGE, socket.MSG_DONTWAIT)
            except OSError:
                message = b""
            if not message:
                self._send_on(slot)
                return heard
            heard.append(commands.decode_report(message))

    def holder_message(self) -> WorkerReplaced | Succeeded | None:
        """What the holder says next. Raises DataPlaneError when it is gone."""
        try:
            message, passed = descriptors.receive(self._holder, inventory.MAX_MESSAGE)
        except BlockingIOError:
            return None
        except OSError:
            message = b""
        if not message:
            self._gone = True
            raise DataPlaneError(
                f"the holder of sockets and workers (pid {self.inventory.pid}) died, and the tunnel's data plane "
                "with it; start the gateway again"
            )
        try:
            told = inventory.decode(message)
        except msgspec.MsgspecError:  # what the holder's next version may say in addition
            return None
        if not isinstance(told, WorkerReplaced):
            return None if isinstance(told, Refused | Inventory | Shutdown) else told
        self._waiting[told.seat.slot].clear()
        self.channels[told.seat.slot].close()
        self.channels[told.seat.slot] = _channel(passed[0])
        self.seats[told.seat.slot] = told.seat
        return told

    def register(self, selector: selectors.BaseSelector, on_holder: Callable[[], None]) -> None:
        """The last step before serving. Raises DataPlaneError when workers of ours do not come up."""
        if not self.adopted:
            self._wait_for_workers()
        selector.register(self._holder, selectors.EVENT_READ, on_holder)

    def _wait_for_workers(self) -> None:
        """Until each worker has said something, which is Ready.

        Their imports take longer than all that is done here; a session taken over meanwhile would have to wait for its
        ACK in a new epoch already. Until we serve, what comes stays in the sockets.
        """
        waiting = {channel.fileno() for channel in self.channels.values()}
        until = time.monotonic() + START_TIMEOUT_S
        while waiting:
            ready = select.select(waiting, [], [], max(0.0, until - time.monotonic()))[0]
            if not ready:
                raise DataPlaneError(f"{len(waiting)} workers did not come up within {START_TIMEOUT_S:.0f} s")
            waiting.difference_update(ready)

    @property
    def holder_pid(self) -> int:
        return self.inventory.pid

    def close(self) -> None:
        """End the data plane: workers, sockets and TUN go with the holder."""
        if not self._gone:
            with contextlib.suppress(OSError):
                self._holder.setblocking(True)
                descriptors.send(self._holder, inventory.encode(Shutdown()))
            if not wait_for_end(self.inventory.pid, STOP_TIMEOUT_S):
                os.kill(self.inventory.pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(STOP_TIMEOUT_S)
        self.release()

    def release(self) -> None:
        """Let go of everything and leave the data plane running for another supervisor."""
        self._holder.close()
        for pair in self.sockets:
            for member in pair:
                member.close()
        for channel in self.channels.values():
            channel.close()
        os.close(self.tun_queue)


def _refuse_others(found: HolderLink | None, difference: str) -> None:
    if found is None:
        raise DataPlaneError("no data plane runs with this run_dir; start it: systemctl start jvpn-dataplane")
    if difference:
        found.let_go()
        raise DataPlaneError(
            f"the data plane that runs (holder {found.pid}) cannot be taken over: {difference}. It forwards on. "
            "Undo that, or end it and its connections: systemctl restart jvpn-dataplane"
        )


def _difference(plan: HolderPlan, link: HolderLink) -> str:
    """Why the running data plane cannot serve `plan`; empty when it can."""
    running = link.inventory
    if running is None:
        return f"its version of messages is {link.protocol}, this program's {PROTOCOL}"
    if running.generation >= LAST_GENERATION:
        return "it has had as many supervisors as counters can tell apart"
    names = [name for name in plan.__struct_fields__ if getattr(plan, name) != getattr(running.plan, name)]
    return f"other {', '.join(names)} than configured" if names else ""


def wait_for_end(pid: int, timeout_s: float) -> bool:
    """Whether process `pid` has ended, waiting for it; a child of ours that nobody has waited for counts as ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], timeout_s)[0])
    finally:
        os.close(pidfd)


def _channel(descriptor: int) -> socket.socket:
    return socket.socket(fileno=descriptor)


def _try_connect(path: Path) -> socket.socket | None:
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        holder.connect(str(path))
    except OSError:
        holder.close()
        return None
    return holder


def _wait_for(condition: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if time.monotonic() > until:
            raise DataPlaneError(f"{otherwise} within {START_TIMEOUT_S:.0f} s")
        time.sleep(0.01)


def counters_of(page: Page, slot: int, names: list[str]) -> dict[str, int]:
    """A worker's counters by name; those that are zero are left out."""
    values = page.counters(slot)
    return {name: values[number] for number, name in enumerate(names) if values[number]}
