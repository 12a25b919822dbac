"""The supervisor's end of the data plane: the holder it starts or finds, the page, the sockets, the worker channels."""

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from jvpn.holder import descriptors, inventory
from jvpn.holder.inventory import HolderPlan, Inventory, Shutdown, WorkerReplaced, WorkerSeat
from jvpn.holder.process import SOCKET_NAME
from jvpn.transports.udp import UdpTransport
from workers import commands
from workers.page import Page

START_TIMEOUT_S = 20.0


class DataPlaneError(Exception):
    """The data plane cannot be started; says why and what to do."""


class DataPlane:
    """`connect` starts a holder where none answers. Descriptors belong to this object until `close`."""

    def __init__(self, plan: HolderPlan) -> None:
        self.plan = plan
        self._path = Path(plan.run_dir) / SOCKET_NAME
        self._process: subprocess.Popen[bytes] | None = None
        self._holder = self._connect()
        message, passed = descriptors.receive(self._holder, inventory.MAX_MESSAGE)
        first = inventory.decode(message)
        if not isinstance(first, Inventory):
            raise DataPlaneError("the holder did not introduce itself; stop it and start the gateway again")
        self.inventory = first
        page, self.tun_queue, *rest = passed
        self.page = Page(page)
        os.close(page)
        #: For each listener its authenticated (slot 0) and unauthenticated (slot 1) socket.
        self.sockets = [
            (socket.socket(fileno=rest.pop(0)), socket.socket(fileno=rest.pop(0))) for _ in first.plan.listen
        ]
        self.transports = [(UdpTransport(a), UdpTransport(b)) for a, b in self.sockets]
        self.seats: dict[int, WorkerSeat] = {seat.slot: seat for seat in first.seats}
        self.channels = {seat.slot: _channel(rest.pop(0)) for seat in first.seats}
        self._holder.setblocking(False)

    def _connect(self) -> socket.socket:
        """To a holder of an earlier start if it answers, else to a new one."""
        holder = _try_connect(self._path)
        if holder is not None:
            # Sessions of the earlier supervisor cannot be adopted: end its data plane and begin anew.
            descriptors.send(holder, inventory.encode(Shutdown()))
            _wait_for(lambda: not self._path.exists(), "the earlier data plane did not end")
            holder.close()
        self._path.unlink(missing_ok=True)
        command = [sys.executable, "-m", "jvpn.holder.process", msgspec.json.encode(self.plan).decode()]
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
        """False when the worker is gone or stuck: its successor will be told everything again."""
        try:
            self.channels[slot].send(commands.encode(command), socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def reports(self, slot: int) -> list[commands.Report]:
        """All that a worker has said."""
        heard: list[commands.Report] = []
        while True:
            try:
                message = self.channels[slot].recv(commands.MAX_MESSAGE, socket.MSG_DONTWAIT)
            except OSError:
                return heard
            if not message:
                return heard
            heard.append(commands.decode_report(message))

    def holder_message(self) -> WorkerReplaced | None:
        """What the holder says next. Raises DataPlaneError when it is gone."""
        message, passed = descriptors.receive(self._holder, inventory.MAX_MESSAGE)
        if not message:
            raise DataPlaneError("the holder of sockets and workers died; start the gateway again")
        told = inventory.decode(message)
        if not isinstance(told, WorkerReplaced):
            return None
        self.channels[told.seat.slot].close()
        self.channels[told.seat.slot] = _channel(passed[0])
        self.seats[told.seat.slot] = told.seat
        return told

    def register(self, selector: selectors.BaseSelector, on_holder: Callable[[], None]) -> None:
        selector.register(self._holder, selectors.EVENT_READ, on_holder)

    @property
    def holder_pid(self) -> int:
        return self.inventory.pid

    def close(self) -> None:
        """End the data plane: workers, sockets and TUN go with the holder."""
        try:
            self._holder.setblocking(True)
            descriptors.send(self._holder, inventory.encode(Shutdown()))
            self._holder.settimeout(10)
            while self._holder.recv(inventory.MAX_MESSAGE):
                continue
        except OSError:
            os.kill(self.inventory.pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(10)
        self._holder.close()
        for pair in self.sockets:
            for member in pair:
                member.close()
        for channel in self.channels.values():
            channel.close()
        os.close(self.tun_queue)


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
