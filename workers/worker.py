"""One worker: what it has been given, and what each command does to it. The loop around it is loop.py."""

import os
import socket
import time
from collections.abc import Callable
from typing import Final

import msgspec

from workers import bulk, privileges
from workers.channel import Channel
from workers.commands import (
    AddSession,
    AttachPage,
    AttachSocket,
    AttachTun,
    Command,
    DetachSocket,
    Done,
    IndexReport,
    InstallIndexes,
    Rebind,
    RemoveSession,
    SendMtuProbe,
    SendProbe,
    Serve,
    SetPathMtu,
    Start,
    Stop,
    decode_command,
)
from workers.counters import Counter
from workers.page import COUNTER_SLOTS, Page
from workers.pipelines import Pipelines
from workers.table import SessionTable, TableError
from workers.tun import PlainTunQueue, TunQueue
from workers.udp import UdpSocket

_ONE_DESCRIPTOR: Final = (AttachPage, AttachTun, AttachSocket)


class CommandError(Exception):
    """A command that cannot be carried out now; the text goes back in Done."""


class Worker:
    """Carries out commands. `watch` and `unwatch` are called with what the loop is to read from once started."""

    def __init__(
        self,
        channel: Channel,
        watch: Callable[[TunQueue | UdpSocket, int], None],
        unwatch: Callable[[int], None],
    ) -> None:
        self.stopped = False
        self.pipelines: Pipelines | None = None
        self._channel = channel
        self._watch = watch
        self._unwatch = unwatch
        self._page: Page | None = None
        self._tun: TunQueue | None = None
        self._mtu = 0
        self._opened: dict[int, socket.socket] = {}
        self._sockets: dict[int, UdpSocket] = {}
        self._reading = False

    def handle(self, message: bytes, descriptors: list[int]) -> None:
        """Carry out one message and answer it. Descriptors that no command takes are closed."""
        try:
            command: Command = decode_command(message)
        except msgspec.MsgspecError as error:
            self._close(descriptors)
            self._refused(0, f"not a command: {error}")
            return
        expected = 1 if isinstance(command, _ONE_DESCRIPTOR) else 0
        if len(descriptors) != expected:
            self._close(descriptors)
            self._refused(command.seq, f"{len(descriptors)} descriptors beside it, not {expected}")
            return
        try:
            reports = self._apply(command, descriptors)
        except (CommandError, TableError, OSError, ValueError) as error:
            self._close(descriptors)
            self._refused(command.seq, str(error))
            return
        self._channel.post(Done(command.seq, reports=reports))

    def _refused(self, seq: int, error: str) -> None:
        if self.pipelines is not None:
            self.pipelines.counters[Counter.BAD_COMMAND] += 1
        self._channel.post(Done(seq, error))

    @staticmethod
    def _close(descriptors: list[int]) -> None:
        while descriptors:
            os.close(descriptors.pop())

    def _apply(self, command: Command, descriptors: list[int]) -> list[IndexReport]:
        """Takes from `descriptors` those that it keeps. Returns the reports that a Rebind asked for."""
        match command:
            case AttachPage():
                self._attach_page(descriptors)
            case AttachTun():
                self._attach_tun(command, descriptors)
            case AttachSocket():
                self._attach_socket(command, descriptors)
            case DetachSocket():
                self._detach_socket(command.socket)
            case Start():
                self._start(command)
            case Serve():
                self._started()
                self._begin_reading()
            case AddSession():
                self._started().add(command, _now_ns())
            case InstallIndexes():
                self._started().table.install(command)
            case Rebind():
                return self._started().rebind(command, _now_ns())
            case RemoveSession():
                self._started().table.remove(command.record)
            case SendProbe():
                self._started().answers.send_probe(command)
            case SendMtuProbe():
                self._started().answers.send_mtu_probe(command)
            case SetPathMtu():
                self._started().table.set_path_mtu(command)
            case Stop():
                self.stopped = True
        return []

    def _started(self) -> Pipelines:
        if self.pipelines is None:
            raise CommandError("not started yet")
        return self.pipelines

    def _attach_page(self, descriptors: list[int]) -> None:
        if self.pipelines is not None:
            raise CommandError("already started with another page")
        self._page = Page(descriptors[0])
        os.close(descriptors.pop())

    def _attach_tun(self, command: AttachTun, descriptors: list[int]) -> None:
        tun = TunQueue(descriptors[0]) if command.vnet_header else PlainTunQueue(descriptors[0])
        descriptors.clear()
        if self._tun is not None:
            self._unwatch(self._tun.fileno())
            self._tun.close()
        self._tun, self._mtu = tun, command.mtu
        if self.pipelines is not None:
            self.pipelines.attach(tun, command.mtu)
        if self._reading:
            self._watch(tun, tun.fileno())

    def _attach_socket(self, command: AttachSocket, descriptors: list[int]) -> None:
        opened = socket.socket(fileno=descriptors[0])
        descriptors.clear()
        opened.setblocking(False)
        self._detach_socket(command.socket)
        udp = self._sockets.get(command.socket)
        if udp is None:
            udp = self._sockets[command.socket] = UdpSocket(command.socket, opened, segment=command.segment)
        else:
            udp.replace(opened, segment=command.segment)
        self._opened[command.socket] = opened
        if self._reading:
            self._watch(udp, opened.fileno())

    def _detach_socket(self, number: int) -> None:
        opened = self._opened.pop(number, None)
        if opened is not None:
            # Others may hold the same socket, so closing alone would leave it in the epoll set.
            if self._reading:
                self._unwatch(opened.fileno())
            self._sockets[number].detach()
            opened.close()

    def _start(self, command: Start) -> None:
        if self.pipelines is not None:
            raise CommandError("already started")
        if self._page is None:
            raise CommandError("no shared page attached")
        if not 0 <= command.slot < COUNTER_SLOTS:
            raise CommandError(f"slot {command.slot} is not in 0 … {COUNTER_SLOTS - 1}")
        if command.cpu >= 0:
            os.sched_setaffinity(0, {command.cpu})
        privileges.drop(command.uid, command.gid)
        table = SessionTable(self._page, gateway=command.gateway, bulk=bulk.find() if command.bulk else None)
        table.sockets = self._sockets
        counters = self._page.counters(command.slot)
        self.pipelines = Pipelines(table, self._tun, self._mtu, self._channel.offer, counters)
        if not command.waits:
            self._begin_reading()

    def _begin_reading(self) -> None:
        """From TUN queue and sockets: those that there are, and those that come."""
        if self._reading:
            return
        self._reading = True
        if self._tun is not None:
            self._watch(self._tun, self._tun.fileno())
        for number, opened in self._opened.items():
            self._watch(self._sockets[number], opened.fileno())


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
